"""Limits on jobs, as several Managers keep them: on SQLite and on PostgreSQL alike."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.messaging.messages import CreateVolumes, Outcome
from manager.fleet_views import LimitView
from manager.loads import Scope
from manager.views import JobView
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H2, Fleet, created, deleted, observed, receipt, vm

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]

MACHINES = ("web1", "web2", "web3", "web4")


@pytest.fixture
def crowd(fleet: Fleet) -> Fleet:
    """Four machines on h1, and one on h2, all on one storage domain."""
    fleet.report_host(*(vm(name) for name in MACHINES))
    fleet.report_host(vm("other"), host=H2)
    return fleet


def ask(fleet: Fleet, *names: str, **fields: Any) -> list[JobView]:
    """Ask for a snapshot of each of these machines, one after the other."""
    jobs = []
    for name in names:
        assert isinstance(fleet.clock, FakeClock)
        fleet.clock.advance(0.001)
        jobs.append(fleet.create(name, **fields))
    return jobs


def now(fleet: Fleet, job: JobView) -> JobView:
    return fleet.service.show_job(job.id)


def states(fleet: Fleet, jobs: list[JobView]) -> list[str]:
    return [now(fleet, job).state for job in jobs]


def finish(fleet: Fleet, job: JobView) -> None:
    """Answer what a job asks until it has completed."""
    (asked,) = [each for each in fleet.unanswered() if each.job == job.id]
    fleet.answer(created(asked), asked)
    (asked,) = [each for each in fleet.unanswered() if each.job == job.id]
    fleet.answer(observed(Outcome.ALL_NEW, receipt=receipt(fleet.clock.now())), asked)
    assert now(fleet, job).state == "completed"


@pytest.mark.parametrize("scope", ["host", "storage_domain", "pool"])
def test_what_exceeds_a_limit_waits_and_begins_in_order(crowd: Fleet, scope: Scope) -> None:
    crowd.service.limits.put(scope, "", 2)
    jobs = ask(crowd, *MACHINES, name="n")
    assert states(crowd, jobs) == ["creating_volumes", "creating_volumes", "pending", "pending"]
    third = now(crowd, jobs[2])
    assert third.waiting_for.startswith("its turn: 2 job(s) of ")
    assert [(line.step, line.detail.partition(":")[0]) for line in third.timeline] == [
        ("pending", "waiting for its turn")
    ]
    assert third.attempts == ()
    assert third.error is None
    assert len(crowd.sent) == 2, "nothing is sent of what waits"
    finish(crowd, jobs[1])
    assert states(crowd, jobs) == ["creating_volumes", "completed", "creating_volumes", "pending"]
    finish(crowd, jobs[0])
    finish(crowd, jobs[2])
    finish(crowd, jobs[3])
    assert [line.step for line in now(crowd, jobs[3]).timeline] == [
        "pending",
        "creating_volumes",
        "pivoting",
        "completed",
    ]
    assert all(isinstance(each.body, CreateVolumes) for each in crowd.commands()[:2])


def test_a_host_at_its_limit_holds_no_other_back(crowd: Fleet) -> None:
    crowd.service.limits.put("host", "h1", 1)
    assert states(crowd, ask(crowd, "web1", "web2", "other")) == ["creating_volumes", "pending", "creating_volumes"]


def test_a_change_takes_effect_at_once(crowd: Fleet, twin: Fleet) -> None:
    """Set by one Manager, it counts for the other; what is at work goes on beyond a lower limit."""
    jobs = ask(crowd, "web1", "web2")
    twin.service.limits.put("host", "", 1)
    jobs += [*ask(crowd, "web3"), *ask(twin, "web4")]
    assert states(crowd, jobs) == ["creating_volumes", "creating_volumes", "pending", "pending"]
    (shown,) = crowd.service.limits.show()
    assert shown == LimitView(scope="host", name="", max_jobs=1, at_work=2, waiting=2)
    twin.service.limits.put("host", "h1", 3)
    assert states(crowd, jobs) == ["creating_volumes", "creating_volumes", "creating_volumes", "pending"]
    twin.service.limits.put("host", "h1", None)
    assert states(crowd, jobs)[3] == "pending"
    assert twin.service.limits.put("host", "", None) == []
    assert states(crowd, jobs) == ["creating_volumes"] * 4


def test_two_managers_do_not_both_take_the_last_place(crowd: Fleet, twin: Fleet) -> None:
    crowd.service.limits.put("pool", "default", 1)
    names = (*MACHINES, "other")
    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(lambda n: (crowd, twin)[n % 2].create(names[n]), range(5)))
    assert sorted(states(crowd, made)) == ["creating_volumes", *["pending"] * 4]
    for _ in range(5):
        (working,) = [job for job in made if now(crowd, job).state == "creating_volumes"]
        finish(crowd, working)
    assert states(crowd, made) == ["completed"] * 5
    assert len(crowd.unanswered()) == 0


def test_the_timers_begin_what_a_crash_left_waiting(crowd: Fleet, twin: Fleet) -> None:
    """The Manager that ends a job dies before it lets the next one begin."""
    crowd.service.limits.put("host", "", 1)
    first, second = ask(crowd, "web1", "web2")
    with crowd.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job_loads WHERE job_id = '" + first.id + "'")
    assert now(crowd, second).state == "pending"
    twin.timers.sweep()
    assert now(crowd, second).state == "creating_volumes"
    twin.timers.sweep()
    assert [each.body.op for each in twin.commands()] == ["spm.create"], "begun once"


def test_a_waiting_job_can_be_cancelled(crowd: Fleet) -> None:
    crowd.service.limits.put("host", "", 1)
    first, second, third = ask(crowd, *MACHINES[:3])
    assert crowd.service.cancel_job(second.id).state == "deleting_volumes"
    (asked,) = [each for each in crowd.unanswered() if each.job == second.id]
    crowd.answer(deleted(asked), asked)
    ended = now(crowd, second)
    assert (ended.state, ended.error and ended.error.code) == ("rolled_back", "job_cancelled")
    assert states(crowd, [first, third]) == ["creating_volumes", "pending"]
    assert ask(crowd, "web2")[0].state == "pending", "its machine is free again"


def test_asking_again_with_the_same_key_is_the_same_waiting_job(crowd: Fleet) -> None:
    crowd.service.limits.put("host", "", 1)
    ask(crowd, "web1")
    (waiting,) = ask(crowd, "web2", name="n", idempotency_key="k")
    assert (waiting.state, crowd.create("web2", name="n", idempotency_key="k").id) == ("pending", waiting.id)


def test_a_drained_host_finishes_what_waits_there(crowd: Fleet) -> None:
    crowd.service.limits.put("host", "", 1)
    first, second = ask(crowd, "web1", "web2")
    drained = crowd.service.fleet.drain_host("h1")
    assert (drained.duty, set(drained.jobs)) == ("draining", {first.id, second.id})
    finish(crowd, first)
    finish(crowd, second)
    assert crowd.service.fleet.drain_host("h1").duty == "drained"
