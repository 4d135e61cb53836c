"""Locks that scripts hold on machines: they and jobs keep each other out, on SQLite and on PostgreSQL alike."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from common.errors import RequestRefused
from manager.service import SnapshotRequest
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import Fleet, fleet_on, refusal, vm

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


def lock_refusal(fleet: Fleet, reason: str = "clone", **options: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        fleet.service.lock_vm("web1", reason=reason, **options)
    return refused.value


def unlock_refusal(fleet: Fleet, **options: Any) -> str:
    with pytest.raises(RequestRefused) as refused:
        fleet.service.unlock_vm("web1", **options)
    return refused.value.code


def test_a_locked_vm_takes_no_job(fleet: Fleet, clock: FakeClock) -> None:
    lock = fleet.service.lock_vm("web1", reason="nightly backup")
    assert (lock.reason, lock.since, lock.until) == ("nightly backup", clock.now(), None)
    assert refusal(fleet) == "vm_busy"
    with pytest.raises(RequestRefused, match="nightly backup") as refused:
        fleet.create()
    assert lock.id in refused.value.message
    assert "since 2026-01-01 00:00:00 UTC, until it is unlocked" in refused.value.message
    assert "unlock" in refused.value.hint
    lines = fleet.service.create_snapshot(SnapshotRequest(vm="web1"), dry_run=True)
    assert isinstance(lines, tuple)
    assert "vm_busy" in {line.code for line in lines if line.level == "refusal"}
    assert fleet.service.show_vm("web1").lock == lock
    assert [view.lock for view in fleet.service.list_vms()] == [lock]
    fleet.report_host(vm("web1"), vm("web2"))
    fleet.create("web2")

    assert fleet.service.unlock_vm("web1") == lock
    assert fleet.service.show_vm("web1").lock is None
    fleet.create()


def test_a_vm_with_a_job_is_not_locked(fleet: Fleet) -> None:
    job = fleet.create()
    refused = lock_refusal(fleet)
    assert refused.code == "vm_busy"
    assert job.id in refused.message
    fleet.complete(job)
    fleet.service.lock_vm("web1", reason="clone")


def test_two_runs_of_one_script_do_not_both_get_the_lock(fleet: Fleet) -> None:
    first = fleet.service.lock_vm("web1", reason="clone", idempotency_key="one")
    for key in (None, "two"):
        refused = lock_refusal(fleet, idempotency_key=key)
        assert (refused.code, first.id in refused.message) == ("vm_busy", True)
    assert fleet.service.lock_vm("web1", reason="clone", idempotency_key="one") == first
    assert lock_refusal(fleet, "another", idempotency_key="one").code == "idempotency_key_reused"


def test_a_lock_ends_by_itself(fleet: Fleet, clock: FakeClock) -> None:
    lock = fleet.service.lock_vm("web1", reason="clone", ttl=timedelta(minutes=5))
    assert lock.until == clock.now() + timedelta(minutes=5)
    clock.advance(299)
    with pytest.raises(RequestRefused, match="until 2026-01-01 00:05:00 UTC"):
        fleet.create()
    clock.advance(1)
    assert fleet.service.show_vm("web1").lock is None
    assert fleet.service.list_vms()[0].lock is None
    assert unlock_refusal(fleet) == "vm_not_locked"
    again = fleet.service.lock_vm("web1", reason="copy")
    assert fleet.service.show_vm("web1").lock == again
    fleet.service.unlock_vm("web1")
    fleet.create()


def test_who_was_too_slow_does_not_free_the_next_ones_lock(fleet: Fleet, clock: FakeClock) -> None:
    mine = fleet.service.lock_vm("web1", reason="clone", ttl=timedelta(seconds=1))
    clock.advance(2)
    theirs = fleet.service.lock_vm("web1", reason="backup")
    assert unlock_refusal(fleet, lock=mine.id) == "vm_busy"
    assert fleet.service.show_vm("web1").lock == theirs
    assert fleet.service.unlock_vm("web1", lock=theirs.id) == theirs
    assert unlock_refusal(fleet) == "vm_not_locked"


def test_a_lock_outlives_every_process(fleet: Fleet, database_url: str, tmp_path: Path, clock: FakeClock) -> None:
    lock = fleet.service.lock_vm("web1", reason="clone", ttl=timedelta(hours=1))
    fleet.database.close()
    with fleet_on(database_url, tmp_path, clock) as later:
        assert later.service.show_vm("web1").lock == lock
        assert refusal(later) == "vm_busy"


@pytest.mark.parametrize("reason", ["", "  ", "a\nb", "r" * 256, "\ud800"])
def test_a_lock_says_why(fleet: Fleet, reason: str) -> None:
    assert lock_refusal(fleet, reason).code == "request_malformed"


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(days=367)])
def test_a_time_that_no_lock_can_last(fleet: Fleet, ttl: timedelta) -> None:
    assert lock_refusal(fleet, ttl=ttl).code == "request_malformed"


def test_an_unknown_vm(fleet: Fleet) -> None:
    with pytest.raises(RequestRefused, match="nobody") as refused:
        fleet.service.lock_vm("nobody", reason="x")
    assert refused.value.code == "vm_not_found"
    with pytest.raises(RequestRefused, match="nobody") as refused:
        fleet.service.unlock_vm("nobody")
    assert refused.value.code == "vm_not_found"


def test_of_locks_and_jobs_at_the_same_moment_one_wins(fleet: Fleet, twin: Fleet) -> None:
    for _ in range(5):
        said: list[str] = []
        start = threading.Barrier(6)

        def ask(manager: Fleet, number: int, said: list[str] = said, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                if number % 2:
                    manager.service.lock_vm("web1", reason=f"r{number}")
                    said.append("locked")
                else:
                    said.append(manager.create().state)
            except RequestRefused as refused:
                said.append(refused.code)

        managers = (fleet, twin) * 3
        threads = [threading.Thread(target=ask, args=each) for each in zip(managers, range(6), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said) in (["creating_volumes", *["vm_busy"] * 5], ["locked", *["vm_busy"] * 5])
        jobs = fleet.service.list_jobs(active=True)
        assert bool(jobs) != bool(fleet.service.show_vm("web1").lock)
        if jobs:
            (fleet if fleet.sent else twin).complete(jobs[0])
            fleet.sent.clear()
            twin.sent.clear()
        else:
            fleet.service.unlock_vm("web1")
