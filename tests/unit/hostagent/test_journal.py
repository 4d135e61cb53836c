"""The host's durable record: attempts that only rise, calls that may be in flight, answers that are replayed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import NotReady, StaleAttempt
from common.ids import JobId, StepId, VmId, new_id
from common.messaging.messages import DiskObserved, LeavesObserved, Outcome
from common.receipt import Receipt
from hostagent import stored_answers
from hostagent.journal import SqliteJournal
from tests.fakes.clock import FakeClock

VM, OTHER = VmId(new_id()), VmId(new_id())
JOB, JOB_2 = JobId(new_id()), JobId(new_id())
STEP = StepId(new_id())
ROOT = Path(__file__).resolve().parents[3]

RECEIPT = Receipt(
    vm_state="running",
    quiesce=True,
    switched_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    own_switch=True,
    frozen_filesystems=2,
    thawed_filesystems=2,
    held_ms=23.5,
)
ANSWER = LeavesObserved(
    outcome=Outcome.ALL_NEW,
    boot_id="b",
    runtime_id="1.2",
    disks=(DiskObserved(target="vda", live="/n", live_chain=("/n", "/o"), persistent="/n", first_write_bytes=7),),
    receipt=RECEIPT,
    live_xml="<domain id='1'/>",
)
UNKNOWN = replace(ANSWER, outcome=Outcome.UNKNOWN, receipt=None, code="pivot_unknown")


def opened(path: Path, boot_id: str = "boot-1") -> SqliteJournal:
    return SqliteJournal(path, boot_id=boot_id, clock=FakeClock())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    made = opened(path)
    yield made
    made.close()


@pytest.mark.parametrize("answer", [ANSWER, UNKNOWN, LeavesObserved(outcome=Outcome.BAD, boot_id="", runtime_id="")])
def test_an_answer_is_stored_whole(answer: LeavesObserved) -> None:
    assert stored_answers.load(stored_answers.dump(answer)) == answer


def test_attempts_only_rise(journal: SqliteJournal) -> None:
    assert journal.current(VM) is None
    assert journal.begin(VM, 3, JOB, STEP) is None
    again = journal.begin(VM, 3, JOB, STEP)
    assert again is not None
    assert (again.attempt, again.job_id, again.step_id, again.answer) == (3, JOB, STEP, None)
    with pytest.raises(StaleAttempt) as stale:
        journal.begin(VM, 2, JOB_2, STEP)
    assert stale.value.highest == 3
    assert journal.begin(VM, 4, JOB_2, STEP) is None
    assert journal.begin(OTHER, 1, JOB, STEP) is None
    assert journal.attempts() == {VM: (4, False), OTHER: (1, False)}


def test_everything_outlives_the_process(path: Path, journal: SqliteJournal) -> None:
    journal.begin(VM, 1, JOB, STEP)
    journal.call_issued(VM, 1, 5000, "10.20")
    journal.maybe_frozen(VM, "token", "1.2")
    journal.done(VM, 1, UNKNOWN)
    journal.commit_begun(VM, JOB)
    later = opened(path, "boot-2")
    row = later.current(VM)
    assert row is not None
    assert (row.call_issued_boot_ms, row.libvirtd_instance, row.boot_id) == (5000, "10.20", "boot-1")
    assert row.answer == UNKNOWN
    assert later.frozen_records() == ((VM, "token", "1.2"),)
    assert later.commit_was_begun(VM, JOB)
    later.close()


def test_a_call_in_flight_outlives_its_attempt(journal: SqliteJournal) -> None:
    """A Probe that is killed after its begin must still find the call of the Pivot before it."""
    journal.begin(VM, 1, JOB, STEP)
    journal.call_issued(VM, 1, 5000, "10.20")
    for attempt in (2, 3):
        journal.begin(VM, attempt, JOB, STEP)
        row = journal.current(VM)
        assert row is not None
        assert (row.attempt, row.call_issued_boot_ms, row.libvirtd_instance) == (attempt, 5000, "10.20")
        assert row.answer is None
    journal.done(VM, 3, UNKNOWN)
    journal.begin(VM, 4, JOB, STEP)
    carried = journal.current(VM)
    assert carried is not None
    assert carried.call_issued_boot_ms == 5000


def test_an_answer_settles_the_call(journal: SqliteJournal) -> None:
    journal.begin(VM, 1, JOB, STEP)
    journal.call_issued(VM, 1, 5000, "10.20")
    journal.done(VM, 1, ANSWER)
    journal.begin(VM, 2, JOB, STEP)
    row = journal.current(VM)
    assert row is not None
    assert row.call_issued_boot_ms is None


def test_the_boot_is_that_of_the_call(path: Path, journal: SqliteJournal) -> None:
    journal.begin(VM, 1, JOB, STEP)
    journal.call_issued(VM, 1, 5000, "10.20")
    rebooted = opened(path, "boot-2")
    rebooted.begin(VM, 2, JOB, STEP)
    rebooted.begin(OTHER, 1, JOB, STEP)
    carried, fresh = rebooted.current(VM), rebooted.current(OTHER)
    assert carried is not None
    assert fresh is not None
    assert (carried.boot_id, fresh.boot_id) == ("boot-1", "boot-2")
    rebooted.close()


def test_a_replayed_attempt_has_its_answer(journal: SqliteJournal) -> None:
    journal.begin(VM, 1, JOB, STEP)
    journal.done(VM, 1, ANSWER)
    again = journal.begin(VM, 1, JOB, STEP)
    assert again is not None
    assert again.answer == ANSWER
    assert journal.attempts() == {VM: (1, True)}


def test_a_receipt_outlives_later_attempts_of_its_job(journal: SqliteJournal) -> None:
    journal.begin(VM, 1, JOB, STEP)
    journal.done(VM, 1, ANSWER)
    journal.begin(VM, 2, JOB, STEP)
    journal.done(VM, 2, UNKNOWN)
    assert journal.previous_answer(VM, JOB) == ANSWER
    assert journal.previous_answer(OTHER, JOB) is None
    journal.begin(VM, 3, JOB_2, STEP)
    assert journal.previous_answer(VM, JOB) is None
    assert journal.previous_answer(VM, JOB_2) is None


def test_an_overtaken_attempt_writes_nothing(journal: SqliteJournal) -> None:
    journal.begin(VM, 1, JOB, STEP)
    journal.begin(VM, 2, JOB, STEP)
    with pytest.raises(StaleAttempt):
        journal.call_issued(VM, 1, 5000, "10.20")
    with pytest.raises(StaleAttempt):
        journal.done(VM, 1, ANSWER)
    row = journal.current(VM)
    assert row is not None
    assert (row.call_issued_boot_ms, row.answer) == (None, None)
    assert journal.previous_answer(VM, JOB) is None


def test_freeze_records_are_of_one_token(journal: SqliteJournal) -> None:
    journal.maybe_frozen(VM, "first", "1.2")
    journal.maybe_frozen(VM, "second", "1.2")
    journal.maybe_frozen(OTHER, "third", "3.4")
    journal.thawed(VM, "second")
    journal.thawed(VM, "never was")
    assert set(journal.frozen_records()) == {(VM, "first", "1.2"), (OTHER, "third", "3.4")}


def test_a_begun_commit_belongs_to_its_job(journal: SqliteJournal) -> None:
    assert not journal.commit_was_begun(VM, JOB)
    journal.commit_begun(VM, JOB)
    journal.commit_begun(VM, JOB)
    assert journal.commit_was_begun(VM, JOB)
    assert not journal.commit_was_begun(VM, JOB_2)
    assert not journal.commit_was_begun(OTHER, JOB)


def test_a_clean_shutdown_is_of_one_run_and_one_boot(path: Path, journal: SqliteJournal) -> None:
    left = {"/s/a": "1 2 3", "/s/b c": "4 5 6"}
    assert journal.images_left(VM) == {}
    journal.shut_down(VM, "1.2", {"/s/a": "0 0 0"})
    journal.shut_down(VM, "1.2", left)
    assert (journal.images_left(VM), journal.images_left(OTHER)) == (left, {})
    later = opened(path)
    assert later.images_left(VM) == left
    rebooted = opened(path, "boot-2")
    assert rebooted.images_left(VM) == {}
    rebooted.images_added(VM, {"/s/n": "7"})
    journal.images_added(OTHER, {"/s/n": "7"})
    assert (later.images_left(VM), later.images_left(OTHER)) == (left, {})
    journal.images_added(VM, {"/s/n": "7 8 9", "/s/a": "1 2 4"})
    left |= {"/s/n": "7 8 9", "/s/a": "1 2 4"}
    assert later.images_left(VM) == left
    journal.runs_seen({VM: "1.2", OTHER: "1.2"})
    assert later.images_left(VM) == left
    journal.runs_seen({VM: "3.4"})
    assert later.images_left(VM) == {}
    journal.shut_down(VM, "3.4", left)
    journal.runs_seen({VM: ""})
    assert later.images_left(VM) == {}
    later.close()
    rebooted.close()


def test_of_racing_processes_one_begins(path: Path, journal: SqliteJournal) -> None:
    """Threads with connections of their own meet in SQLite exactly as processes do."""
    begun: list[int] = []

    def race(attempt: int) -> None:
        own = opened(path)
        try:
            if own.begin(VM, attempt, JOB, STEP) is None:
                begun.append(attempt)
        except StaleAttempt:
            pass
        finally:
            own.close()

    threads = [threading.Thread(target=race, args=(1 + number % 4,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == len(set(begun))
    assert max(begun) == 4
    assert journal.attempts() == {VM: (4, False)}


WRITER = """
import os, signal, sys
from pathlib import Path
from hostagent.journal import SqliteJournal
from common.clock import SystemClock
journal = SqliteJournal(Path(sys.argv[1]), boot_id="b", clock=SystemClock())
journal.begin(sys.argv[2], 7, "job", "step")
journal.maybe_frozen(sys.argv[2], "token", "1.2")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing_that_it_wrote(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path), VM]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    journal = opened(path)
    assert journal.attempts() == {VM: (7, False)}
    assert journal.frozen_records() == ((VM, "token", "1.2"),)
    journal.close()


def test_an_unusable_file_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReady):
        opened(tmp_path / "missing" / "journal.db")
    (tmp_path / "text").write_text("this is no database, however long it may be" * 100)
    with pytest.raises(NotReady):
        opened(tmp_path / "text")


def test_a_pivot_of_a_merge_is_on_record_until_it_is_seen_what_came_of_it(journal: SqliteJournal) -> None:
    assert not journal.pivot_was_begun(VM, JOB, "vda")
    journal.pivot_begun(VM, JOB, "vda")
    journal.pivot_begun(VM, JOB, "vda")
    assert journal.pivot_was_begun(VM, JOB, "vda")
    assert not journal.pivot_was_begun(VM, JOB, "vdb")
    assert not journal.pivot_was_begun(VM, JOB_2, "vda")
    assert not journal.pivot_was_begun(OTHER, JOB, "vda")
    journal.pivot_settled(VM, "vda")
    assert not journal.pivot_was_begun(VM, JOB, "vda")
