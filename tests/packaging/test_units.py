"""The units, users and folders of deploy/, held against systemd's own tools. No systemd runs for it."""

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SYSTEM_UNITS = Path("/lib/systemd/system")
UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())

EXPOSURE = {
    # systemd's own figure, of 10: 9.6 for a unit that says nothing. Measured with systemd 252; a newer one counts more.
    "livesnap-manager@.service": 1.5,
    "livesnap-api.service": 1.5,
    "livesnap-flower.service": 1.5,
    "livesnap-guard.service": 1.5,
    "livesnap-spm.service": 2.3,  # owners, modes and locks of images that are others'
    "livesnap-host@.service": 3.3,  # acts as QEMU's user, sees QEMU's processes, images anywhere
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root folder of a machine on which the units are installed, with the programs that they name."""
    folder = tmp_path_factory.mktemp("root")
    target = folder / "etc/systemd/system"
    target.mkdir(parents=True)
    shutil.copytree(SYSTEM_UNITS, folder / "lib/systemd/system", symlinks=True)
    for name in UNITS:
        shutil.copy(DEPLOY / "systemd" / name, target / name.replace("@.", "@1."))
        shutil.copy(DEPLOY / "systemd" / name, target / name)
    for program in ("celery", "python"):
        path = folder / "opt/livesnap/bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def said(*words: str | Path) -> tuple[int, str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.needs("systemd-analyze")
def test_systemd_understands_every_line(root: Path) -> None:
    folder = root / "etc/systemd/system"
    units = [folder / name.replace("@.", "@1.") for name in UNITS]
    status, words = said("systemd-analyze", "verify", f"--root={root}", "--man=no", *[unit.name for unit in units])
    ours = [line for line in words.splitlines() if "livesnap" in line]
    assert (status, ours) == (0, [])
    broken = folder / "livesnap-api.service"
    broken.write_text(broken.read_text().replace("Restart=always", "Restart=alwais"))
    _, words = said("systemd-analyze", "verify", f"--root={root}", "--man=no", broken.name)
    assert "alwais" in words, "a wrong line would be seen"


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_no_more_exposed_than_its_work_needs(name: str) -> None:
    file = DEPLOY / "systemd" / name
    threshold = f"--threshold={int(EXPOSURE[name] * 10)}"
    status, words = said("systemd-analyze", "security", "--offline=true", "--no-pager", threshold, file)
    assert status == 0, words
    assert "Overall exposure level" in words


def test_every_relaxation_says_why() -> None:
    """What the units of unprivileged clients have, and another one has not, is explained in that one's comments."""
    strict = {"ProtectSystem=strict", "ProtectProc=invisible", "ProcSubset=pid", "PrivateUsers=yes", "ProtectHome=yes"}
    for name in UNITS:
        lines = (DEPLOY / "systemd" / name).read_text().splitlines()
        comments = " ".join(line for line in lines if line.startswith("#"))
        for relaxed in strict - set(lines):
            option = relaxed.partition("=")[0]
            assert f"{option}=" in comments, (name, relaxed)
        if "CapabilityBoundingSet=" not in lines:
            (kept,) = [line for line in lines if line.startswith("CapabilityBoundingSet=CAP")]
            for capability in kept.partition("=")[2].split():
                assert capability.removeprefix("CAP_") in comments, (name, capability)


def users(root: Path) -> dict[str, str]:
    rows = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    return {row[0]: row[6] for row in rows}


@pytest.mark.needs("systemd-sysusers", "systemd-tmpfiles", "root")
def test_users_and_folders_are_made(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/livesnap").mkdir(parents=True)
    (root / "etc/livesnap/manager.toml").touch(mode=0o644)
    for tool, words in (("systemd-sysusers", []), ("systemd-tmpfiles", ["--create"])):
        file = DEPLOY / f"{tool.removeprefix('systemd-')}.d/livesnap.conf"
        for _ in range(2):  # safe to repeat
            assert said(tool, f"--root={root}", *words, file)[0] == 0
    assert users(root).keys() >= {"livesnap", "livesnap-spm", "livesnap-flower"}
    assert {shell for name, shell in users(root).items() if name.startswith("livesnap")} == {"/usr/sbin/nologin"}
    modes = {
        path: stat.S_IMODE((root / path).stat().st_mode)
        for path in (
            "etc/livesnap/keys",
            "var/lib/livesnap/manager",
            "var/lib/livesnap/host",
            "etc/livesnap/manager.toml",
        )
    }
    assert list(modes.values()) == [0o755, 0o700, 0o700, 0o600], modes
    owners = {name: (root / "var/lib/livesnap" / name).stat().st_uid for name in ("manager", "host")}
    assert owners["host"] == 0
    assert owners["manager"] != 0


def test_units_name_the_users_that_are_made() -> None:
    made = {
        line.split()[1] for line in (DEPLOY / "sysusers.d/livesnap.conf").read_text().splitlines() if line[0] == "u"
    }
    named = {
        line.partition("=")[2]
        for name in UNITS
        for line in (DEPLOY / "systemd" / name).read_text().splitlines()
        if line.startswith("User=")
    }
    assert named - {"root"} == made
