"""Preview, commit, undo and revert in the Manager: requests, refusals, records and repetitions, on both databases."""

from datetime import timedelta
from typing import Any

import pytest

from common.errors import RequestRefused
from common.messaging.messages import (
    CreateVolumes,
    DeleteVolumes,
    Kept,
    KeptVolume,
    Outcome,
    Probe,
    Redefine,
    VolumesDeleted,
)
from common.messaging.reports import VmState
from manager.flows.revert_states import Goal
from manager.reverts import Ask
from manager.store import doctor_record
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H2, Fleet, counted, created, deleted, disk, mount, observed, vm
from tests.integration.revert_kit import Story

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


@pytest.fixture
def story(fleet: Fleet) -> Story:
    return Story(fleet)


def chain(story: Story) -> list[str]:
    return [layer.path for layer in story.shown().disks[0].chain]


def test_a_preview_and_its_undo(story: Story) -> None:
    before = chain(story)
    previewed = story.finish(story.start("preview"))
    assert (previewed.kind, previewed.state, previewed.snapshot_name) == ("preview", "completed", "old")
    shown = story.shown()
    assert (shown.problem, chain(story)[:-1]) == ("", ["base.qcow2", "web1.qcow2"])
    assert shown.preview is not None
    assert (shown.preview.snapshot_name, [d.target for d in shown.preview.disks]) == ("old", ["vda"])
    assert story.fleet.service.list_vms()[0].preview == shown.preview
    with story.fleet.database.read() as connection:
        record = doctor_record.read(connection, story.fleet.clock.now())
    assert record.kept == {shown.preview.disks[0].kept_volume_id}, "doctor would take it for an orphan"

    trial = shown.preview.disks[0].volume_id
    undone = story.finish(story.start("undo"))
    assert (undone.state, undone.snapshot_name, chain(story)) == ("completed", "old", before)
    assert story.shown().preview is None
    last = story.fleet.last().body
    assert isinstance(last, DeleteVolumes)
    assert ([each.new.volume_id for each in last.disks], last.abandoned) == ([trial], (trial,))


def test_what_a_preview_tells_the_spm_and_the_host(story: Story) -> None:
    present = story.leaf
    story.start("preview")
    made = story.switch()
    assert (made.old.path, made.over and made.over.path, made.kept) == (present, "web1.qcow2", False)
    story.fleet.answer(created(story.fleet.last()))
    assert isinstance(story.fleet.last().body, Redefine)
    assert story.switch() == made
    story.fleet.answer(observed(Outcome.ALL_NEW))
    story.leaf = made.new.path
    story.report()
    story.start("undo")
    back = story.switch()
    assert (back.old, back.new, back.kept) == (made.new, made.old, True)
    assert back.over is not None
    (newest,) = [each for each in story.fleet.service.list_snapshots("web1") if each.name == "new"]
    assert back.over.path == newest.disks[0].path, "what the kept leaf stands on"


def test_a_commit_gives_up_the_way_back_and_no_snapshot(story: Story) -> None:
    present = story.leaf
    story.finish(story.start("preview"))
    trial = story.leaf
    job = story.start("commit")
    assert isinstance(story.fleet.last().body, Probe)
    assert story.switch().new.path == present
    assert story.shown().preview is not None, "not before it is proven"
    assert story.finish(job).state == "completed"
    assert (story.shown().preview, story.leaf, story.on_record()) == (None, trial, trial)
    assert [each.name for each in story.fleet.service.list_snapshots("web1")] == ["new", "old"]
    assert story.finish(story.start("preview", "web1/new")).state == "completed", "a branch can be previewed too"


def test_a_revert_is_both_and_says_before_what_is_lost(story: Story, clock: FakeClock) -> None:
    present = story.leaf
    loss = story.fleet.service.reverts.loss(Ask(goal="revert", reference="web1/old"))
    taken = story.fleet.service.show_snapshot("web1/new").taken_at
    assert (loss.targets, loss.since, [each.path for each in loss.volumes]) == (("vda",), taken, [present])
    assert taken is not None
    assert taken < clock.now()
    done = story.finish(story.start("revert"))
    assert (done.kind, done.state, story.shown().preview) == ("revert", "completed", None)
    assert story.on_record() == story.leaf != present
    commands = [command.body for command in story.fleet.commands()][-4:]
    assert [type(body) for body in commands] == [CreateVolumes, Redefine, Probe, DeleteVolumes]
    again = story.fleet.service.reverts.loss(Ask(goal="revert", reference="web1/new"))
    assert again.since is None, "since it was put on this branch"


def test_a_leaf_on_which_something_stands_is_not_given_up(story: Story) -> None:
    """A branch that has a snapshot of its own stays whole but for its leaf."""
    story.finish(story.start("preview"))
    trial = story.leaf
    story.finish(story.start("commit"))
    story.fleet.complete(story.fleet.create(name="third"))
    story.leaf = story.on_record()
    story.report()
    done = story.finish(story.start("revert", "web1/old"))
    last = story.fleet.last().body
    assert isinstance(last, DeleteVolumes)
    assert trial not in [each.new.path for each in last.disks], "it holds snapshot `third`"
    assert done.state == "completed"


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "running": ({"state": VmState.RUNNING}, "vm_running"),
    "paused": ({"state": VmState.PAUSED}, "vm_running"),
    "starting": ({"state": VmState.STARTING}, "vm_running"),
    "arriving": ({"state": VmState.PAUSED_MIGRATION}, "vm_migrating"),
    "leaving": ({"state": VmState.RUNNING, "migrating": True}, "vm_migrating"),
    "saving": ({"state": VmState.SAVING}, "vm_saving"),
    "saved": ({"managed_save": True}, "vm_managed_save"),
    "libvirt's snapshots": ({"libvirt_snapshots": 1}, "vm_has_libvirt_snapshots"),
    "off its chain": ({"disks": (disk("other.qcow2"),)}, "vm_off_chain"),
    "another disk": ({"disks": (disk("other.qcow2", "vdb"),)}, "disk_unknown"),
    "a disk that became shareable": ({"disks": None}, "disk_shareable"),
}


@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("goal", ["preview", "revert"])
def test_a_machine_that_cannot_go_back(story: Story, goal: Goal, what: str) -> None:
    changes, code = REFUSALS[what]
    if changes.get("disks", ()) is None:
        changes = {"disks": (disk(story.leaf, shareable=True),)}
    story.report(**changes)
    assert story.refusal(goal) == code


@pytest.mark.parametrize("goal", ["commit", "undo"])
def test_a_preview_that_cannot_be_ended(story: Story, goal: Goal) -> None:
    assert story.refusal(goal) == "vm_not_previewed"
    story.finish(story.start("preview"))
    story.report(VmState.RUNNING)
    assert story.refusal(goal) == "vm_running"
    story.report(disks=(disk("other.qcow2"),))
    assert story.refusal(goal) == "vm_off_chain"
    story.report()
    story.fleet.service.lock_vm("web1", reason="clone")
    assert story.refusal(goal) == "vm_busy"


def test_what_a_machine_that_shows_a_snapshot_does_not_get(story: Story) -> None:
    story.finish(story.start("preview"))
    assert story.refusal("preview", "web1/new") == "vm_previewed"
    assert story.refusal("revert", "web1/new") == "vm_previewed"
    before = counted(story.fleet)
    with pytest.raises(RequestRefused) as refused:
        story.fleet.create()
    assert (refused.value.code, counted(story.fleet)) == ("vm_previewed", before)
    assert "shows snapshot old since 2026" in refused.value.message


def test_references_and_disks_that_are_none(story: Story) -> None:
    assert story.refusal("preview", "web1/none") == "snapshot_not_found"
    assert story.refusal("revert", "nobody/old") == "vm_not_found"
    assert story.refusal("preview", disks=("vdz",)) == "disk_unknown"
    with pytest.raises(RequestRefused, match="no host reports a machine 'nobody'"):
        story.fleet.service.reverts.start(Ask(goal="undo", reference="nobody"))
    story.fleet.report_spm(mount(problem="not mounted"))
    assert story.refusal("preview") == "storage_unavailable"


def test_twice_at_once_and_twice_the_same(story: Story) -> None:
    first = story.start("preview", idempotency_key="k1")
    assert story.start("preview", idempotency_key="k1").id == first.id
    assert story.refusal("revert", idempotency_key="k1") == "idempotency_key_reused"
    assert story.refusal("preview") == "vm_busy"
    assert story.refusal("revert", "web1/new") == "vm_busy"
    with pytest.raises(RequestRefused, match="holds web1"):
        story.fleet.create()
    story.finish(first)
    assert story.start("preview", idempotency_key="k1").id == first.id


def test_a_snapshot_that_is_being_taken(fleet: Fleet) -> None:
    fleet.create(name="half")
    with pytest.raises(RequestRefused) as refused:
        fleet.service.reverts.start(Ask(goal="preview", reference="web1/half"))
    assert refused.value.code == "vm_busy"


def test_it_did_not_come_to_it(story: Story) -> None:
    before = chain(story)
    job = story.start("preview")
    story.fleet.answer(created(story.fleet.last()))
    story.fleet.answer(observed(Outcome.NONE, "vm_running"))
    last = story.fleet.last().body
    assert isinstance(last, DeleteVolumes)
    assert last.abandoned == ()
    story.fleet.answer(deleted(story.fleet.last()))
    ended = story.fleet.service.show_job(job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code, chain(story)) == ("rolled_back", "vm_running", before)
    assert story.shown().preview is None


def test_cancelled_before_and_too_late(story: Story) -> None:
    job = story.start("revert")
    story.fleet.service.cancel_job(job.id)
    story.fleet.answer(deleted(story.fleet.last()))
    ended = story.fleet.service.show_job(job.id)
    assert ended.error is not None
    assert (ended.state, ended.error.code) == ("rolled_back", "job_cancelled")

    job = story.start("revert")
    story.fleet.answer(created(story.fleet.last()))
    story.leaf = story.switch().new.path
    story.fleet.service.cancel_job(job.id)
    assert isinstance(story.fleet.last().body, Probe)
    story.fleet.answer(observed(Outcome.ALL_NEW))
    assert story.fleet.service.show_job(job.id).state == "completed"
    story.report()
    assert story.shown().preview is not None, "what it would have given up is the way back"
    assert story.finish(story.start("undo")).state == "completed"


def test_what_was_given_up_and_cannot_be_deleted_asks_an_operator(story: Story, clock: FakeClock) -> None:
    job = story.start("revert")
    for answer in (created(story.fleet.last()), observed(Outcome.ALL_NEW), observed(Outcome.NONE)):
        story.fleet.answer(answer)
    doomed = story.switch().new.volume_id
    kept = KeptVolume(volume_id=doomed, why=Kept.NOT_EMPTY)
    story.fleet.answer(VolumesDeleted(gone=(), kept=(kept,)))
    stuck = story.fleet.service.show_job(job.id)
    assert (stuck.state, story.shown().busy_with) == ("needs_operator", job.id)
    assert "where it should be" in stuck.waiting_for
    story.fleet.service.resolve_job(job.id)
    assert isinstance(story.fleet.last().body, Probe)
    story.fleet.answer(observed(Outcome.UNKNOWN, "pivot_unknown"))
    clock.advance(timedelta(seconds=3).total_seconds())
    story.fleet.timers.sweep()
    story.fleet.answer(observed(Outcome.NONE))
    story.fleet.answer(VolumesDeleted(gone=(), kept=(kept,)))
    story.fleet.service.cancel_job(job.id)
    assert (story.fleet.service.show_job(job.id).state, story.shown().busy_with) == ("completed", None)


def test_a_machine_that_is_defined_on_two_hosts(story: Story) -> None:
    story.fleet.report_host(vm("web1", disk(story.leaf), state=VmState.OFF, runtime_id=""), host=H2)
    assert story.refusal("preview") == "vm_ambiguous_host"


def test_the_tree_shows_every_branch(story: Story) -> None:
    present = story.leaf
    story.finish(story.start("preview"))
    nodes = {node.path: node for node in story.shown().tree}
    base, root = nodes["base.qcow2"], nodes["web1.qcow2"]
    assert [len(story.shown().tree), base.if_deleted, base.immutable] == [5, "", True]
    assert ([mark.name for mark in root.snapshots], root.if_deleted) == (["old"], "shared")
    marks = {node.path: [mark.name for mark in node.snapshots] for node in nodes.values() if node.snapshots}
    (held_new,) = [path for path, names in marks.items() if names == ["new"]]
    assert nodes[held_new].if_deleted == "merge"
    assert (nodes[present].role, nodes[present].parent_id) == ("kept", nodes[held_new].volume_id)
    assert (nodes[story.leaf].role, nodes[story.leaf].parent_id) == ("leaf", root.volume_id)
    assert {node.revert_gives_up for node in nodes.values() if node.snapshots} == {nodes[story.leaf].volume_id}
    assert {node.size_bytes for node in nodes.values()} == {1 << 30}
    assert story.fleet.service.list_vms()[0].tree == ()
    told: set[str] = set()
    for node in story.shown().tree:
        assert node.parent_id is None or node.parent_id in told, "a volume before what it stands on"
        told.add(node.volume_id)


def test_a_machine_without_snapshots_has_a_tree_of_one(fleet: Fleet) -> None:
    (node,) = fleet.service.show_vm("web1").tree
    assert (node.target, node.path, node.role, node.snapshots) == ("vda", "web1.qcow2", "leaf", ())
