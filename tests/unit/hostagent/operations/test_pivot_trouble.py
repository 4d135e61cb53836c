"""What goes wrong once a pivot has begun: the freeze, the guard, the vm itself, the switch, the new leaf."""

import time
from dataclasses import replace

import pytest

from common.errors import NotReady, OutcomeUnknown
from common.messaging.messages import Outcome
from common.messaging.reports import VmState
from common.receipt import Consistency, label
from hostagent.operations.pivot import pivot
from tests.fakes.storage import ROOT
from tests.fakes.vm import Agent, Switch, sources_of
from tests.unit.hostagent.operations.world import Process, World
from tests.wait import eventually


@pytest.fixture
def world() -> World:
    return World()


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


def test_freeze_that_succeeds_after_its_limit_is_a_failed_one(world: World) -> None:
    """libvirt's own limit is the machine's, and another client may have set it to more."""

    def takes_long() -> None:
        begun = time.monotonic()
        eventually(lambda: time.monotonic() > begun + 0.05, timeout_s=5, what="the limit's end")

    world.during("freeze", takes_long)
    process, command = Process(), replace(world.command(), freeze_limit_ms=1)
    seen = pivot(world.envelope(command), command, world.deps(process))
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "freeze_failed")
    assert "its limit is 1 ms" in seen.message
    assert "switch_leaves" not in process.effects


def test_somebody_elses_freeze_is_not_thawed_even_if_it_comes_between(world: World) -> None:
    world.during("require_agent", lambda: setattr(world.vm, "is_frozen", True))
    process, before = Process(), world.vm.persistent
    seen = world.pivot(process)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "guest_frozen_by_others")
    assert world.vm.is_frozen
    assert not {"thaw", "switch_leaves"} & set(process.effects)
    assert (world.vm.mark, world.journal.frozen_records(), world.guard.armed) == ("", (), {})
    assert world.vm.persistent == before


def test_thaw_that_cannot_be_confirmed_goes_to_the_guard(world: World) -> None:
    world.vm.agent, world.vm.thaw_fails = Agent.FREEZE_IS_LATE, 99
    seen = world.pivot()
    # Not freeze_failed: best-effort would go on with a guest that may freeze any moment.
    assert (seen.outcome, seen.code) == (Outcome.NONE, "guest_not_thawed")
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


def test_agent_that_dies_while_the_guest_is_frozen_costs_the_label(world: World) -> None:
    world.during("switch_leaves", lambda: setattr(world.vm, "agent", Agent.MISSING))
    seen = world.pivot()
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "thaw_not_confirmed")
    assert list(world.guard.armed.values()) == [1]
    assert len(world.journal.frozen_records()) == 1


# ---- things change under way ----------------------------------------------------------------------------------------


def test_vm_replaced_during_the_freeze(world: World) -> None:
    world.during("freeze", world.vm.boot)
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert "switch_leaves" not in process.effects
    assert seen.outcome is Outcome.ALL_NEW, "it booted from the definition, which was on the empty new leaves already"
    assert label(seen.receipt) == (Consistency.CRASH, "receipt_lost")


def test_vm_replaced_right_after_the_switch(world: World) -> None:
    world.during("thaw", world.vm.boot)
    seen = world.pivot()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "switch_not_own")


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


def test_stopped_vm_that_starts_or_is_saved_before_it_is_redefined(world: World) -> None:
    world.vm.power_off()
    world.during("persistent_xml", lambda: setattr(world.vm, "managed_save", True))
    process = Process()
    assert world.pivot(process).code == "vm_managed_save"
    assert process.effects == ["begin", "done"]

    world.vm.managed_save = False
    world.during("persistent_xml", world.vm.boot)
    seen = world.pivot(process := Process())
    world.check(seen)
    assert (seen.outcome, seen.code, process.effects) == (Outcome.NONE, "vm_state_changed", ["begin", "done"])


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


@pytest.mark.parametrize("call", ["switch_leaves", "layers"], ids=["at once", "a moment later"])
def test_rollback_of_an_unquiesced_one(world: World, call: str) -> None:
    world.storage.files[world.new()].is_full = True
    world.during(call, world.vm.guest_writes)
    seen = world.pivot(quiesce=False)
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE_ROLLED_BACK, "volume_not_writable")
    assert world.vm.state is VmState.RUNNING


@pytest.mark.parametrize("policy", ["report", ""])
@pytest.mark.parametrize("quiesce", [False, True])
def test_guest_that_is_told_of_the_failure(world: World, policy: str, *, quiesce: bool) -> None:
    """Nothing pauses such a machine: QEMU's word is the only trace, and the answer says what it means."""
    world.vm.disks["vdb"].error_policy = policy
    world.storage.files[world.new(1)].is_full = True
    if not quiesce:
        world.during("layers", world.vm.guest_writes)
    seen = world.pivot(quiesce=quiesce)
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE_ROLLED_BACK, "volume_not_writable")
    assert f"vdb (error policy {policy or 'default'})" in seen.message
    assert "told the guest" in seen.message
    assert "error_policy='stop'" in seen.hint


def test_tables_are_no_data(world: World) -> None:
    """QEMU writes a new leaf's own tables before any data; a write of data that fails then has yet to come."""
    looks = []

    def paused_at_last() -> None:
        looks.append(1)
        if len(looks) == 4:
            world.vm.state = VmState.PAUSED_IO_ERROR

    for disk in world.vm.disks.values():
        disk.first_write = 196608
    world.during("layers", paused_at_last)
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE_ROLLED_BACK, "volume_not_writable")


def test_a_write_that_has_left_its_trace_may_still_have_failed(world: World) -> None:
    """QEMU counts what it has tried to write; the pause of a failed write is heard a moment later."""
    looks = []

    def tried_then_paused() -> None:
        looks.append(1)
        for path in world.news:
            world.storage.files[path].has_data = True
        if len(looks) == 3:
            world.vm.state = VmState.PAUSED_IO_ERROR

    world.during("layers", tried_then_paused)
    seen = world.pivot(quiesce=False)
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK


def test_a_write_that_fails_again_soon_after_the_rollback(world: World) -> None:
    """What was resumed on its old leaf is watched there, before it is called rolled back."""
    asked = []

    def fail_soon() -> None:
        asked.append(1)
        if len(asked) == 4:
            world.vm.state = VmState.PAUSED_IO_ERROR

    world.storage.files[world.new()].is_full = True
    world.during("switch_leaves", world.vm.guest_writes)
    world.during("resume", lambda: world.during("state", fail_soon))
    seen = world.pivot(quiesce=False)
    assert (seen.outcome, seen.code) == (Outcome.BAD, "volume_not_writable")
    assert set(world.vm.tops().values()) == world.olds


def test_paused_vm_is_not_watched(world: World) -> None:
    world.vm.state = VmState.PAUSED
    before = world.clock.boottime_ms()
    world.check(world.pivot())
    assert world.clock.boottime_ms() - before < world.verify_ms


def test_old_leaf_is_full_too(world: World) -> None:
    """The empty new leaf is committed, the write is tried again on the old one, and fails there as well."""
    for path in (world.new(), world.old()):
        world.storage.files[path].is_full = True
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.BAD, "volume_not_writable")
    assert "previous volumes" in seen.message
    assert "resume the machine" in seen.hint
    assert (world.vm.state, set(world.vm.tops().values())) == (VmState.PAUSED_IO_ERROR, world.olds)
    assert len(world.journal.frozen_records()) == 1, "its guest is still frozen"

    seen = world.repair()
    assert (seen.outcome, seen.code, seen.hint != "") == (Outcome.BAD, "volume_not_writable", True)

    world.storage.files[world.old()].is_full = False
    seen = world.repair()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE_ROLLED_BACK, "volume_not_writable")
    assert world.vm.state is VmState.RUNNING
    assert (world.vm.mark, world.journal.frozen_records()) == ("", ())


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


def test_a_vm_that_moves_after_its_rollback_was_given_up(world: World) -> None:
    """Its new host knows nothing of the commit. The old one says so for ever, and the vm comes back from there."""
    world.storage.files[world.new()].is_full = True
    world.vm.commit_fails = True
    assert world.pivot().commit_begun
    world.storage.files[world.new()].is_full = world.vm.commit_fails = False
    world.guest.resume()
    world.begin_migration()
    there = world.arrive()
    there.vm.commit_fails = False
    seen = world.probe()
    assert (seen.outcome, seen.commit_begun) == (Outcome.NOT_HERE, True)
    seen = there.probe()
    assert (seen.outcome, seen.commit_begun) == (Outcome.ALL_NEW, False)
    seen = there.repair(undo=True)
    there.check(seen)
    assert (seen.outcome, seen.commit_begun) == (Outcome.NONE_ROLLED_BACK, True)
    assert set(there.vm.tops().values()) == there.olds


def test_a_rollback_that_libvirtd_has_cut_off_is_not_an_old_leaf_that_refuses(world: World) -> None:
    """It is shown as what it is, half-way, so that it is repeated before an operator is asked."""

    def cut_off(*_: object) -> None:
        world.vm.restart_libvirtd()
        raise OutcomeUnknown("pivot_unknown", "End of file while reading data")

    commit = world.guest.commit_active
    setattr(world.guest, "commit_active", cut_off)  # noqa: B010  (mypy refuses to assign to a method)
    world.storage.files[world.new()].is_full = True
    world.during("switch_leaves", world.vm.guest_writes)
    seen = world.pivot(quiesce=False)
    assert (seen.outcome, seen.code, seen.hint) == (Outcome.BAD, "repair_failed", "")
    setattr(world.guest, "commit_active", commit)  # noqa: B010
    seen = world.repair()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE_ROLLED_BACK, "volume_not_writable")
