"""Each row of what can happen to a pivot, against a hypervisor that behaves as the real one was seen to."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from common.errors import MessageRejected, NotReady, StaleAttempt, StorageError
from common.ids import StorageDomainId, new_id
from common.messaging.messages import Outcome
from common.messaging.reports import VmState
from common.receipt import Consistency, label
from hostagent.operations.pivot import pivot
from tests.fakes.storage import ROOT
from tests.fakes.vm import Agent, Switch, sources_of
from tests.unit.hostagent.operations.world import Process, World


@pytest.fixture
def world() -> World:
    return World()


# ---- it works ---------------------------------------------------------------------------------------------------


def test_running_and_quiesced(world: World) -> None:
    before = world.vm.xml(), world.vm.persistent
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.ALL_NEW, "")
    assert world.vm.was_frozen_at_switch
    assert seen.receipt is not None
    assert (seen.receipt.frozen_filesystems, seen.receipt.thawed_filesystems) == (2, 2)
    assert label(seen.receipt) == (Consistency.FILESYSTEM, "")
    assert (seen.live_xml, seen.persistent_xml) == before
    assert [disk.first_write_bytes for disk in seen.disks] == [393216, 393216]
    assert (world.vm.taints, world.vm.mark, world.journal.frozen_records()) == (0, "", ())
    assert world.guard.armed == {}


def test_order_of_durable_writes_and_effects(world: World) -> None:
    process = Process()
    world.pivot(process)
    before = ["begin", "call_issued", "define", "maybe_frozen", "mark_frozen", "arm"]
    window = ["freeze", "arm", "call_issued", "switch_leaves", "disarm", "thaw"]
    assert process.effects == [*before, *window, "disarm", "clear_frozen_mark", "thawed", "done"]


def test_not_quiesced_freezes_nothing(world: World) -> None:
    process = Process()
    seen = world.pivot(process, quiesce=False)
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert not {"freeze", "thaw", "arm", "maybe_frozen"} & set(process.effects)
    assert label(seen.receipt) == (Consistency.CRASH, "not_quiesced")


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.PMSUSPENDED])
def test_paused_is_not_frozen(world: World, state: VmState) -> None:
    world.vm.state = state
    seen = world.pivot()
    assert seen.outcome is Outcome.ALL_NEW
    assert not world.vm.was_frozen_at_switch
    assert label(seen.receipt) == (Consistency.CRASH, "paused")


def test_stopped_is_redefined(world: World) -> None:
    world.vm.power_off()
    before = world.vm.persistent
    seen = world.pivot()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert "backingStore" not in world.vm.persistent
    assert label(seen.receipt) == (Consistency.CRASH, "shutdown_unknown")
    assert seen.persistent_xml == before
    world.vm.boot()
    assert world.vm.disks["vda"].chain == [world.new(), world.old(), f"{ROOT}/images/vda/base.qcow2"]


def test_transient_vm_has_no_definition_to_move(world: World) -> None:
    world.vm.persistent = ""
    process = Process()
    seen = world.pivot(process)
    assert seen.outcome is Outcome.ALL_NEW
    assert "define" not in process.effects


def test_disk_that_is_not_asked_for_stays() -> None:
    world = World(targets=("vda",))
    world.vm.add_disk("sda", f"{ROOT}/cd.iso", device="cdrom", format="raw")
    world.vm.add_disk("vdz", f"{ROOT}/data.qcow2")
    assert world.pivot().outcome is Outcome.ALL_NEW
    assert world.vm.tops() == {"vda": world.new(), "sda": f"{ROOT}/cd.iso", "vdz": f"{ROOT}/data.qcow2"}


def test_disk_plugged_into_the_running_vm_only(world: World) -> None:
    vdb = world.vm.disks.pop("vdb")
    world.vm.add_disk("vda", *world.vm.disks["vda"].chain)
    world.vm.disks["vdb"] = vdb
    assert set(sources_of(world.vm.persistent)) == {"vda"}
    seen = world.pivot()
    assert seen.outcome is Outcome.ALL_NEW
    assert [disk.persistent for disk in seen.disks] == [world.new(), ""]


def test_xfs_makes_no_first_write_and_is_a_success_all_the_same(world: World) -> None:
    for disk in world.vm.disks.values():
        disk.first_write = 0
    begun = world.clock.boottime_ms()
    seen = world.pivot()
    assert (seen.outcome, [disk.first_write_bytes for disk in seen.disks]) == (Outcome.ALL_NEW, [0, 0])
    assert 300 <= world.clock.boottime_ms() - begun < 400


# ---- it is refused before anything is touched -----------------------------------------------------------------------


def refuse_disk(world: World, **options: object) -> None:
    for name, value in options.items():
        setattr(world.vm.disks["vdb"], name, value)


REFUSALS: dict[str, Callable[[World], object]] = {
    "vm_paused_io_error": lambda w: setattr(w.vm, "state", VmState.PAUSED_IO_ERROR),
    "vm_migrating": lambda w: setattr(w.vm, "job", "migration"),
    "vm_busy": lambda w: setattr(w.vm, "job", "save"),
    "vm_has_libvirt_snapshots": lambda w: setattr(w.vm, "snapshots", 2),
    "vm_state_unsupported": lambda w: setattr(w.vm, "state", VmState.CRASHED),
    "disk_shareable": lambda w: refuse_disk(w, flags=("shareable",)),
    "disk_readonly": lambda w: refuse_disk(w, flags=("readonly",)),
    "disk_transient": lambda w: refuse_disk(w, flags=("transient",)),
    "disk_direct_lun": lambda w: refuse_disk(w, device="lun"),
    "disk_cdrom": lambda w: refuse_disk(w, device="cdrom"),
    "disk_unknown": lambda w: w.vm.disks.pop("vdb"),
    "chain_unexpected": lambda w: refuse_disk(w, live=[f"{ROOT}/other.qcow2", w.old(1)]),
    "disk_outside_storage_domain": lambda w: refuse_disk(w, live=["/elsewhere/vdb.qcow2"]),
    "volume_not_found": lambda w: w.storage.files.pop(w.new(1)),
    "volume_deleted": lambda w: setattr(w.storage.files[w.new(1)], "is_legal", False),
    "volume_permission": lambda w: setattr(w.storage.files[w.new(1)], "qemu_may_open", False),
    "guest_frozen_by_others": lambda w: setattr(w.vm, "agent", Agent.FROZEN_BY_OTHERS),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refused(world: World, code: str) -> None:
    REFUSALS[code](world)
    before, process = (world.vm.persistent, world.vm.tops()), Process()
    seen = world.pivot(process)
    assert (seen.outcome, seen.code) == (Outcome.NONE, code)
    assert (world.vm.persistent, world.vm.tops()) == before
    assert process.effects == ["begin", "done"]


def test_paused_for_a_migration(world: World) -> None:
    world.vm.state = VmState.PAUSED_MIGRATION
    assert world.pivot().code == "vm_migrating"


def test_block_job(world: World) -> None:
    world.vm.block_jobs = {"vdx"}
    assert (world.pivot().outcome, world.pivot().code) == (Outcome.NONE, "vm_busy")


def test_old_leaf_of_another_format(world: World) -> None:
    world.vm.disks["vda"].format = "raw"
    assert (seen := world.pivot()).code == "chain_unexpected"
    assert "format raw" in seen.message


def test_persistent_definition_elsewhere(world: World) -> None:
    world.vm.persistent = world.vm.persistent.replace(world.old(), f"{ROOT}/other.qcow2")
    assert (world.pivot().outcome, world.vm.tops()["vda"]) == (Outcome.NONE, world.old())


def test_volume_with_data_is_never_taken_for_a_new_one(world: World) -> None:
    world.storage.files[world.new()].has_data = True
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.NONE, "volume_not_empty")


@pytest.mark.parametrize("require", [False, True])
def test_no_agent_is_said_before_anything_is_touched(world: World, require: bool) -> None:
    world.vm.agent = Agent.MISSING
    process = Process()
    seen = world.pivot(process, require=require)
    assert (seen.outcome, seen.code) == (Outcome.NONE_NO_AGENT, "guest_agent_missing")
    assert process.effects == ["begin", "done"]
    world.check(world.pivot(quiesce=False))


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_quiescing_required_of_a_vm_that_does_not_run(world: World, state: VmState) -> None:
    world.vm.state = state
    seen = world.pivot(require=True)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_paused_not_quiesced")


def test_managed_save(world: World) -> None:
    world.vm.power_off()
    world.vm.managed_save = True
    assert (seen := world.pivot()).code == "vm_managed_save"
    assert seen.outcome is Outcome.NONE


def test_not_here(world: World) -> None:
    world.guest.is_known = False
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.NOT_HERE, "vm_not_found")


def test_starting_is_waited_for(world: World) -> None:
    world.vm.state = VmState.STARTING
    deps = world.deps(Process())
    moments = iter(range(1, 100))

    def pause(seconds: float) -> None:
        world.clock.advance(seconds)
        if next(moments) == 5:
            world.vm.state = VmState.RUNNING

    command = world.command()
    seen = pivot(world.envelope(command), command, replace(deps, pause=pause))
    assert seen.outcome is Outcome.ALL_NEW


def test_starting_for_ever(world: World) -> None:
    world.vm.state = VmState.STARTING
    begun = world.clock.now()
    assert world.pivot().code == "vm_state_unsupported"
    assert world.clock.now() - begun < timedelta(seconds=11)


# ---- it is not even begun -------------------------------------------------------------------------------------------


def test_stale_attempt(world: World) -> None:
    world.probe(attempt=7)
    with pytest.raises(StaleAttempt) as refused:
        world.pivot(attempt=6)
    assert refused.value.highest == 7
    assert set(world.vm.tops().values()) == world.olds


def test_libvirt_away(world: World) -> None:
    world.vm.libvirt_is_up = False
    with pytest.raises(NotReady):
        world.pivot()
    assert world.journal.current(world.vm_id) is None


def test_storage_away(world: World) -> None:
    world.storage.is_mounted = False
    with pytest.raises(NotReady, match="not mounted"):
        world.pivot()
    assert world.journal.current(world.vm_id) is None


def test_storage_domain_that_is_not_in_the_settings(world: World) -> None:
    world.storage._id = StorageDomainId(new_id())
    with pytest.raises(StorageError):
        world.pivot()


def test_vm_lock_held_by_another(world: World) -> None:
    world.locked = True
    begun = world.clock.now()
    with pytest.raises(NotReady, match="another command"):
        world.pivot()
    assert world.clock.now() - begun < timedelta(seconds=11)
    assert world.journal.current(world.vm_id) is None


def test_order_without_an_attempt(world: World) -> None:
    with pytest.raises(MessageRejected):
        world.pivot(attempt=0)


# ---- repeated -------------------------------------------------------------------------------------------------------


def test_repeated_attempt_is_replayed(world: World) -> None:
    first, process = world.pivot(), Process()
    again = world.pivot(process, attempt=1)
    assert again == first
    assert process.effects == ["begin"]


# ---- the freeze does not go -----------------------------------------------------------------------------------------


def test_freeze_fails(world: World) -> None:
    world.vm.agent = Agent.FREEZE_FAILS
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "freeze_failed")
    assert "hook has failed" in seen.message
    assert "thaw" in process.effects
    assert "switch_leaves" not in process.effects
    assert (world.vm.mark, world.journal.frozen_records(), world.vm.taints) == ("", (), 0)


def test_freeze_that_completes_too_late_is_thawed(world: World) -> None:
    world.vm.agent = Agent.FREEZE_IS_LATE
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "freeze_failed")


def test_thaw_that_cannot_be_confirmed_goes_to_the_guard(world: World) -> None:
    world.vm.agent, world.vm.thaw_fails = Agent.FREEZE_IS_LATE, 99
    seen = world.pivot()
    assert seen.outcome is Outcome.NONE
    assert seen.code != "freeze_failed", "best-effort would go on with a guest that may freeze any moment"
    assert list(world.guard.armed.values()) == [1]
    assert len(world.journal.frozen_records()) == 1
    world.vm.thaw_fails = 0
    world.check(world.probe())
    assert (world.vm.mark, world.journal.frozen_records()) == ("", ())


def test_no_guard_no_freeze(world: World) -> None:
    world.guard.is_up = False
    process = Process()
    before = world.vm.persistent
    with pytest.raises(NotReady, match="guard"):
        world.pivot(process)
    assert "freeze" not in process.effects
    assert (world.vm.mark, world.journal.frozen_records(), world.vm.persistent) == ("", (), before)


def test_guard_that_dies_in_the_window(world: World) -> None:
    process = Process()
    world.during("freeze", lambda: setattr(world.guard, "is_up", False))
    with pytest.raises(NotReady, match="guard"):
        world.pivot(process)
    assert "switch_leaves" not in process.effects
    assert not world.vm.is_frozen


def test_guard_that_fires_costs_the_label(world: World) -> None:
    world.during("switch_leaves", world.guard.time_is_up)
    seen = world.pivot()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "guard_fired")


def test_file_system_thawed_by_hand_costs_the_label(world: World) -> None:
    world.during("switch_leaves", lambda: setattr(world.vm, "filesystems", 1))
    assert label(world.pivot().receipt) == (Consistency.CRASH, "thaw_count_differs")


# ---- things change under way ----------------------------------------------------------------------------------------


def test_vm_replaced_during_the_freeze(world: World) -> None:
    world.during("freeze", world.vm.boot)
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert "switch_leaves" not in process.effects
    assert seen.outcome is Outcome.ALL_NEW, "it booted from the definition, which was on the empty new leaves already"
    assert label(seen.receipt) == (Consistency.CRASH, "receipt_lost")


def test_deadline_passes_during_the_freeze(world: World) -> None:
    world.during("freeze", lambda: world.clock.advance(100))
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "deadline_passed")


def test_vm_started_while_it_was_redefined(world: World) -> None:
    world.vm.power_off()
    old_definition = world.vm.persistent

    def start_from_old() -> None:
        new_definition, world.vm.persistent = world.vm.persistent, old_definition
        world.vm.boot()
        world.vm.persistent = new_definition

    world.during("define", lambda: None if world.vm.is_active else start_from_old())
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_state_changed")


def test_foreign_snapshot_between_check_and_call(world: World) -> None:
    """V11: the file's header names the old leaf, QEMU's parent is a foreign one: never a success."""

    def foreign() -> None:
        for number, disk in enumerate(world.vm.disks.values()):
            for chain in (disk.chain, disk.live):
                chain.insert(0, f"{ROOT}/foreign{number}.qcow2")
            world.storage.files[disk.chain[0]] = type(world.storage.files[world.new()])(parent=disk.chain[1])

    world.during("freeze", foreign)
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.BAD, "chain_unexpected")


# ---- the switch does not go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "outcome", "code"),
    [
        (Switch.IS_REFUSED, Outcome.NONE, "pivot_failed"),
        (Switch.WORKS_BUT_FAILS, Outcome.ALL_NEW, ""),
        (Switch.IS_PARTIAL, Outcome.BAD, "pivot_failed"),
        (Switch.IS_LOST_BEFORE, Outcome.NONE, "pivot_failed"),
        (Switch.IS_LOST_AFTER, Outcome.ALL_NEW, ""),
        (Switch.LIES, Outcome.BAD, "pivot_failed"),
        (Switch.LEAKS, Outcome.BAD, "chain_unexpected"),
        (Switch.IS_LATE, Outcome.ALL_NEW, ""),
        (Switch.HANGS, Outcome.UNKNOWN, "pivot_unknown"),
    ],
)
def test_error_is_not_an_outcome(world: World, switch: Switch, outcome: Outcome, code: str) -> None:
    world.vm.switch = switch
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (outcome, code)
    assert seen.receipt is None, "only a switch that returned well earns a receipt"


# ---- the new leaf takes no writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [(0,), (1,), (0, 1)])
def test_full_storage_rolls_back(world: World, full: tuple[int, ...]) -> None:
    for number in full:
        world.storage.files[world.new(number)].is_full = True
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE_ROLLED_BACK, "volume_not_writable")
    assert world.vm.state is VmState.RUNNING
    assert (world.vm.mark, world.journal.frozen_records()) == ("", ())
    assert set(sources_of(world.vm.persistent).values()) == world.olds


def test_rollback_of_an_unquiesced_one(world: World) -> None:
    world.during("switch_leaves", lambda: setattr(world.vm, "state", VmState.PAUSED_IO_ERROR))
    seen = world.pivot(quiesce=False)
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK


def test_old_leaf_cannot_take_them_either(world: World) -> None:
    world.storage.files[world.new()].is_full = True
    world.vm.commit_fails = True
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.BAD, "volume_not_writable")
    assert "resume the machine" in seen.hint
    assert world.vm.state is VmState.PAUSED_IO_ERROR
    assert set(world.vm.tops().values()) == world.news

    # The old leaf may hold a part of the new one's data by now: never again a success, whatever is seen.
    world.storage.files[world.new()].is_full = world.vm.commit_fails = False
    world.guest.resume()
    assert world.probe().outcome is Outcome.BAD
    seen = world.repair()
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK
