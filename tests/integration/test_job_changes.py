"""Who waits for a change of a job is told of it once, soon, and whatever becomes of the database meanwhile."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from common.ids import JobId
from manager.store.job_changes import AFTER_ERROR_S, LONGEST_PAUSE_S, JobChanges
from manager.views import JobView
from tests.integration.manager_kit import Fleet, created, vm, vm_id
from tests.wait import eventually

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]

SOON_S = 10.0
"""For what must happen; how soon it does is for the benchmarks."""
LOOKS_S = 0.3
"""For what must not: a job that has just changed is looked at sixty times meanwhile."""


@pytest.fixture
def changes(fleet: Fleet) -> Iterator[JobChanges]:
    yield JobChanges(fleet.database)
    eventually(lambda: not lookers(), timeout_s=10, what="the end of the thread that looks")


def lookers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "job-changes"]


class Bell:
    """Counts how often it was rung."""

    def __init__(self) -> None:
        self.rings = 0
        self._rung = threading.Event()

    def ring(self) -> None:
        self.rings += 1
        self._rung.set()

    def rang(self, within_s: float) -> bool:
        return self._rung.wait(within_s)


@contextmanager
def waiting(changes: JobChanges, fleet: Fleet, job: JobView, *, for_s: float = 0.0) -> Iterator[Bell]:
    """Wait for a change of the job as it is now, as one that has waited so long already."""
    bell, version = Bell(), fleet.service.job_moment(job.id).version
    with changes.watching(JobId(job.id), version, since=time.monotonic() - for_s, wake=bell.ring):
        yield bell


def test_a_change_wakes_everybody_who_waits_for_it_once_and_nobody_else(fleet: Fleet, changes: JobChanges) -> None:
    fleet.report_host(vm(), vm("web2"))
    first, other = fleet.create(), fleet.create("web2")
    asked = [command for command in fleet.commands() if command.job == first.id]
    with (
        waiting(changes, fleet, first) as one,
        waiting(changes, fleet, first) as two,
        waiting(changes, fleet, other) as neighbour,
    ):
        assert not one.rang(LOOKS_S)
        fleet.answer(created(asked[-1]), command=asked[-1])
        assert one.rang(SOON_S)
        assert two.rang(SOON_S)
        assert not neighbour.rang(LOOKS_S)
        assert (one.rings, two.rings, neighbour.rings) == (1, 1, 0)
        assert len(lookers()) == 1


def test_a_change_before_the_waiting_began_is_told_too(fleet: Fleet, changes: JobChanges) -> None:
    job = fleet.create()
    bell, version = Bell(), fleet.service.job_moment(job.id).version
    fleet.answer(created(fleet.last()))
    with changes.watching(JobId(job.id), version, since=time.monotonic(), wake=bell.ring):
        assert bell.rang(SOON_S)


def test_a_job_that_is_not_there_wakes(changes: JobChanges) -> None:
    bell = Bell()
    with changes.watching(JobId(vm_id("none")), 1, since=time.monotonic(), wake=bell.ring):
        assert bell.rang(SOON_S)


def test_one_that_no_longer_waits_is_not_told(fleet: Fleet, changes: JobChanges) -> None:
    job = fleet.create()
    with waiting(changes, fleet, job) as left:
        assert not left.rang(LOOKS_S)
    with waiting(changes, fleet, job) as still:
        fleet.answer(created(fleet.last()))
        assert still.rang(SOON_S)
    assert left.rings == 0


def test_one_who_waits_long_does_not_slow_down_one_who_has_just_begun(fleet: Fleet, changes: JobChanges) -> None:
    fleet.report_host(vm(), vm("web2"))
    slow, quick = fleet.create(), fleet.create("web2")
    asked = fleet.last()
    with waiting(changes, fleet, slow, for_s=3600), waiting(changes, fleet, quick) as bell:
        fleet.answer(created(asked), command=asked)
        assert bell.rang(SOON_S)


def test_the_end_of_the_process_wakes_everybody(fleet: Fleet, changes: JobChanges) -> None:
    with waiting(changes, fleet, fleet.create(), for_s=3600) as bell:
        assert not bell.rang(LOOKS_S)
        changes.stopping.set()
        assert bell.rang(LONGEST_PAUSE_S + SOON_S)


def test_a_database_that_was_away_is_looked_into_again(fleet: Fleet, changes: JobChanges) -> None:
    job = fleet.create()
    with away(fleet, changes, job) as bell:
        assert not bell.rang(LOOKS_S)
    with waiting(changes, fleet, job) as bell:
        fleet.answer(created(fleet.last()))
        assert bell.rang(AFTER_ERROR_S + SOON_S)


def test_the_end_of_the_process_wakes_everybody_while_the_database_is_away(fleet: Fleet, changes: JobChanges) -> None:
    with away(fleet, changes, fleet.create()) as bell:
        assert not bell.rang(LOOKS_S)
        changes.stopping.set()
        assert bell.rang(SOON_S)


@contextmanager
def away(fleet: Fleet, changes: JobChanges, job: JobView) -> Iterator[Bell]:
    """Wait while the database cannot be opened (SQLite), or has just thrown everybody out (PostgreSQL)."""
    if not fleet.database.is_sqlite:
        with waiting(changes, fleet, job) as bell:
            assert not bell.rang(LOOKS_S)
            with fleet.database.write() as connection:
                connection.execute(text(_THROW_OUT))
            yield bell
        return
    file, version = Path(str(fleet.database.engine.url.database)), fleet.service.job_moment(job.id).version
    fleet.database.close()
    file.rename(file.with_suffix(".away"))
    file.mkdir()
    try:
        bell = Bell()
        with changes.watching(JobId(job.id), version, since=time.monotonic(), wake=bell.ring):
            yield bell
    finally:
        file.rmdir()
        file.with_suffix(".away").rename(file)


_THROW_OUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
