"""Repair: back to the old leaves without a lost write, and never a guess."""

import pytest

from common.messaging.messages import Outcome
from common.messaging.reports import VmState
from hostagent import vm_xml
from tests.fakes.storage import ROOT, FakeFile
from tests.fakes.vm import Switch, sources_of
from tests.unit.hostagent.operations.world import Crash, Process, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("switch", [Switch.IS_PARTIAL, Switch.LIES])
def test_repair_commits_back(world: World, switch: Switch) -> None:
    world.vm.switch = switch
    assert world.pivot().outcome is Outcome.BAD
    world.vm.guest_writes()
    seen = world.repair()
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK
    assert set(world.vm.tops().values()) == set(sources_of(world.vm.persistent).values()) == world.olds


def test_definition_follows_each_disk_as_it_is_committed(world: World) -> None:
    """A host that dies between two disks must start each of them where its writes are."""
    world.vm.switch = Switch.LIES
    world.pivot()
    process = Process()
    world.repair(process)
    each = ["commit_begun", "commit_by_qemu", "define"]
    assert process.effects == ["begin", *each, *each, "done"]


def test_repair_detaches_leaked_nodes(world: World) -> None:
    world.vm.switch = Switch.LEAKS
    assert world.pivot().outcome is Outcome.BAD
    seen = world.repair()
    world.check(seen)
    assert (seen.outcome, world.vm.loose) == (Outcome.NONE, {})


def test_repair_where_nothing_is_wrong_does_nothing(world: World) -> None:
    world.pivot()
    process = Process()
    assert world.repair(process).outcome is Outcome.ALL_NEW
    assert process.effects == ["begin", "done"]


def test_undo_takes_a_good_switch_back(world: World) -> None:
    world.pivot()
    world.vm.guest_writes()
    seen = world.repair(undo=True)
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK
    assert set(world.vm.tops().values()) == set(sources_of(world.vm.persistent).values()) == world.olds
    process = Process()
    assert world.repair(process, undo=True).outcome is Outcome.NONE_ROLLED_BACK
    assert process.effects == ["begin", "done"]


def test_undo_of_a_vm_that_was_stopped_with_data_on_its_new_leaf_changes_nothing(world: World) -> None:
    world.pivot()
    world.vm.guest_writes()
    world.vm.power_off()
    seen = world.repair(undo=True)
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW


def test_repair_that_fails_says_so(world: World) -> None:
    world.vm.switch = Switch.IS_PARTIAL
    world.pivot()
    world.vm.commit_fails = True
    seen = world.repair()
    assert (seen.outcome, seen.code) == (Outcome.BAD, "repair_failed")
    assert "was not ready" in seen.message
    world.vm.commit_fails = False
    world.check(world.repair())


def test_repair_goes_on_with_a_commit_that_a_crash_left(world: World) -> None:
    world.vm.switch = Switch.IS_PARTIAL
    world.pivot()
    with pytest.raises(Crash):
        world.repair(Process(crash_in="commit_active"))
    world.vm.in_flight = None
    world.vm.block_jobs = {"vda"}
    assert world.probe().outcome is Outcome.BAD, "a commit runs: the old leaf is not what it was"
    seen = world.repair()
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK


def test_repair_leaves_somebody_elses_block_job_alone(world: World) -> None:
    world.vm.switch = Switch.IS_PARTIAL
    world.pivot()
    world.vm.block_jobs = {"vda"}
    process = Process()
    seen = world.repair(process)
    assert seen.outcome is Outcome.BAD
    assert "not ours" in seen.message
    assert process.effects == ["begin", "done"]


def test_repair_resumes_a_vm_that_its_new_leaf_has_paused(world: World) -> None:
    world.pivot()
    world.storage.files[world.new()].is_full = True
    world.vm.guest_writes()
    assert (seen := world.probe()).code == "vm_paused_io_error"
    assert seen.outcome is Outcome.BAD
    seen = world.repair()
    world.check(seen)
    assert (seen.outcome, world.vm.state) == (Outcome.NONE_ROLLED_BACK, VmState.RUNNING)


def test_repair_of_a_stopped_vm_on_mixed_definitions(world: World) -> None:
    world.vm.power_off()
    world.vm.persistent = vm_xml.with_sources(world.vm.persistent, {"vda": (world.new(), "qcow2")})
    assert world.probe().outcome is Outcome.BAD
    world.storage.files[world.new()].has_data = True
    seen = world.repair()
    assert (seen.outcome, seen.code) == (Outcome.BAD, "volume_not_empty")
    assert "Start the machine" in seen.hint
    world.storage.files[world.new()].has_data = False
    seen = world.repair()
    world.check(seen)
    assert seen.outcome is Outcome.NONE


def test_repair_keeps_what_a_managed_save_image_may_name(world: World) -> None:
    """Saved right after its switch, the vm would be restored from an image that names a deleted volume."""
    world.pivot()
    world.vm.power_off()
    world.vm.managed_save = True
    assert (world.probe().outcome, world.probe().code) == (Outcome.BAD, "vm_managed_save")
    seen = world.repair()
    assert (seen.outcome, seen.code) == (Outcome.BAD, "vm_managed_save")
    assert set(sources_of(world.vm.persistent).values()) == world.news
    world.vm.managed_save = False
    world.vm.boot()
    assert world.probe().outcome is Outcome.ALL_NEW


def test_foreign_layer_above_the_new_leaf_is_beyond_repair(world: World) -> None:
    """V10: a virsh snapshot on top of ours; the new leaf is in use as a backing file."""
    world.pivot()
    disk = world.vm.disks["vda"]
    for chain in (disk.chain, disk.live):
        chain.insert(0, f"{ROOT}/foreign.qcow2")
    world.storage.files[f"{ROOT}/foreign.qcow2"] = FakeFile(parent=world.new())
    assert (world.probe().outcome, world.probe().code) == (Outcome.BAD, "chain_unexpected")
    world.vm.persistent = world.vm.persistent.replace(world.new(), f"{ROOT}/foreign.qcow2")
    assert world.repair().outcome is Outcome.BAD
    assert world.new() in world.vm.open_paths()
