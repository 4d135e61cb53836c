"""The command line against a served API: documents, exit statuses, and what it does when the server is away."""

import errno
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from common.messaging.keys import SigningKey, write_public
from common.messaging.messages import Failed, Outcome
from manager.views import JobView
from tests.bed.paths import free_port
from tests.integration.front_kit import TOKEN, Front, Ran, front, livesnap
from tests.integration.manager_kit import H1, created, deleted, disk, observed, vm
from tests.wait import eventually

EVIL = "evil\x1b]0;x\x07\u202e"
NOBODY = f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Front]:
    """An API whose host h1 runs web1 (with one shareable disk) and a machine with an unpleasant name."""
    with front(tmp_path) as served:
        report(served)
        yield served


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The same for all tests in which nothing may change, which is checked at the end."""
    with front(tmp_path_factory.mktemp("calm")) as served:
        report(served)
        yield served
        assert served.fleet.service.list_jobs() == []


def report(served: Front) -> None:
    served.fleet.report_spm()
    shared = disk("shared.qcow2", "vdb", shareable=True)
    served.fleet.report_host(vm("web1", disk("web1.qcow2"), shared), vm(EVIL, disk("evil.qcow2")))


def active_job(api: Front) -> JobView | None:
    jobs = api.fleet.service.list_jobs(active=True)
    return jobs[0] if jobs else None


def meanwhile(api: Front, act: Callable[[JobView], object]) -> Any:
    """Return a pool's future of `act` on the next job that appears."""
    pool = ThreadPoolExecutor()

    def on_the_next_job() -> object:
        job = eventually(lambda: active_job(api), timeout_s=20, what="a job")
        assert job is not None
        return act(job)

    future = pool.submit(on_the_next_job)
    pool.shutdown(wait=False)
    return future


def run(*words: str, **environment: str) -> Ran:
    process = livesnap(*words, **environment)
    out, err = process.communicate(timeout=60)
    return Ran(status=process.returncode, out=out, err=err)


def roll_back(api: Front, _: JobView) -> None:
    api.fleet.answer(Failed(code="storage_full", message="no room"))
    api.fleet.answer(deleted(api.fleet.last()))


def give_up(api: Front, job: JobView) -> None:
    api.fleet.answer(created(api.fleet.last()))
    for _ in range(30):
        if api.fleet.service.show_job(job.id).state == "needs_operator":
            return
        api.fleet.answer(observed(Outcome.BAD, code="repair_failed"))


# ---- documents ---------------------------------------------------------------------------------------------------


def test_every_list_is_one_bare_array(calm: Front) -> None:
    assert [host["id"] for host in calm.livesnap("host", "list", "--json").json] == ["h1"]
    assert "web1" in [vm["name"] for vm in calm.livesnap("vm", "list", "--json").json]
    assert calm.livesnap("job", "list", "--json").json == []
    assert calm.livesnap("snapshot", "list", "web1", "--json").json == []


def test_a_snapshot_is_taken_and_shown(api: Front) -> None:
    done = meanwhile(api, api.fleet.complete)
    made = api.livesnap("snapshot", "create", "web1", "--name", "one", "--description", "why", "--json")
    done.result()
    assert made.status == 0, made.err
    assert (made.json["state"], made.json["snapshot_name"], made.json["error"]) == ("completed", "one", None)
    assert "pivoting" in made.err
    shown = api.livesnap("snapshot", "show", "web1/one", "--json").json
    assert shown["id"] == made.json["snapshot_id"]
    assert shown["consistency"] == "filesystem"
    assert api.livesnap("snapshot", "list", "web1", "--json").json == [shown]
    assert api.livesnap("job", "show", made.json["id"], "--json").json == made.json
    assert [job["id"] for job in api.livesnap("job", "list", "--vm", "web1", "--json").json] == [made.json["id"]]
    assert api.livesnap("job", "list", "--active", "--json").json == []


def test_a_dry_run_creates_nothing(calm: Front) -> None:
    fine = calm.livesnap("snapshot", "create", "web1", "--dry-run", "--json")
    assert (fine.status, "ok" in {line["level"] for line in fine.json}) == (0, True)
    refused = calm.livesnap("snapshot", "create", "web1", "--disk", "vdb", "--dry-run", "--json")
    assert (refused.status, "disk_shareable" in refused.out) == (2, True)


def test_a_machine_is_locked_and_unlocked(api: Front) -> None:
    lock = api.livesnap("vm", "lock", "web1", "--reason", "nightly backup", "--ttl", "2h", "--json")
    assert (lock.status, lock.json["reason"]) == (0, "nightly backup")
    assert datetime.fromisoformat(lock.json["until"]) - datetime.fromisoformat(lock.json["since"]) == timedelta(hours=2)
    assert api.livesnap("vm", "show", "web1", "--json").json["lock"] == lock.json
    assert "nightly backup" in api.livesnap("vm", "list").out
    assert "nightly backup" in api.livesnap("vm", "show", "web1").out
    again = api.livesnap("vm", "lock", "web1", "--reason", "nightly backup", "--json")
    assert (again.status, again.json["error"]["code"]) == (2, "vm_busy")
    refused = api.livesnap("snapshot", "create", "web1")
    assert (refused.status, "nightly backup" in refused.err, "vm unlock" in refused.err) == (2, True, True)
    other = api.livesnap("vm", "unlock", "web1", "--lock", "another", "--json")
    assert (other.status, other.json["error"]["code"]) == (2, "vm_busy")
    assert api.livesnap("vm", "unlock", "web1", "--lock", lock.json["id"], "--json").json == lock.json
    free = api.livesnap("vm", "unlock", "web1", "--json")
    assert (free.status, free.json["error"]["code"]) == (2, "vm_not_locked")


def test_people_get_tables(api: Front) -> None:
    done = meanwhile(api, api.fleet.complete)
    made = api.livesnap("snapshot", "create", "web1", "--name", "one")
    done.result()
    assert "completed" in made.out
    assert "pivoting" in made.err
    for words, expected in {
        ("host", "list"): ["h1", "up"],
        ("vm", "list"): ["web1", "running"],
        ("vm", "show", "web1"): ["vda", "disk_shareable", "Volumes of vda"],
        ("snapshot", "list", "web1"): ["one", "filesystem"],
        ("snapshot", "show", "web1/one"): ["vdb", "2 file systems", "Attempts"],
        ("job", "list"): ["completed", "web1"],
    }.items():
        shown = api.livesnap(*words)
        assert shown.status == 0
        assert all(text in shown.out for text in expected), shown.out
    job = api.fleet.service.list_jobs()[0].id
    assert "Timeline" in api.livesnap("job", "show", job[:8]).out


def test_no_control_character_of_a_name_reaches_the_terminal(api: Front) -> None:
    for words in (("vm", "list"), ("vm", "list", "--json"), ("vm", "show", EVIL)):
        shown = api.livesnap(*words)
        assert "evil" in shown.out + shown.err
        assert all(char.isprintable() or char == "\n" for char in shown.out + shown.err), shown
    job = api.fleet.create(EVIL)
    assert job.vm_name.startswith("evil")
    shown = api.livesnap("job", "show", job.id)
    assert all(char.isprintable() or char == "\n" for char in shown.out + shown.err)


# ---- exit statuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "code", "state"),
    [
        pytest.param(roll_back, "storage_full", "rolled_back", id="rolled back"),
        pytest.param(give_up, "repair_failed", "needs_operator", id="an operator is needed"),
    ],
)
def test_a_failed_job_is_status_1(api: Front, act: Callable[[Front, JobView], None], code: str, state: str) -> None:
    done = meanwhile(api, lambda job: act(api, job))
    made = api.livesnap("snapshot", "create", "web1", "--json")
    done.result()
    assert (made.status, made.json["state"], made.json["error"]["code"]) == (1, state, code)
    assert made.json["error"]["hint"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("snapshot", "create", "nobody"), "vm_not_found"),
        (("snapshot", "create", "web1", "--quiesce", "perhaps"), "quiesce_mode_unknown"),
        (("snapshot", "create", "web1", "--disk", "vdz"), "disk_unknown"),
        (("snapshot", "create", "web1", "--disk", "vdb"), "disk_shareable"),
        (("snapshot", "create", "web1", "--name", "a\x1bb"), "name_invalid"),
        (("snapshot", "create", ""), "request_malformed"),
        (("snapshot", "create"), "request_malformed"),
        (("snapshot", "create", "web1", "--timeout", "soon"), "request_malformed"),
        (("snapshot", "show", "web1/none"), "snapshot_not_found"),
        (("vm", "show", "a\nb"), "request_malformed"),
        (("job", "wait", "none"), "job_not_found"),
        (("job", "cancel", "none"), "job_not_found"),
        (("no-such-command",), "request_malformed"),
        (("--token", "wrong", "vm", "list"), "token_wrong"),
        (("vm", "lock", "web1", "--reason", "x", "--ttl", "soon"), "request_malformed"),
        (("vm", "lock", "web1", "--reason", "x", "--ttl", "0s"), "request_malformed"),
        (("vm", "lock", "web1"), "request_malformed"),
        (("vm", "unlock", "nobody"), "vm_not_found"),
        (("--token", "wrong", "snapshot", "create", "web1"), "token_wrong"),
    ],
)
def test_a_refusal_is_status_2_with_its_code(calm: Front, words: tuple[str, ...], code: str) -> None:
    refused = calm.livesnap(*words, "--json")
    assert refused.status == 2
    assert refused.json["error"].keys() == {"code", "message", "hint"}
    assert refused.json["error"]["code"] == code
    assert refused.json["error"]["hint"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("snapshot", "create", "nobody"), ["vm_not_found", "livesnap vm list"]),
        (("snapshot", "create", "--nmae", "one"), ["--nmae", "--help"]),
    ],
)
def test_people_are_told_on_standard_error(calm: Front, words: tuple[str, ...], told: list[str]) -> None:
    refused = calm.livesnap(*words)
    assert (refused.status, refused.out) == (2, "")
    assert all(text in refused.err for text in told)


def test_a_busy_machine_names_its_job(api: Front) -> None:
    holder = api.livesnap("snapshot", "create", "web1", "--no-wait", "--json").json["id"]
    refused = api.livesnap("snapshot", "create", "web1", "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "vm_busy")
    assert holder in refused.json["error"]["message"]


@pytest.mark.parametrize("words", [("host", "list"), ("job", "wait", "x", "--timeout", "0.3")])
def test_a_server_that_is_never_reached_is_status_3(words: tuple[str, ...]) -> None:
    failed = run("--url", NOBODY, *words, "--json")
    assert (failed.status, failed.json["error"]["code"]) == (3, "server_unreachable")


def test_a_job_that_still_runs_is_status_4(api: Front) -> None:
    made = api.livesnap("snapshot", "create", "web1", "--timeout", "0.5", "--json")
    assert (made.status, made.json["state"], made.json["finished_at"]) == (4, "creating_volumes", None)
    waited = api.livesnap("job", "wait", made.json["id"], "--timeout", "0", "--json")
    assert (waited.status, waited.json["id"]) == (4, made.json["id"])
    api.fleet.complete(api.fleet.service.show_job(made.json["id"]))
    assert api.livesnap("job", "wait", made.json["id"], "--json").status == 0


def test_jobs_are_cancelled_and_resolved(api: Front) -> None:
    job = api.livesnap("snapshot", "create", "web1", "--no-wait", "--json").json["id"]
    refused = api.livesnap("job", "resolve", job, "--host-was-rebooted", "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "job_not_waiting")
    give_up(api, api.fleet.service.show_job(job))
    api.fleet.held_locks = {H1}
    alive = api.livesnap("job", "resolve", job, "--host-was-rebooted", "--json")
    assert (alive.status, alive.json["error"]["code"]) == (2, "host_alive")
    api.fleet.held_locks = set()
    assert api.livesnap("job", "resolve", job, "--host-was-rebooted", "--json").json["state"] == "probing"
    other = api.fleet.create(EVIL).id
    assert api.livesnap("job", "cancel", other, "--json").json["state"] == "deleting_volumes"


def test_a_lost_host_is_removed(api: Front, tmp_path: Path) -> None:
    write_public(tmp_path, SigningKey.generate(tmp_path / "h1.key", "host.h1"))
    job = api.fleet.create("web1").id
    api.fleet.answer(created(api.fleet.last()))
    bare = api.livesnap("host", "remove", "h1", "--json")
    assert (bare.status, bare.json["error"]["code"]) == (2, "host_has_jobs")
    removed = api.livesnap("host", "remove", "h1", "--lost")
    assert removed.status == 0
    assert job in removed.out
    assert "livesnap vm show" in removed.out
    assert api.livesnap("job", "wait", job, "--json").status == 1
    assert api.livesnap("host", "list", "--json").json == []


# ---- a server that comes and goes --------------------------------------------------------------------------------


def test_a_wait_survives_a_restart_of_the_server(api: Front) -> None:
    job = api.fleet.create("web1")
    waiting = api.start_livesnap("job", "wait", job.id, "--json")
    assert waiting.stderr is not None
    first = waiting.stderr.readline()
    assert "creating_volumes" in first
    api.stop()
    # On a busy machine it may have said before that the job waits for its SPM.
    assert any("trying again" in line for line in waiting.stderr)
    api.fleet.complete(job)
    api.start()
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, json.loads(out)["state"]) == (0, "completed")
    assert [err.count(step) for step in ("pivoting ", "completed ")] == [1, 1]
    assert "creating_volumes" not in err


def test_a_submission_waits_a_moment_for_the_server(api: Front) -> None:
    api.stop()
    submitting = api.start_livesnap("snapshot", "create", "web1", "--no-wait", "--json")
    assert submitting.stderr is not None
    assert "trying again" in submitting.stderr.readline()
    api.start()
    out, _ = submitting.communicate(timeout=30)
    assert submitting.returncode == 0
    assert [job.id for job in api.fleet.service.list_jobs()] == [json.loads(out)["id"]]


# ---- terminals and pipes -----------------------------------------------------------------------------------------


def rest_of(terminal: int) -> bytes:
    """Read until nobody has the terminal open any more, which Linux tells by an input/output error."""
    seen = b""
    try:
        while True:
            seen += os.read(terminal, 4096)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return seen


def test_a_terminal_shows_the_timeline_live(api: Front) -> None:
    job = api.fleet.create("web1")
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "manager.cli", "job", "wait", job.id, "--json"]
    environment = {**os.environ, "LIVESNAP_URL": api.url, "LIVESNAP_TOKEN": TOKEN, "TERM": "xterm", "COLUMNS": "100"}
    seen = b""
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=slave) as waiting:
        os.close(slave)
        while b"creating_volumes" not in seen:
            seen += os.read(master, 4096)
        api.fleet.complete(job)
        seen += rest_of(master)
        assert waiting.stdout is not None
        document = json.loads(waiting.stdout.read())
    os.close(master)
    assert document["state"] == "completed"
    assert b"\x1b[" in seen
    assert seen.index(b"creating_volumes") < seen.index(b"pivoting") < seen.rindex(b"completed")


def test_ctrl_c_leaves_the_job_and_says_so(api: Front) -> None:
    job = api.fleet.create("web1")
    waiting = api.start_livesnap("job", "wait", job.id)
    assert waiting.stderr is not None
    assert "creating_volumes" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out) == (130, "")
    assert f"livesnap job wait {job.id}" in err
    assert active_job(api) is not None


def test_a_closed_pipe_is_no_traceback(calm: Front) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "LIVESNAP_URL": calm.url, "LIVESNAP_TOKEN": TOKEN}
    with os.fdopen(writing, "wb") as closed:
        words = [sys.executable, "-m", "manager.cli", "vm", "list", "--json"]
        done = subprocess.run(words, env=environment, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")
