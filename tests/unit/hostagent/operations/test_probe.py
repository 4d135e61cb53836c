"""Probe: the fence, the barrier, the receipt, the one thing it may change, and the guests that it thaws."""

import pytest

from common.errors import NotReady, StaleAttempt
from common.ids import VmId
from common.messaging.messages import Outcome
from common.messaging.reports import VmState
from common.receipt import Consistency, label
from hostagent.operations import barrier
from hostagent.operations.barrier import QUEUE_LIMIT_MS
from tests.fakes.vm import Agent, Switch, sources_of
from tests.unit.hostagent.operations.world import Crash, Process, World


@pytest.fixture
def world() -> World:
    return World()


def crash_in_pivot(world: World, *, after: int = 0, during: str = "") -> None:
    with pytest.raises(Crash):
        world.pivot(Process(crash_after=after, crash_in=during))


# ---- fence and replay -----------------------------------------------------------------------------------------------


def test_probe_fences_every_lower_attempt(world: World) -> None:
    assert world.probe(attempt=5).outcome is Outcome.NONE
    for lower in (1, 4):
        with pytest.raises(StaleAttempt):
            world.pivot(attempt=lower)
        with pytest.raises(StaleAttempt):
            world.repair(attempt=lower)
    assert world.pivot(attempt=6).outcome is Outcome.ALL_NEW


def test_probe_and_repair_are_replayed(world: World) -> None:
    first = world.probe()
    world.vm.state = VmState.PAUSED
    process = Process()
    assert world.probe(process, attempt=1) == first
    assert process.effects == ["begin"]
    repaired = world.repair()
    assert world.repair(attempt=2) == repaired


def test_probe_of_an_unknown_vm(world: World) -> None:
    world.guest.is_known = False
    assert world.probe().outcome is Outcome.NOT_HERE


def test_probe_without_libvirt_begins_nothing(world: World) -> None:
    world.vm.libvirt_is_up = False
    with pytest.raises(NotReady):
        world.probe()
    assert world.journal.current(world.vm_id) is None


def test_libvirt_lost_while_probing(world: World) -> None:
    world.during("runtime_id", lambda: setattr(world.vm, "libvirt_is_up", False))
    seen = world.probe()
    assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "pivot_unknown")


# ---- receipt --------------------------------------------------------------------------------------------------------


def test_receipt_outlives_a_lost_answer(world: World) -> None:
    pivoted = world.pivot()
    probed = world.probe()
    assert probed.outcome is Outcome.ALL_NEW
    assert (probed.receipt, probed.live_xml) == (pivoted.receipt, pivoted.live_xml)
    assert world.probe().receipt == pivoted.receipt


def test_receipt_that_was_never_written_is_lost(world: World) -> None:
    world.during("thaw", lambda: None)
    crash_in_pivot(world, after=12)
    seen = world.probe()
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "receipt_lost")


def lose_libvirt_after_the_first_thaw(world: World) -> None:
    is_up = iter([False])
    world.during("thaw", lambda: setattr(world.vm, "libvirt_is_up", next(is_up, True)))


def test_receipt_of_a_switch_after_which_libvirt_was_lost(world: World) -> None:
    lose_libvirt_after_the_first_thaw(world)
    assert world.pivot().outcome is Outcome.UNKNOWN
    world.vm.libvirt_is_up = True
    seen = world.probe()
    assert (seen.outcome, label(seen.receipt)) == (Outcome.ALL_NEW, (Consistency.FILESYSTEM, ""))


def test_that_receipt_counts_for_its_own_run_only(world: World) -> None:
    lose_libvirt_after_the_first_thaw(world)
    world.pivot()
    world.vm.libvirt_is_up = True
    world.vm.power_off()
    world.vm.boot()
    seen = world.probe()
    assert (seen.outcome, label(seen.receipt)) == (Outcome.ALL_NEW, (Consistency.CRASH, "switch_not_own"))


def test_somebody_elses_block_job_is_waited_for(world: World) -> None:
    world.pivot()
    world.vm.block_jobs = {"vda"}
    assert ((seen := world.probe()).outcome, seen.code) == (Outcome.UNKNOWN, "vm_busy")
    world.vm.block_jobs = set()
    assert world.probe().outcome is Outcome.ALL_NEW


# ---- barrier --------------------------------------------------------------------------------------------------------


def test_call_that_is_still_in_libvirtd_is_waited_for(world: World) -> None:
    """V1: the agent dies in the call, libvirtd goes on with it."""
    crash_in_pivot(world, during="switch_leaves")
    world.guard.client_died()
    seen = world.probe()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW


def test_call_that_hangs_is_unknown_however_often_it_is_asked(world: World) -> None:
    world.vm.switch = Switch.HANGS
    assert world.pivot().outcome is Outcome.UNKNOWN
    for _ in range(3):
        world.clock.advance(3600)
        assert world.probe().outcome is Outcome.UNKNOWN
        assert world.repair().outcome is Outcome.UNKNOWN
        process = Process()
        assert world.pivot(process).outcome is Outcome.UNKNOWN
        assert process.effects == ["begin", "done"], "no second call while the first may still act"
    world.vm.switch = Switch.WORKS
    assert world.probe().outcome is Outcome.ALL_NEW


def test_no_second_call_while_the_first_hangs_in_a_transient_vm(world: World) -> None:
    world.vm.persistent, world.vm.switch = "", Switch.HANGS
    world.pivot()
    process = Process()
    assert world.pivot(process).outcome is Outcome.UNKNOWN
    assert process.effects == ["begin", "done"]


def test_call_does_not_survive_its_libvirtd(world: World) -> None:
    crash_in_pivot(world, during="switch_leaves")
    world.vm.restart_libvirtd()
    world.guard.client_died()
    process = Process()
    seen = world.probe(process)
    world.check(seen)
    assert seen.outcome is Outcome.NONE


def test_call_does_not_survive_its_host(world: World) -> None:
    crash_in_pivot(world, during="switch_leaves")
    world.vm.in_flight = None
    world.vm.power_off()
    world.boot_id = "boot-2"
    world.vm.boot()
    seen = world.probe()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW, "the definition was on the new leaves before the switch"


def test_young_call_gets_several_pauses_to_take_the_lock(world: World) -> None:
    touched: list[int] = []
    world.during("touch_modify_job", lambda: touched.append(1))
    crash_in_pivot(world, during="switch_leaves")
    world.probe()
    assert len(touched) == 3
    world.probe()
    assert len(touched) == 3, "an answer that is not UNKNOWN says that the call is over"


def test_old_call_either_runs_or_has_failed(world: World) -> None:
    touched: list[int] = []
    crash_in_pivot(world, during="switch_leaves")
    world.clock.advance(barrier.QUEUE_LIMIT_MS / 1000)
    world.during("touch_modify_job", lambda: touched.append(1))
    world.probe()
    assert len(touched) == 1


# ---- the persistent definition ----------------------------------------------------------------------------------


def test_definition_is_set_back_to_what_qemu_has(world: World) -> None:
    crash_in_pivot(world, after=3)
    assert set(sources_of(world.vm.persistent).values()) == world.news
    seen = world.probe()
    world.check(seen)
    assert seen.outcome is Outcome.NONE
    assert set(sources_of(world.vm.persistent).values()) == world.olds


def test_definition_on_a_leaf_that_holds_data_is_left_alone(world: World) -> None:
    """V6: it may be the only copy of what the guest wrote before its host died."""
    crash_in_pivot(world, after=3)
    world.storage.files[world.new(1)].has_data = True
    seen = world.probe()
    assert (seen.outcome, seen.code) == (Outcome.BAD, "volume_not_empty")
    assert set(sources_of(world.vm.persistent).values()) == world.news


def test_definition_on_a_leaf_that_is_gone_is_set_back(world: World) -> None:
    """V7."""
    crash_in_pivot(world, after=3)
    for path in world.news:
        del world.storage.files[path]
    seen = world.probe()
    assert seen.outcome is Outcome.NONE
    assert set(sources_of(world.vm.persistent).values()) == world.olds


def test_definition_on_a_leaf_whose_metadata_alone_is_gone_is_left_alone(world: World) -> None:
    """Whether it holds anything is not known then."""
    crash_in_pivot(world, after=3)
    world.storage.files[world.new(1)].is_known = False
    seen = world.probe()
    assert (seen.outcome, "has no metadata" in seen.message) == (Outcome.BAD, True)
    assert set(sources_of(world.vm.persistent).values()) == world.news


def test_definition_that_was_not_saved_follows_qemu(world: World) -> None:
    """V5: switched, and the agent and libvirtd died before the definition was saved."""
    before = world.vm.persistent
    world.pivot()
    world.vm.persistent = before
    seen = world.probe()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW


def test_stopped_vm_is_where_its_definition_says(world: World) -> None:
    crash_in_pivot(world, after=3)
    world.vm.power_off()
    seen = world.probe()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW


def test_stopped_vm_with_a_save_image_is_not(world: World) -> None:
    crash_in_pivot(world, after=3)
    world.vm.power_off()
    world.vm.managed_save = True
    assert (seen := world.probe()).outcome is Outcome.BAD
    assert seen.code == "vm_managed_save"


def test_stopped_here_and_open_elsewhere_is_not_here(world: World) -> None:
    world.vm.power_off()
    world.others_open = {world.new()}
    assert world.probe().outcome is Outcome.NOT_HERE


# ---- frozen guests --------------------------------------------------------------------------------------------------


def test_probe_thaws_what_a_dead_attempt_froze(world: World) -> None:
    crash_in_pivot(world, after=7)
    assert world.vm.is_frozen
    world.check(world.probe())
    assert (world.vm.mark, world.journal.frozen_records()) == ("", ())


def test_mark_alone_is_enough(world: World) -> None:
    """A7: the intent came with a migration, this host's journal knows nothing of it."""
    world.vm.mark, world.vm.is_frozen = "other-host/1/x", True
    world.check(world.probe())
    assert world.vm.mark == ""


def test_somebody_elses_freeze_is_not_thawed(world: World) -> None:
    world.vm.is_frozen = True
    world.probe()
    assert world.vm.is_frozen


def test_record_of_a_run_that_is_over_is_cleared(world: World) -> None:
    crash_in_pivot(world, after=7)
    world.vm.power_off()
    world.check(world.probe())
    assert world.journal.frozen_records() == ()


def test_thaw_that_fails_keeps_the_record(world: World) -> None:
    crash_in_pivot(world, after=7)
    world.vm.agent = Agent.MISSING
    world.probe()
    assert len(world.journal.frozen_records()) == 1
    assert list(world.guard.armed.values())[-1] == 1, "the guard goes on"
    world.vm.agent = Agent.NORMAL
    world.check(world.probe())
    assert world.journal.frozen_records() == ()


def test_vm_that_comes_back_frozen_while_it_is_looked_for(world: World) -> None:
    """Migrated away frozen, and back before the intent is cleared: nobody else would thaw it then."""
    crash_in_pivot(world, after=7)
    world.guest.is_known = False
    disarm = world.guard.disarm

    def come_back(vm: VmId, token: str) -> bool:
        world.guest.is_known = True
        return disarm(vm, token)

    world.guard.disarm = come_back  # type: ignore[method-assign]
    world.clock.advance(QUEUE_LIMIT_MS / 1000)
    assert world.probe().outcome is Outcome.NOT_HERE
    assert not world.vm.is_frozen
    assert (world.vm.mark, world.journal.frozen_records()) == ("", ())
