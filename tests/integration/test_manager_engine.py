"""The engine on real databases: answers, timers and the relay move jobs, and nothing else does."""

import threading
from datetime import datetime

import pytest
from sqlalchemy import select, update

from common.ids import JobId
from common.messaging.messages import (
    CreateVolumes,
    DeleteVolumes,
    Failed,
    Outcome,
    Pivot,
    Probe,
    Refusal,
    Refused,
    VolumesInspected,
)
from manager.flows.base import CancelRequested, TimedOut
from manager.store.jobs import next_wake
from manager.store.tables import disks, jobs, outbox, snapshots, vms, volumes
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H2, Fleet, created, deleted, observed, receipt, vm

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


def rows(fleet: Fleet, *columns: object) -> list[tuple[object, ...]]:
    with fleet.database.read() as connection:
        return [tuple(row) for row in connection.execute(select(*columns))]  # type: ignore[call-overload]


def test_a_snapshot_completes(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.create(name="before upgrade")
    assert (job.state, job.snapshot_name, job.attempts[0].to) == ("creating_volumes", "before upgrade", "spm.default")
    create = fleet.last()
    assert isinstance(create.body, CreateVolumes)
    clock.advance(0.25)
    assert fleet.answer(created(create))
    pivot = fleet.last()
    assert isinstance(pivot.body, Pivot)
    assert (pivot.to, pivot.attempt, pivot.body.quiesce) == ("host.h1", create.attempt + 1, True)
    clock.advance(0.5)
    assert fleet.answer(observed(Outcome.ALL_NEW, receipt=receipt(clock.now())))

    done = fleet.service.show_job(job.id)
    assert (done.state, done.error, done.waiting_for, done.finished_at) == ("completed", None, "", clock.now())
    assert [(entry.step, entry.ms) for entry in done.timeline] == [
        ("creating_volumes", 0.0),
        ("pivoting", 250.0),
        ("completed", 500.0),
    ]
    assert [(step.outcome, step.quiesce, step.attempt) for step in done.attempts] == [
        ("spm.created", None, 1),
        ("all_new", True, 2),
    ]
    new = create.body.disks[0].new
    assert rows(fleet, disks.c.leaf_volume_id) == [(new.volume_id,)]
    assert rows(fleet, snapshots.c.state, snapshots.c.live_xml) == [("ok", "<domain/>")]
    assert len(fleet.sent) == 2


def test_a_failed_pivot_is_rolled_back(fleet: Fleet) -> None:
    job = fleet.create(name="n")
    create = fleet.last()
    fleet.answer(created(create))
    fleet.answer(observed(Outcome.NONE, code="pivot_failed"))
    assert isinstance(fleet.last().body, DeleteVolumes)
    fleet.answer(deleted(fleet.last()))
    over = fleet.service.show_job(job.id)
    assert over.state == "rolled_back"
    assert over.error is not None
    assert (over.error.code, bool(over.error.hint)) == ("pivot_failed", True)
    assert fleet.service.list_snapshots("web1") == []
    assert isinstance(create.body, CreateVolumes)
    assert rows(fleet, disks.c.leaf_volume_id) == [(create.body.disks[0].old.volume_id,)]
    gone = create.body.disks[0].new.volume_id
    assert (gone, "deleted") in rows(fleet, volumes.c.id, volumes.c.state)
    assert fleet.create(name="n").state == "creating_volumes"  # the name and the vm are free again


def test_an_answer_counts_once_and_only_from_who_was_asked(fleet: Fleet) -> None:
    job = fleet.create()
    asked = fleet.last()
    answer = created(asked)
    assert not fleet.answer(answer, sender="spm.other")
    assert not fleet.answer(answer, step=new_step())
    assert not fleet.answer(answer, job=new_step())
    assert not fleet.answer(answer, job=None)
    assert fleet.answer(answer)
    assert not fleet.answer(answer, command=asked)
    assert fleet.service.show_job(job.id).state == "pivoting"
    assert len(fleet.sent) == 2


def new_step() -> str:
    return "00000000-0000-4000-8000-000000000000"


def test_an_answer_that_changes_nothing_leaves_the_question_open(fleet: Fleet) -> None:
    job = fleet.create()
    version = fleet.service.job_moment(job.id).version
    assert not fleet.answer(VolumesInspected(found=()))
    assert fleet.service.job_moment(job.id).version == version
    assert rows(fleet, outbox.c.closed_at) == [(None,)]


@pytest.mark.parametrize("times", range(5))
def test_two_managers_with_the_same_answer_move_the_job_once(fleet: Fleet, twin: Fleet, times: int) -> None:
    job = fleet.create()
    asked = fleet.last()
    answer, moved, start = created(asked), [], threading.Barrier(2)

    def take(manager: Fleet) -> None:
        start.wait()
        moved.append(manager.answer(answer, command=asked))

    threads = [threading.Thread(target=take, args=(manager,)) for manager in (fleet, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(moved) == [False, True]
    assert len(fleet.sent) + len(twin.sent) == 2
    assert len(fleet.service.show_job(job.id).timeline) == 2


def test_two_managers_with_the_same_timer_move_the_job_once(fleet: Fleet, twin: Fleet, clock: FakeClock) -> None:
    job = fleet.create()
    fleet.answer(created(fleet.last()))
    clock.advance(200)
    threads = [threading.Thread(target=manager.timers.sweep) for manager in (fleet, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fleet.service.show_job(job.id).state == "probing"
    assert len(fleet.sent) + len(twin.sent) == 3


def test_a_timer_is_not_early(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.create()
    fleet.answer(created(fleet.last()))
    clock.advance(100)
    fleet.timers.sweep()
    assert not fleet.conductor.apply(JobId(job.id), TimedOut())
    assert fleet.service.show_job(job.id).state == "pivoting"


def test_a_timer_is_told_of_once_it_is_committed(fleet: Fleet, clock: FakeClock) -> None:
    told: list[bool] = []

    def look(at: datetime) -> None:
        with fleet.database.read() as connection:
            told.append(next_wake(connection) == at > clock.now())

    fleet.conductor.on_timer(look)
    fleet.create()
    fleet.answer(created(fleet.last()))
    fleet.answer(observed(Outcome.ALL_NEW))
    assert told == [True], "the pivot's patience; whoever has ended waits for nothing"


def test_a_job_that_cannot_be_read_does_not_stop_the_timers(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm("web1"), vm("web2"))
    broken, healthy = fleet.create("web1"), fleet.create("web2")
    with fleet.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == broken.id).values(state_json='{"kind": "new"}'))
    clock.advance(3600)
    fleet.timers.sweep()
    assert fleet.service.show_job(healthy.id).state == "deleting_volumes"
    assert fleet.timers.sweep().total_seconds() > 0  # it is put off, not due for ever


def test_a_new_attempt_supersedes_the_old_question(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.create()
    fleet.answer(created(fleet.last()))
    pivot = fleet.last()
    clock.advance(200)
    fleet.timers.sweep()
    probe = fleet.last()
    assert isinstance(probe.body, Probe)
    assert probe.attempt > pivot.attempt
    assert not fleet.answer(observed(Outcome.NONE), command=pivot)  # late: the probe will say what is true
    assert [step.outcome for step in fleet.service.show_job(job.id).attempts] == ["spm.created", "superseded", ""]
    assert fleet.answer(observed(Outcome.ALL_NEW), command=probe)
    snapshot = fleet.service.list_snapshots("web1")[0]
    assert (snapshot.consistency, snapshot.consistency_reason) == ("crash", "receipt_lost")


def test_a_silent_hosts_question_stays_open(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.create()
    fleet.answer(created(fleet.last()))
    for seconds in (200, 60):
        clock.advance(seconds)
        fleet.timers.sweep()
    assert fleet.service.show_job(job.id).state == "awaiting_host"
    assert fleet.service.show_job(job.id).waiting_for.startswith("host h1")
    assert fleet.answer(observed(Outcome.NONE, code="pivot_interrupted"))


def test_attempts_catch_up_with_a_host_that_is_ahead(fleet: Fleet) -> None:
    fleet.create()
    fleet.answer(created(fleet.last()))
    ahead = Refused(why=Refusal.STALE, message="older than 500", highest=500)
    assert fleet.answer(ahead)
    assert rows(fleet, vms.c.attempt) == [(500,)]


def test_a_job_follows_its_vm_to_another_host(fleet: Fleet) -> None:
    fleet.create()
    fleet.answer(created(fleet.last()))
    fleet.report_host(vm(), host=H2)
    fleet.report_host()
    fleet.answer(observed(Outcome.NOT_HERE))
    assert fleet.last().to == "host.h2"


def test_an_operators_decision_leaves_nothing_outstanding(fleet: Fleet) -> None:
    job = fleet.create()
    fleet.answer(created(fleet.last()))
    for _ in range(20):
        if fleet.service.show_job(job.id).state == "needs_operator":
            break
        fleet.answer(observed(Outcome.BAD, code="chain_unexpected"))
    stuck = fleet.service.show_job(job.id)
    assert stuck.state == "needs_operator"
    assert stuck.finished_at is None
    assert stuck.waiting_for.startswith("an operator")
    assert all(closed for (closed,) in rows(fleet, outbox.c.closed_at))
    assert fleet.service.resolve_job(job.id).state == "probing"


@pytest.mark.parametrize("moment", ["creating", "pivoting"])
def test_a_job_can_be_cancelled(fleet: Fleet, moment: str) -> None:
    job = fleet.create()
    if moment == "pivoting":
        fleet.answer(created(fleet.last()))
    assert fleet.service.cancel_job(job.id).state == ("deleting_volumes" if moment == "creating" else "probing")
    assert not fleet.conductor.apply(JobId(job.id), CancelRequested())


def test_hostile_text_in_an_answer_does_not_stop_its_job(fleet: Fleet) -> None:
    job = fleet.create()
    fleet.answer(Failed(code="x" * 5000, message="a\x00b" * 1000, hint="\x00"))
    fleet.answer(deleted(fleet.last()))
    over = fleet.service.show_job(job.id)
    assert over.state == "rolled_back"
    assert over.error is not None
    assert over.error.code == "x" * 5000


# ---- the relay ---------------------------------------------------------------------------------------------------


def test_what_is_not_answered_is_sent_again_at_growing_distances(fleet: Fleet, clock: FakeClock) -> None:
    fleet.create()
    times = []
    for second in range(1, 200):
        clock.advance(1)
        before = len(fleet.sent)
        fleet.relay.sweep()
        if len(fleet.sent) > before:
            times.append(second)
    assert times == [2, 6, 14, 30, 62, 122, 182]
    assert len({sealed for _, sealed in fleet.sent}) == 1  # the very same message


def test_two_relays_send_once(fleet: Fleet, twin: Fleet, clock: FakeClock) -> None:
    fleet.create()
    for _ in range(5):
        clock.advance(60)
        before = len(fleet.sent) + len(twin.sent)
        threads = [threading.Thread(target=manager.relay.sweep) for manager in (fleet, twin)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(fleet.sent) + len(twin.sent) == before + 1


def test_without_a_broker_a_job_is_accepted_and_says_what_it_waits_for(fleet: Fleet, clock: FakeClock) -> None:
    fleet.broker_is_up = False
    job = fleet.create()
    assert (job.state, job.waiting_for) == ("creating_volumes", "the message broker")
    for _ in range(20):
        clock.advance(2)
        fleet.relay.sweep()
    assert fleet.sent == []
    assert fleet.service.show_job(job.id).waiting_for == "the message broker"
    assert fleet.service.figures()["outbox_unpublished"] == 1
    fleet.broker_is_up = True
    clock.advance(2)
    fleet.relay.sweep()
    assert len(fleet.sent) == 1
    assert fleet.service.show_job(job.id).waiting_for == "the SPM of pool default"


def test_a_consumer_that_starts_anew_gets_its_work_again_at_once(fleet: Fleet) -> None:
    fleet.create()
    fleet.report_host(vm(), incarnation="another")
    fleet.relay.sweep()
    assert len(fleet.sent) == 1  # that was a host, and it is the SPM that was asked
    fleet.report_spm(incarnation="another")
    fleet.relay.sweep()
    assert len(fleet.sent) == 2


def test_what_is_answered_is_not_sent_again(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.complete(fleet.create())
    assert job.state == "completed"
    clock.advance(3600)
    fleet.relay.sweep()
    assert len(fleet.sent) == 2


def test_an_unanswered_question_names_who_was_asked(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.create()
    assert job.waiting_for == ""
    clock.advance(4)
    assert fleet.service.show_job(job.id).waiting_for == "the SPM of pool default"
    fleet.answer(created(fleet.last()))
    clock.advance(4)
    assert fleet.service.show_job(job.id).waiting_for == "host h1"
    fleet.report_host(libvirt_up=False)
    assert fleet.service.show_job(job.id).waiting_for == "libvirt on host h1"
