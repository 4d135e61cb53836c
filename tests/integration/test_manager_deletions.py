"""Deletions on real databases: what is accepted, what the record says afterwards, and what is refused."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from common.errors import RequestRefused
from common.ids import SnapshotId, new_id
from common.messaging.merging import (
    CheckMerge,
    DiskMergeSeen,
    FinishMerge,
    MarkMerge,
    MergeDisks,
    MergeSeen,
    MergeState,
    MergeVolumes,
)
from common.messaging.messages import CreateVolumes, VolumesDeleted
from common.messaging.reports import VmState
from manager.deletions import DeleteRequest
from manager.flows.base import CancelRequested, PreviewBegun
from manager.flows.revert_states import Goal
from manager.reverts import Ask
from manager.store import previews
from manager.store.tables import disks, snapshot_disks, snapshots, volumes
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H2, Fleet, counted, disk, vm, vm_id

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


def chain(fleet: Fleet) -> list[str]:
    """Take snapshots a, b and c, and return the chain's volumes, base first."""
    for name in "abc":
        fleet.complete(fleet.create(name=name))
    return chained(fleet)


def chained(fleet: Fleet) -> list[str]:
    """Return the chain on record, the machine's own first image first: the immutable base below it is left out."""
    with fleet.database.read() as connection:
        parents = {id_: parent for id_, parent in connection.execute(select(volumes.c.id, volumes.c.parent_id))}
        (volume,) = connection.execute(select(disks.c.leaf_volume_id).where(disks.c.vm_id == vm_id("web1"))).scalars()
    found: list[str] = []
    while volume is not None:
        found.append(volume)
        volume = parents[volume]
    return found[-2::-1]


def contents(fleet: Fleet) -> dict[str, str]:
    """Return the volume that each kept snapshot has as its content."""
    wanted = select(snapshots.c.name, snapshot_disks.c.volume_id).join(
        snapshot_disks, snapshot_disks.c.snapshot_id == snapshots.c.id
    )
    with fleet.database.read() as connection:
        return {name: volume for name, volume in connection.execute(wanted.where(snapshots.c.state == "ok"))}


def seen(state: MergeState, *, done: int = 0, total: int = 0) -> MergeSeen:
    disk = DiskMergeSeen(target="vda", state=state, done_bytes=done, total_bytes=total)
    return MergeSeen(state=state, disks=(disk,), begun=True)


def request(*names: str, key: str | None = None) -> DeleteRequest:
    return DeleteRequest(snapshots=names, idempotency_key=key)


def refusal(fleet: Fleet, *names: str, key: str | None = None) -> str:
    with pytest.raises(RequestRefused) as refused:
        fleet.service.deletions.delete(request(*names, key=key))
    assert refused.value.hint
    return refused.value.code


def merged(fleet: Fleet) -> None:
    """Answer everything that the deletion of one snapshot asks, as on a running machine."""
    assert isinstance(fleet.last().body, MarkMerge)
    fleet.answer(seen(MergeState.IDLE))
    assert isinstance(fleet.last().body, MergeDisks)
    fleet.answer(seen(MergeState.MERGED))
    finish = fleet.last().body
    assert isinstance(finish, FinishMerge)
    fleet.answer(VolumesDeleted(gone=tuple(disk.top.volume_id for disk in finish.disks)))


@pytest.mark.parametrize(("name", "gone", "left"), [("a", 1, "bc"), ("b", 2, "ac"), ("c", 3, "ab")])
def test_the_record_after_a_deletion(fleet: Fleet, name: str, gone: int, left: str) -> None:
    before = chain(fleet)
    job = fleet.service.deletions.delete(request(name))
    assert (job.kind, job.state, job.snapshot_name) == ("delete", "marking_volumes", name)
    assert fleet.service.show_snapshot(name).state == "deleting"
    merged(fleet)
    assert fleet.service.show_job(job.id).state == "completed"
    after = [volume for number, volume in enumerate(before) if number != gone]
    assert chained(fleet) == after
    # Each kept snapshot has the volume with its content: the one that was merged into, instead of the merged one.
    had = {kept: before["abc".index(kept)] for kept in left}
    moved = {before[gone]: before[gone - 1]}
    assert contents(fleet) == {kept: moved.get(volume, volume) for kept, volume in had.items()}
    assert refusal(fleet, name) == "snapshot_not_found"
    with fleet.database.read() as connection:
        assert connection.execute(select(volumes.c.state).where(volumes.c.id == before[gone])).scalar_one() == "deleted"


def test_several_are_one_job(fleet: Fleet) -> None:
    before = chain(fleet)
    job = fleet.service.deletions.delete(request("a", "c", "b"))
    for _ in range(3):
        merged(fleet)
    assert fleet.service.show_job(job.id).state == "completed"
    assert chained(fleet) == before[:1]
    assert fleet.service.list_snapshots("web1") == []


def test_progress_is_shown_while_it_copies(fleet: Fleet, clock: FakeClock) -> None:
    chain(fleet)
    job = fleet.service.deletions.delete(request("c"))
    fleet.answer(seen(MergeState.IDLE))
    fleet.answer(seen(MergeState.RUNNING, done=1_000_000, total=4_000_000))
    clock.advance(2)
    progress = fleet.service.show_job(job.id).progress
    assert progress is not None
    assert (progress.done_bytes, progress.total_bytes) == (1_000_000, 4_000_000)
    assert progress.bytes_per_s == 500_000
    assert progress.seconds_left == 6


@pytest.mark.parametrize("teller", ["host", "spm"])
def test_a_merge_whose_end_is_told_is_looked_at_before_its_time(fleet: Fleet, teller: str) -> None:
    chain(fleet)
    job = fleet.service.deletions.delete(request("c"))
    fleet.answer(seen(MergeState.IDLE))
    if teller == "spm":
        fleet.answer(seen(MergeState.COLD))
    fleet.answer(seen(MergeState.RUNNING, total=4_000_000))
    sent = len(fleet.commands())
    tell(fleet, teller, merges=(vm_id("other"),))
    tell(fleet, teller)
    tell(fleet, "spm" if teller == "host" else "host", merges=(vm_id("web1"),))
    fleet.report_host(host=H2, full=False, merges=(vm_id("web1"),))
    assert len(fleet.commands()) == sent, "of another machine, of none, or told by who was not asked"
    tell(fleet, teller, merges=(vm_id("web1"),))
    assert len(fleet.commands()) == sent + 1
    tell(fleet, teller, merges=(vm_id("web1"),))
    assert len(fleet.commands()) == sent + 1, "it has been asked already"
    fleet.answer(seen(MergeState.MERGED))
    assert fleet.service.show_job(job.id).state in ("deleting_volumes", "merging")


def test_a_merge_that_is_told_to_be_over_where_none_is_waited_for_changes_nothing(fleet: Fleet) -> None:
    chain(fleet)
    before = counted(fleet)
    tell(fleet, "host", merges=(vm_id("web1"),))
    job = fleet.service.deletions.delete(request("c"))
    moment, sent = fleet.service.job_moment(job.id), len(fleet.commands())
    tell(fleet, "host", merges=(vm_id("web1"),))
    assert (fleet.service.job_moment(job.id), len(fleet.commands())) == (moment, sent)
    merged(fleet)
    assert fleet.service.show_job(job.id).state == "completed"
    tell(fleet, "spm", merges=(vm_id("web1"),))
    assert counted(fleet) != before


def tell(fleet: Fleet, teller: str, **changes: Any) -> None:
    if teller == "spm":
        fleet.report_spm(**changes)
    else:
        fleet.report_host(full=False, **changes)


def test_the_same_key_is_the_same_job_and_another_request_is_refused(fleet: Fleet) -> None:
    chain(fleet)
    job = fleet.service.deletions.delete(request("c", key="k"))
    assert fleet.service.deletions.delete(request("c", key="k")).id == job.id
    assert refusal(fleet, "b", key="k") == "idempotency_key_reused"
    merged(fleet)
    assert fleet.service.deletions.delete(request("c", key="k")).id == job.id


def test_what_is_busy_is_refused(fleet: Fleet) -> None:
    chain(fleet)
    fleet.service.deletions.delete(request("c"))
    assert refusal(fleet, "b") == "vm_busy"
    merged(fleet)
    for state in ("creating", "deleting", "previewed"):
        with fleet.database.write() as connection:
            connection.execute(update(snapshots).where(snapshots.c.name == "b").values(state=state))
        assert refusal(fleet, "b") == "snapshot_busy"


MACHINES: dict[str, tuple[dict[str, Any], str]] = {
    "paused by an error": ({"state": VmState.PAUSED_IO_ERROR}, "vm_paused_io_error"),
    "arriving": ({"state": VmState.PAUSED_MIGRATION}, "vm_migrating"),
    "leaving": ({"migrating": True}, "vm_migrating"),
    "saving": ({"state": VmState.SAVING}, "vm_saving"),
    "saved": ({"state": VmState.OFF, "managed_save": True, "runtime_id": ""}, "vm_managed_save"),
    "off its chain": ({"disks": (disk("other.qcow2"),)}, "vm_off_chain"),
}


@pytest.mark.parametrize("what", MACHINES)
def test_a_machine_whose_snapshots_cannot_be_deleted_now(fleet: Fleet, what: str) -> None:
    chain(fleet)
    changes, code = MACHINES[what]
    highest = max(command.attempt for command in fleet.commands())
    leaf = fleet.service.show_vm("web1").disks[0].chain[-1].path
    fleet.report_host(replace(vm("web1", disk(leaf), attempt=highest), **changes))
    assert unchanged_refusal(fleet, "b") == code


def test_references_and_machines_that_are_none_of_it(fleet: Fleet) -> None:
    chain(fleet)
    fleet.report_host(vm("web1"), vm("web2"))
    fleet.complete(fleet.create("web2", name="other"))
    assert unchanged_refusal(fleet, "web1/none") == "snapshot_not_found"
    assert unchanged_refusal(fleet, "b", "nobody/b") == "vm_not_found"
    assert unchanged_refusal(fleet, new_id()) == "snapshot_not_found"
    assert unchanged_refusal(fleet, "b", "other") == "snapshots_of_several_vms"
    assert unchanged_refusal(fleet) == "request_malformed"
    assert unchanged_refusal(fleet, *["b"] * 101) == "request_malformed"
    fleet.service.lock_vm("web1", reason="backup")
    assert unchanged_refusal(fleet, "b") == "vm_busy"


def test_one_that_is_named_twice_is_deleted_once(fleet: Fleet) -> None:
    before = chain(fleet)
    job = fleet.service.deletions.delete(request("c", "web1/c"))
    merged(fleet)
    assert fleet.service.show_job(job.id).state == "completed"
    assert chained(fleet) == before[:-1]


def test_two_that_ask_at_once_make_one_job(fleet: Fleet, twin: Fleet) -> None:
    """Two Managers on one database: the second is refused, whichever that is."""
    chain(fleet)
    together, said = threading.Barrier(2), list[str]()

    def ask(manager: Fleet) -> None:
        together.wait(10)
        try:
            said.append(manager.service.deletions.delete(request("c")).kind)
        except RequestRefused as refused:
            said.append(refused.code)

    threads = [threading.Thread(target=ask, args=(manager,)) for manager in (fleet, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["delete", "vm_busy"]
    assert [job.kind for job in fleet.service.list_jobs()].count("delete") == 1


def test_a_half_merged_snapshot_is_nothing_to_go_back_to(fleet: Fleet) -> None:
    chain(fleet)
    with fleet.database.write() as connection:
        connection.execute(update(snapshots).where(snapshots.c.name == "b").values(state="half_merged"))
    goals: tuple[Goal, ...] = ("preview", "revert")
    for goal in goals:
        before = counted(fleet)
        with pytest.raises(RequestRefused) as refused:
            fleet.service.reverts.start(Ask(goal=goal, reference="web1/b"))
        assert (refused.value.code, counted(fleet)) == ("snapshot_unusable", before)


def unchanged_refusal(fleet: Fleet, *names: str) -> str:
    """Return the code of a refusal that has changed nothing: no job, no message, no snapshot's state."""
    before = counted(fleet), {each.id: each.state for each in fleet.service.list_snapshots("web1")}, chained(fleet)
    code = refusal(fleet, *names)
    after = counted(fleet), {each.id: each.state for each in fleet.service.list_snapshots("web1")}, chained(fleet)
    assert after == before
    return code


def test_an_immutable_volume_is_refused_and_nothing_changes(fleet: Fleet) -> None:
    before = chain(fleet)
    with fleet.database.write() as connection:
        connection.execute(update(volumes).where(volumes.c.id == before[0]).values(immutable=True))
    assert refusal(fleet, "a") == "volume_shared"
    assert refusal(fleet, "c", "a") == "volume_shared"
    assert {snapshot.state for snapshot in fleet.service.list_snapshots("web1")} == {"ok"}


def test_cancelled_before_anything_ran_the_snapshot_is_whole_again(fleet: Fleet) -> None:
    chain(fleet)
    job = fleet.service.deletions.delete(request("c", "b"))
    fleet.service.cancel_job(job.id)
    undo = fleet.last().body
    assert isinstance(undo, MarkMerge)
    assert undo.undo
    fleet.answer(MergeSeen(state=MergeState.IDLE))
    over = fleet.service.show_job(job.id)
    assert (over.state, over.error.code if over.error else "") == ("rolled_back", "job_cancelled")
    assert {snapshot.state for snapshot in fleet.service.list_snapshots("web1")} == {"ok"}


def test_cancelled_in_the_midst_it_is_half_merged_and_can_only_be_deleted(fleet: Fleet) -> None:
    before = chain(fleet)
    job = fleet.service.deletions.delete(request("c", "b"))
    fleet.answer(seen(MergeState.IDLE))
    fleet.answer(seen(MergeState.RUNNING))
    fleet.service.cancel_job(job.id)
    abort = fleet.last().body
    assert isinstance(abort, CheckMerge)
    assert abort.abort
    fleet.answer(seen(MergeState.IDLE))
    assert isinstance(fleet.last().body, MergeVolumes)
    fleet.answer(MergeSeen(state=MergeState.IDLE))
    assert isinstance(fleet.last().body, MarkMerge)
    fleet.answer(MergeSeen(state=MergeState.IDLE))
    assert fleet.service.show_job(job.id).state == "rolled_back"
    states = {snapshot.name: snapshot.state for snapshot in fleet.service.list_snapshots("web1")}
    assert states == {"a": "ok", "b": "ok", "c": "half_merged"}
    assert chained(fleet) == before
    fleet.service.deletions.delete(request("c"))
    merged(fleet)
    assert chained(fleet) == before[:3]


def test_an_ended_job_cannot_be_cancelled(fleet: Fleet) -> None:
    chain(fleet)
    job = fleet.service.deletions.delete(request("c"))
    merged(fleet)
    with pytest.raises(RequestRefused) as refused:
        fleet.service.cancel_job(job.id)
    assert refused.value.code == "job_finished"
    assert not fleet.conductor.apply(job.id, CancelRequested())  # type: ignore[arg-type]


def test_a_dry_run_says_what_would_become_of_which_volume(fleet: Fleet) -> None:
    chain(fleet)
    sent = len(fleet.sent)
    plan = fleet.service.deletions.dry_run(request("c", "a"))
    assert [(each.name, [disk.target for disk in each.disks]) for each in plan] == [("c", ["vda"]), ("a", ["vda"])]
    assert all(disk.merged_into for each in plan for disk in each.disks)
    assert len(fleet.sent) == sent
    assert {snapshot.state for snapshot in fleet.service.list_snapshots("web1")} == {"ok"}


def test_a_machine_that_shows_a_snapshot_for_trial_is_refused(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.complete(fleet.create(name="a"))
    create = fleet.commands()[-2].body
    assert isinstance(create, CreateVolumes)
    assert job.snapshot_id is not None
    with fleet.database.write() as connection:
        shown = PreviewBegun(vm=create.vm_id, snapshot=SnapshotId(job.snapshot_id), disks=create.disks)
        previews.begin(connection, shown, clock.now())
    assert refusal(fleet, "a") == "vm_previewed"
