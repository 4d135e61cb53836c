"""Who waits for a change of a job is told of it once, soon, and whatever becomes of the database meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from common.ids import JobId
from common.messaging.messages import Outcome
from manager.store.job_changes import AFTER_ERROR_S, LOOK_EVERY_S, JobChanges
from manager.store.session import Database
from manager.views import JobView
from tests.integration.manager_kit import Fleet, created, observed, receipt, vm, vm_id
from tests.wait import eventually

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]

SOON_S = 10.0
"""For what must happen; how soon it does is for the benchmarks."""
LOOKS_S = 2.5 * LOOK_EVERY_S
"""For what must not: jobs are looked at twice meanwhile."""
NEVER_S = 3600.0


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
def waiting(changes: JobChanges, fleet: Fleet, job: JobView) -> Iterator[Bell]:
    """Wait for a change of the job as it is now."""
    bell, version = Bell(), fleet.service.job_moment(job.id).version
    with changes.watching(JobId(job.id), version, wake=bell.ring):
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
    with changes.watching(JobId(job.id), version, wake=bell.ring):
        assert bell.rang(SOON_S)


def test_a_job_that_is_not_there_wakes(changes: JobChanges) -> None:
    bell = Bell()
    with changes.watching(JobId(vm_id("none")), 1, wake=bell.ring):
        assert bell.rang(SOON_S)


def test_one_that_no_longer_waits_is_not_told(fleet: Fleet, changes: JobChanges) -> None:
    job = fleet.create()
    with waiting(changes, fleet, job) as left:
        assert not left.rang(LOOKS_S)
    with waiting(changes, fleet, job) as still:
        fleet.answer(created(fleet.last()))
        assert still.rang(SOON_S)
    assert left.rings == 0


def test_one_who_comes_later_is_seen_to_at_once(fleet: Fleet) -> None:
    fleet.report_host(vm(), vm("web2"))
    early, late = fleet.create(), fleet.create("web2")
    with patient(fleet) as changes, waiting(changes, fleet, early) as first:
        assert not first.rang(LOOKS_S)
        version = fleet.service.job_moment(late.id).version
        fleet.answer(created(fleet.last()))
        second = Bell()
        with changes.watching(JobId(late.id), version, wake=second.ring):
            assert second.rang(SOON_S)


def test_a_job_that_comes_to_rest_is_told_by_another_process_without_a_look(fleet: Fleet, database_url: str) -> None:
    job = fleet.create()
    with patient(fleet, Database(database_url)) as changes, waiting(changes, fleet, job) as bell:
        assert not bell.rang(LOOKS_S)  # it has looked, and listens
        fleet.answer(created(fleet.last()))
        assert not bell.rang(LOOKS_S)  # a step on the way is not rung
    with patient(fleet, Database(database_url)) as changes, waiting(changes, fleet, job) as bell:
        assert not bell.rang(LOOKS_S)
        fleet.answer(observed(Outcome.ALL_NEW, receipt=receipt()))
        assert fleet.service.show_job(job.id).state == "completed"
        assert bell.rang(SOON_S)


@contextmanager
def patient(fleet: Fleet, database: Database | None = None) -> Iterator[JobChanges]:
    """Changes that are not looked for by themselves, as another process has them."""
    yield JobChanges(database or fleet.database, look_every_s=NEVER_S)
    eventually(lambda: not lookers(), timeout_s=10, what="the end of the thread that looks")
    if database is not None:
        database.close()


def test_the_end_of_the_process_wakes_everybody(fleet: Fleet, changes: JobChanges) -> None:
    with waiting(changes, fleet, fleet.create()) as bell:
        assert not bell.rang(LOOKS_S)
        changes.stopping.set()
        assert bell.rang(LOOK_EVERY_S + SOON_S)


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
        with changes.watching(JobId(job.id), version, wake=bell.ring):
            yield bell
    finally:
        file.rmdir()
        file.with_suffix(".away").rename(file)


_THROW_OUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
