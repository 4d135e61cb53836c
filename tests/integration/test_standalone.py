"""`livesnap standalone` with a real libvirtd: starting, dying, taking over, stopping."""

import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manager.standalone.processes import Process, in_session
from tests.bed.host import IsolatedHost, shared_dir
from tests.bed.paths import free_port, short_dir
from tests.integration.front_kit import Ran, livesnap
from tests.integration.standalone_kit import Standalone
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("libvirt", "libvirtd", "qemu-img", "redis-server", "setpriv"),
    pytest.mark.xdist_group("standalone"),
]

NO_LIBVIRT = "qemu+unix:///session?socket=/nonexistent/libvirt-sock"


@pytest.fixture(scope="module")
def bed() -> Iterator[tuple[Path, IsolatedHost]]:
    """A folder and a hypervisor host."""
    with short_dir() as folder, IsolatedHost("a", folder) as host:
        yield folder, host


@pytest.fixture
def instance(bed: tuple[Path, IsolatedHost], request: pytest.FixtureRequest) -> Iterator[Standalone]:
    """An instance of its own for each test, not started yet."""
    folder, host = bed
    name = f"s{abs(hash(request.node.name)) % 10**6}"
    storage = shared_dir(folder / f"{name}-images", host)
    with Standalone(folder / name, host.uri, {"images": storage}, "--host-id", "h1") as made:
        yield made


def gone(processes: list[Process]) -> bool:
    return not any(process.is_alive for process in processes)


def words_of(process: Process) -> str:
    return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_it_starts_serves_and_stops(instance: Standalone) -> None:
    instance.start().wait_ready()
    processes = instance.processes()
    names = " ".join(words_of(process) for process in processes)
    for part in ("manager.worker", "manager.api", "spm.worker", "hostagent.worker", "hostagent.guard", "redis-server"):
        assert part in names
    assert instance.session != os.getsid(0)
    (host,) = instance.livesnap("host", "list", "--json").json
    assert (host["id"], host["state"], host["storage_domains"]) == ("h1", "up", ["images"])
    assert_no_secret_is_public(instance)
    assert instance.stop() == 0
    assert gone(processes)
    assert instance.process.stdout is not None
    assert instance.process.stdout.read() == ""
    assert not (instance.state_dir / "standalone.json").exists()


def assert_no_secret_is_public(instance: Standalone) -> None:
    token = (instance.state_dir / "token").read_text().strip()
    assert not any(token in words_of(process) for process in instance.processes())
    assert stat.S_IMODE(instance.state_dir.stat().st_mode) == 0o700
    private = [*instance.state_dir.glob("settings/*"), *instance.state_dir.glob("logs/*"), instance.state_dir / "token"]
    assert len(private) > 8
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}


@pytest.mark.parametrize("name", ["redis", "manager", "api", "spm", "host", "guard"])
def test_a_process_that_dies_is_started_again(running: Standalone, name: str) -> None:
    was = running.child(name)
    was.signal(signal.SIGKILL)
    assert running.restarted(was, name).session == was.session


@pytest.fixture(scope="module")
def running(bed: tuple[Path, IsolatedHost]) -> Iterator[Standalone]:
    """One instance for all tests that it outlives."""
    folder, host = bed
    storage = shared_dir(folder / "running-images", host)
    with Standalone(folder / "running", host.uri, {"images": storage}, "--host-id", "h1") as made:
        yield made.start().wait_ready()


def test_a_second_one_on_the_same_state_directory_is_refused(running: Standalone) -> None:
    refused = ended(livesnap("standalone", *running.words))
    assert (refused.status, refused.out) == (2, "")
    assert "settings_invalid" in refused.err
    assert str(running.state_dir) in refused.err
    eventually(lambda: running.livesnap("host", "list").status == 0, timeout_s=30, what="an answer of the first")


@pytest.mark.matrix
def test_it_takes_over_from_a_killed_one(instance: Standalone) -> None:
    instance.start().wait_ready()
    orphans = [process for process in instance.processes() if process.pid != instance.process.pid]
    assert len(orphans) >= 6
    session = instance.session
    instance.kill9()
    assert all(process.is_alive for process in orphans)
    instance.start().wait_ready()
    assert gone(orphans)
    assert list(in_session(session)) == []
    assert len([process for process in instance.processes() if process.name == "redis-server"]) == 1
    assert instance.livesnap("vm", "list").status == 0


@pytest.mark.matrix
def test_a_restart_waits_for_the_end_and_keeps_address_and_identity(instance: Standalone) -> None:
    instance.start().wait_ready()
    first, before = instance.process, instance.processes()
    url, token = ((instance.state_dir / name).read_text() for name in ("url", "token"))
    seen_at = instance.livesnap("host", "list", "--json").json[0]["seen_at"]
    first.send_signal(signal.SIGTERM)
    instance.start().wait_ready()
    assert first.wait(timeout=30) == 0
    assert gone(before)
    assert [(instance.state_dir / name).read_text() for name in ("url", "token")] == [url, token]
    assert instance.livesnap("host", "list", "--json").json[0]["seen_at"] > seen_at


def test_it_waits_for_a_libvirt_that_is_away(instance: Standalone, bed: tuple[Path, IsolatedHost]) -> None:
    _, host = bed
    host.stop()
    try:
        instance.start()
        eventually(
            lambda: "waiting_for='libvirt" in instance.log.read_text(), timeout_s=90, what="a word about libvirt"
        )
        (shown,) = instance.livesnap("host", "list", "--json").json
        assert shown["state"] == "libvirt_down"
    finally:
        host.start()
    instance.wait_ready()


@pytest.mark.matrix
def test_a_state_directory_with_a_long_path_works_too(bed: tuple[Path, IsolatedHost]) -> None:
    folder, host = bed
    storage = shared_dir(folder / "long-images", host)
    state_dir = folder / ("long-" + "x" * 100)
    with Standalone(state_dir, host.uri, {"images": storage}, "--host-id", "h1") as instance:
        instance.start().wait_ready()
        conf = (state_dir / "settings/redis.conf").read_text()
        password = conf.split('requirepass "')[1].split('"')[0]
        assert not any(password in words_of(process) for process in instance.processes())
        assert instance.child("guard").is_alive
        assert "guard_ready" in (state_dir / "logs/guard.log").read_text()
        assert instance.stop() == 0


def test_on_a_terminal_ctrl_c_stops_it(instance: Standalone) -> None:
    """A terminal's foreground process cannot lead a session of its own, and gets the terminal's signals itself."""
    words = [sys.executable, "-m", "manager.cli", "standalone", *instance.words]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 4096)
    session = instance.record()["session"]
    assert session not in (os.getsid(0), os.getsid(pid))
    assert len(list(in_session(session))) >= 7
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert list(in_session(session)) == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param(["--storage-domain", "images=/nonexistent/images"], "storage_unavailable", id="no such folder"),
        pytest.param(["--storage-domain", "images"], "settings_invalid", id="no path"),
        pytest.param(["--storage-domain", "images=/", "--http", "nowhere"], "settings_invalid", id="no port"),
        pytest.param(
            ["--storage-domain", "images=/", "--http", "192.0.2.1:80"], "settings_invalid", id="not our address"
        ),
        pytest.param([], "Missing option", id="no storage domain"),
    ],
)
def test_wrong_options_are_status_2(tmp_path: Path, options: list[str], code: str) -> None:
    given = [option.replace("TMP", str(tmp_path)) for option in options]
    words = ["--state-dir", str(tmp_path / "state"), "--libvirt-uri", NO_LIBVIRT, *given]
    refused = ended(livesnap("standalone", *words))
    assert (refused.status, refused.out) == (2, "")
    assert code in refused.err


def test_a_storage_domain_of_another_pool_is_refused_with_the_words_of_the_spm(tmp_path: Path) -> None:
    register = [sys.executable, "-m", "spm.register", "theirs", str(tmp_path), "--pool", "theirs"]
    subprocess.run(register, check=True, capture_output=True)
    words = ["--libvirt-uri", NO_LIBVIRT, "--storage-domain", f"ours={tmp_path}"]
    refused = ended(livesnap("standalone", "--state-dir", str(tmp_path / "s"), *words))
    assert refused.status == 2
    assert "pool theirs" in refused.err
    assert "Error settings_invalid" in refused.err or "Error storage_unavailable" in refused.err


def test_a_broker_that_is_not_there_is_said(tmp_path: Path) -> None:
    broker = f"amqp://guest:secret@127.0.0.1:{free_port()}//"
    words = [
        "--state-dir",
        str(tmp_path / "s"),
        "--libvirt-uri",
        NO_LIBVIRT,
        "--storage-domain",
        f"i={tmp_path}",
    ]
    refused = ended(livesnap("standalone", *words, LIVESNAP_BROKER_URL=broker))
    assert refused.status == 2
    assert "broker_unavailable" in refused.err
    assert "secret" not in refused.err


def ended(process: subprocess.Popen[str]) -> Ran:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    return Ran(status=process.returncode, out=out, err=err)
