"""deploy/install-debian.sh: quick when there is nothing to do, one clear command when root is needed."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "install-debian.sh"

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-query") is None and os.environ.get("CI") != "true", reason="no dpkg-query: this is no Debian"
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that anybody may read, with the script and a dpkg database that knows of no package."""
    with tempfile.TemporaryDirectory(prefix="ls-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(SCRIPT, folder)
        (folder / "dpkg" / "info").mkdir(parents=True)
        (folder / "dpkg" / "updates").mkdir()
        (folder / "dpkg" / "status").touch()
        yield folder


def run_without_root(place: Path, *arguments: str, empty: bool) -> subprocess.CompletedProcess[str]:
    """Run the script as an ordinary user, on the empty dpkg database or on the machine's own."""
    environment = {**os.environ, "DPKG_ADMINDIR": str(place / "dpkg")} if empty else dict(os.environ)
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    command = [*drop, str(place / SCRIPT.name), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, cwd="/", capture_output=True, text=True)


def test_prints_the_one_command_when_root_is_missing(place: Path) -> None:
    done = run_without_root(place, empty=True)
    assert done.returncode == 1
    assert "redis-server" in done.stderr
    assert f"run once:  sudo {place / SCRIPT.name}\n" in done.stderr
    assert done.stdout == ""


def test_build_set_is_smaller(place: Path) -> None:
    done = run_without_root(place, "--build", empty=True)
    assert done.returncode == 1
    assert "libvirt-dev" in done.stderr
    assert "rabbitmq-server" not in done.stderr


def test_refuses_an_unknown_option(place: Path) -> None:
    done = run_without_root(place, "--everything", empty=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_is_quick_and_silent_when_all_is_there(place: Path) -> None:
    began = time.monotonic()
    done = run_without_root(place, empty=False)
    if done.returncode == 1 and os.environ.get("CI") != "true":
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 5
