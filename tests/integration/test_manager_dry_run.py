"""A dry run, the Manager's half: what the inventory says, what the host adds, and that nothing is left behind."""

import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from common.ids import VolumeId, disk_id, new_id
from common.messaging.messages import Answer, Check, Checked, Failed, Outcome, Refusal, Refused
from common.messaging.reports import AgentState, VmState
from common.messaging.wire import Envelope
from common.preflight import Level, PreflightLine, fine, refused, warning
from manager.service import SnapshotRequest
from manager.store.tables import checks, vms, volumes
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import (
    STORAGE,
    Fleet,
    counted,
    created,
    disk,
    mount,
    observed,
    receipt,
    refusal,
    vm,
    vm_id,
)

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]
WEB1 = vm_id("web1")


def dry_run(fleet: Fleet, **fields: Any) -> list[tuple[str, str, str]]:
    """Return level, subject and code of each line of a dry run; nothing may be left of it."""
    return [(line.level.value, line.subject, line.code) for line in table(fleet, **fields)]


def table(fleet: Fleet, **fields: Any) -> Iterable[PreflightLine]:
    """Return the lines of a dry run; nothing may be left of it."""
    before = everything(fleet)
    lines = fleet.service.create_snapshot(SnapshotRequest(**{"vm": "web1", **fields}), dry_run=True)
    assert isinstance(lines, tuple)
    assert everything(fleet) == before
    return lines


def everything(fleet: Fleet) -> list[Any]:
    """Return what a dry run must not change: jobs, snapshots, what was sent, attempts, and open questions."""
    with fleet.database.read() as connection:
        open_questions = connection.execute(select(func.count()).select_from(checks)).scalar()
        attempts = connection.execute(select(vms.c.id, vms.c.attempt).order_by(vms.c.id)).all()
    return [*counted(fleet), open_questions, [tuple(row) for row in attempts]]


def saying(fleet: Fleet, *lines: PreflightLine) -> list[Envelope]:
    """Let the host answer with these lines; return the questions that it will have got."""
    asked: list[Envelope] = []

    def answer(question: Envelope) -> None:
        asked.append(question)
        fleet.answer_check(question, Checked(lines=lines))

    fleet.on_check = answer
    return asked


# ---- the host answers -----------------------------------------------------------------------------------------------


def test_the_host_is_asked_what_it_would_be_told_to_pivot(fleet: Fleet) -> None:
    fleet.report_spm(min_free_bytes=4096)
    asked = saying(fleet)
    dry_run(fleet, quiesce="require")
    (question,) = asked
    assert (question.to, question.job, question.vm, question.attempt) == ("host.h1", None, WEB1, 0)
    body = question.body
    assert isinstance(body, Check)
    assert [(each.target, each.old.path, each.disk_id) for each in body.disks] == [
        ("vda", "web1.qcow2", disk_id(WEB1, "vda"))
    ]
    assert (body.quiesce, body.require_quiesce, body.limits.min_free_bytes) == (True, True, 4096)
    assert question.deadline - question.issued_at == timedelta(seconds=0.3)


def test_one_table_of_both(fleet: Fleet) -> None:
    fleet.report_host(vm("web1", disk("web1.qcow2", error_policy="report"), disk("b", "vdb", shareable=True)))
    saying(
        fleet,
        fine(WEB1, "running"),
        warning("chain_deep", "vda", "25 volumes"),
        refused("volume_permission", "vda", "closed"),
        fine(STORAGE, "much"),
    )
    assert dry_run(fleet) == [
        ("warning", "vdb", "disk_shareable"),
        ("ok", "web1", ""),
        ("warning", "vda", "chain_deep"),
        ("refusal", "vda", "volume_permission"),
        ("ok", "main", ""),
        ("ok", "h1", ""),
    ]


def test_what_a_job_would_be_refused_with_stays_though_the_host_does_not_see_it(fleet: Fleet) -> None:
    fleet.report_host(vm(state=VmState.PAUSED_IO_ERROR, agent=AgentState.DISCONNECTED))
    saying(fleet, fine(WEB1, "running, and its agent answers"))
    assert dry_run(fleet) == [
        ("refusal", "web1", "vm_paused_io_error"),
        ("ok", "vda", ""),
        ("ok", "main", ""),
        ("ok", "web1", ""),
        ("ok", "h1", ""),
    ]
    saying(fleet, refused("vm_paused_io_error", WEB1, "paused by an I/O error"))
    assert [line for line in dry_run(fleet) if line[2]] == [("refusal", "web1", "vm_paused_io_error")]


def test_clocks_that_differ(fleet: Fleet, clock: FakeClock) -> None:
    for ahead_s, level in ((0, "ok"), (4, "ok"), (-4, "ok"), (6, "warning"), (-3600, "warning")):
        said_at = clock.now() + timedelta(seconds=ahead_s)

        def answer(question: Envelope, said_at: Any = said_at) -> None:
            fleet.answer_check(question, Checked(lines=()), issued_at=said_at)

        fleet.on_check = answer
        code = "clock_skew" if level == "warning" else ""
        assert dry_run(fleet)[-1] == (level, "h1", code), ahead_s
    *_, last = table(fleet)
    assert "3600.0 s behind" in last.message


def test_what_the_answers_age_cannot_tell_from_a_wrong_clock_is_not_warned_of(fleet: Fleet, clock: FakeClock) -> None:
    def answer(question: Envelope) -> None:
        fleet.answer_check(question, Checked(lines=()), issued_at=clock.now() + timedelta(seconds=50))
        clock.advance(100)

    fleet.on_check = answer
    assert dry_run(fleet)[-1] == ("ok", "h1", "")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Refused(why=Refusal.NOT_READY, message="no connection", code="libvirt_unavailable"), "libvirt_unavailable"),
        (Failed(code="vm_not_found", message="gone"), "vm_not_found"),
        (Refused(why=Refusal.EXPIRED, message="late"), "host_unreachable"),
        (Refused(why=Refusal.MALFORMED, message="host.h1 does not take host.check"), "host_unreachable"),
        (observed(Outcome.NONE), "host_unreachable"),
    ],
)
def test_a_host_that_could_not_look(fleet: Fleet, answer: Answer, code: str) -> None:
    fleet.on_check = lambda question: fleet.answer_check(question, answer)
    lines = dry_run(fleet)
    assert lines[:3] == [("ok", "web1", ""), ("ok", "vda", ""), ("ok", "main", "")]
    assert lines[3] == ("warning", "h1", code)


# ---- the host does not answer, or somebody else does ----------------------------------------------------------------


def test_a_host_that_does_not_answer_is_a_warning(fleet: Fleet) -> None:
    begun = time.monotonic()
    lines = dry_run(fleet)
    assert 0.3 <= time.monotonic() - begun < 5
    assert lines == [
        ("ok", "web1", ""),
        ("ok", "vda", ""),
        ("ok", "main", ""),
        ("warning", "h1", "host_unreachable"),
    ]


def test_a_broker_that_is_away_is_a_warning(fleet: Fleet) -> None:
    fleet.broker_is_up = False
    assert dry_run(fleet)[-1] == ("warning", "h1", "host_unreachable")


def test_a_host_that_is_known_to_be_silent_is_not_asked(fleet: Fleet, clock: FakeClock) -> None:
    asked = saying(fleet)
    clock.advance(fleet.settings.host_silent_after_s + 1)
    assert ("warning", "h1", "host_unreachable") in dry_run(fleet)
    assert asked == []


def test_an_answer_counts_once_and_only_from_whom_was_asked(fleet: Fleet) -> None:
    questions: list[Envelope] = []

    def answer(question: Envelope) -> None:
        questions.append(question)
        wrong = Checked(lines=(refused("vm_busy", WEB1, "forged"),))
        fleet.answer_check(question, wrong, sender="host.h2")
        fleet.answer_check(question, wrong, step=new_id())
        fleet.answer_check(question, Checked(lines=(fine(WEB1, "right"),)))
        fleet.answer_check(question, wrong)

    fleet.on_check = answer
    assert [line for line in dry_run(fleet) if line[2]] == []
    before = everything(fleet)
    fleet.answer_check(questions[0], Checked(lines=()))
    assert everything(fleet) == before, "an answer that comes too late changes nothing"


def test_a_hostile_answer_is_cut(fleet: Fleet) -> None:
    endless = PreflightLine(
        level=Level.WARNING, subject="x" * 9000, code="y" * 9000, message="\x00\ud7ff" * 9000, hint="z" * 9000
    )
    saying(fleet, endless, *([fine("x", "")] * 1200))
    lines = list(table(fleet))
    assert len(lines) < 1010
    assert max(len(text) for line in lines for text in (line.subject, line.code, line.message, line.hint)) == 2000


def test_what_a_dead_process_left_behind_goes_with_the_time(fleet: Fleet, clock: FakeClock) -> None:
    row = {"step_id": new_id(), "queue": "host.h1", "expires_at": clock.now() + timedelta(seconds=60)}
    with fleet.database.write() as connection:
        connection.execute(insert(checks), row)
    fleet.timers.sweep()
    assert everything(fleet)[-2] == 1
    clock.advance(61)
    fleet.timers.sweep()
    assert everything(fleet)[-2] == 0


# ---- what the inventory knows by itself -----------------------------------------------------------------------------


def chain_on_record(fleet: Fleet, depth: int) -> None:
    """Record a chain of that many volumes below, and with, the leaf of web1's vda."""
    with fleet.database.write() as connection:
        leaf = connection.execute(select(volumes).where(volumes.c.path == "web1.qcow2")).one()
        names = [leaf.id, *(VolumeId(new_id()) for _ in range(depth - 1))]
        parents = dict(zip(names, [*names[1:], None], strict=True))
        connection.execute(volumes.update().where(volumes.c.id == leaf.id).values(parent_id=parents.pop(leaf.id)))
        rows = [{**leaf._asdict(), "id": id_, "path": id_, "parent_id": parent} for id_, parent in parents.items()]
        connection.execute(insert(volumes), rows)


def test_a_deep_chain_is_warned_of(fleet: Fleet) -> None:
    chain_on_record(fleet, 39)
    assert ("warning", "vda", "chain_deep") in dry_run(fleet)
    job = fleet.create()
    assert [line.step for line in job.timeline] == ["creating_volumes"]
    assert "; warnings: chain_deep: disk vda has a chain of 39 volumes" in job.timeline[0].detail


def test_a_chain_that_is_too_deep_is_refused(fleet: Fleet) -> None:
    chain_on_record(fleet, 40)
    assert refusal(fleet) == "chain_too_deep"
    assert ("refusal", "vda", "chain_too_deep") in dry_run(fleet)


def test_a_loop_on_record_is_too_deep(fleet: Fleet) -> None:
    with fleet.database.write() as connection:
        connection.execute(volumes.update().values(parent_id=volumes.c.id))
    assert refusal(fleet) == "chain_too_deep"


def test_room_that_is_short_warns(fleet: Fleet) -> None:
    fleet.report_spm(mount(free_bytes=1 << 29), min_free_bytes=1 << 26)
    assert ("warning", "main", "storage_low") in dry_run(fleet)
    fleet.report_spm(mount(free_bytes=1 << 25), min_free_bytes=1 << 26)
    assert ("warning", "main", "storage_full") in dry_run(fleet)
    assert "; warnings: storage_full: " in fleet.create().timeline[0].detail


def test_a_clock_that_was_wrong_at_the_last_report(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm(), observed_at=clock.now() + timedelta(seconds=20))
    warned = "; warnings: clock_skew: the clock of host h1 is 20.0 s ahead of the Manager's"
    assert fleet.create().timeline[0].detail.endswith(warned)


def test_what_the_host_warned_of_is_in_the_timeline_and_the_receipt(fleet: Fleet) -> None:
    job = fleet.create()
    fleet.answer(created(fleet.last()))
    warned = (
        warning("backup_bitmaps", "vda", "2 bitmaps stay behind"),
        warning("backup_bitmaps", WEB1, "1 checkpoint"),
    )
    fleet.answer(observed(Outcome.ALL_NEW, receipt=replace(receipt(), warnings=warned)))
    done = fleet.service.show_job(job.id)
    assert done.timeline[-1].detail.endswith("; warnings: backup_bitmaps")
    shown = fleet.service.show_snapshot(done.snapshot_id or "").receipt["warnings"]
    assert [(line["level"], line["subject"]) for line in shown] == [("warning", "vda"), ("warning", "web1")]
