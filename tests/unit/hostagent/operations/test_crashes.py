"""kill -9 after every single effect, in every scenario: what follows is told truly, and nobody stays frozen."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from common.errors import LivesnapError, NotReady, StaleAttempt
from common.messaging.messages import LeavesObserved, Outcome
from common.messaging.reports import VmState
from tests.fakes.vm import Agent, Switch
from tests.unit.hostagent.operations.world import EFFECTS, Crash, Process, World

pytestmark = pytest.mark.slow
Meddle = Callable[[World], object]
SETTLED = {Outcome.ALL_NEW, Outcome.NONE, Outcome.NONE_NO_AGENT, Outcome.NONE_ROLLED_BACK}


def _full(world: World) -> None:
    world.storage.files[world.new(1)].is_full = True


def _set_switch(switch: Switch, world: World) -> None:
    world.vm.switch = switch


SCENARIOS: dict[str, Meddle] = {
    "quiesced": lambda world: None,
    "paused": lambda world: setattr(world.vm, "state", VmState.PAUSED),
    "stopped": lambda world: world.vm.power_off(),
    "transient": lambda world: setattr(world.vm, "persistent", ""),
    "freeze fails": lambda world: setattr(world.vm, "agent", Agent.FREEZE_FAILS),
    "freeze is late": lambda world: setattr(world.vm, "agent", Agent.FREEZE_IS_LATE),
    "storage full": _full,
    **{f"switch {switch}": partial(_set_switch, switch) for switch in Switch},
}


def _guard_works(world: World) -> None:
    world.guard.client_died()


def _guard_is_dead_too(world: World) -> None:
    world.guard.armed.clear()


def _libvirtd_is_killed_too(world: World) -> None:
    world.guard.client_died()
    world.vm.restart_libvirtd()


def _vm_is_powered_off(world: World) -> None:
    if world.vm.persistent:
        world.vm.power_off()


def _host_reboots(world: World) -> None:
    if world.vm.persistent:
        world.vm.in_flight, world.boot_id = None, "boot-2"
        world.guard.armed.clear()
        world.vm.power_off()
        world.vm.boot()


AFTERMATHS = [_guard_works, _guard_is_dead_too, _libvirtd_is_killed_too, _vm_is_powered_off, _host_reboots]


def _crashes(scenario: str, command: Callable[[World, Process], object]) -> Iterator[World]:
    """Yield a fresh world for every effect of `command`, just after the process died there."""
    for number in range(1, 100):
        world = World()
        SCENARIOS[scenario](world)
        try:
            command(world, Process(crash_after=number))
        except Crash:
            yield world
            continue
        except LivesnapError:
            pass
        assert number > 2
        return
    raise AssertionError("no end of effects")


def _settle(world: World) -> LeavesObserved:
    """Do as the Manager does: probe, and repair what is bad."""
    world.vm.switch = Switch.WORKS
    seen = world.probe()
    world.check(seen)
    if seen.outcome is Outcome.BAD:
        seen = world.repair()
        world.check(seen)
    return seen


@pytest.mark.parametrize("aftermath", AFTERMATHS, ids=lambda aftermath: aftermath.__name__)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_crash_after_every_effect_of_a_pivot(scenario: str, aftermath: Callable[[World], None]) -> None:
    for number, world in enumerate(_worlds(scenario), start=1):
        aftermath(world)
        seen = _settle(world)
        where = f"{scenario}, crash after effect {number}, {aftermath.__name__}: {seen.message}"
        assert seen.outcome in SETTLED or _needs_a_running_vm(world, seen), where
        with pytest.raises(StaleAttempt):
            world.pivot(attempt=1)
        assert (world.vm.mark, world.journal.frozen_records()) == ("", ()), where


def _needs_a_running_vm(world: World, seen: LeavesObserved) -> bool:
    """Data can be committed back only by QEMU: such a stopped vm is an operator's matter, and its chain is whole."""
    return not world.vm.is_active and seen.outcome is Outcome.BAD and seen.code == "volume_not_empty"


def _worlds(scenario: str) -> Iterator[World]:
    return _crashes(scenario, lambda world, process: world.pivot(process))


@pytest.mark.parametrize("scenario", ["quiesced", "stopped", "storage full", "switch is_partial", "switch lies"])
def test_repeated_command_after_a_crash_is_never_carried_out_twice(scenario: str) -> None:
    for world in _worlds(scenario):
        world.guard.client_died()
        process = Process()
        seen = world.pivot(process, attempt=1)
        world.check(seen)
        assert not {"freeze", "switch_leaves", "maybe_frozen"} & set(process.effects)
        assert seen.outcome not in (Outcome.NONE_NO_AGENT, Outcome.UNKNOWN)


@pytest.mark.parametrize("scenario", ["switch is_partial", "switch lies", "switch leaks", "storage full"])
def test_crash_after_every_effect_of_a_repair(scenario: str) -> None:
    def command(world: World, process: Process) -> object:
        world.pivot()
        if scenario == "storage full":
            world.vm.disks["vda"].chain.insert(0, world.new())
            world.vm.disks["vda"].live.insert(0, world.new())
        world.vm.guest_writes()
        return world.repair(process)

    for world in _crashes(scenario, command):
        seen = _settle(world)
        assert seen.outcome in SETTLED, seen.message


def test_crash_after_every_effect_of_an_undo() -> None:
    def command(world: World, process: Process) -> object:
        world.pivot()
        world.vm.guest_writes()
        return world.repair(process, undo=True)

    for world in _crashes("quiesced", command):
        seen = _settle(world)
        if seen.outcome is Outcome.ALL_NEW:  # then the Manager asks for it again
            seen = world.repair(undo=True)
            world.check(seen)
        assert seen.outcome is Outcome.NONE_ROLLED_BACK, seen.message


@pytest.mark.parametrize("effect", sorted(EFFECTS - {"drop_node", "commit_by_qemu", "begin"}))
def test_crash_in_the_middle_of_a_call_that_then_takes_effect(effect: str) -> None:
    """The process dies, what it asked for is carried out later: by libvirtd, by the guest's agent, by the disk."""
    world = World()
    if effect in ("commit_active", "resume", "commit_begun"):
        _full(world)
    with pytest.raises(Crash):
        world.pivot(Process(crash_in=effect))
    if effect not in ("switch_leaves", "define"):
        world.vm.end_call()
    world.guard.client_died()
    seen = _settle(world)
    assert seen.outcome in SETTLED, seen.message


def test_pivot_that_is_not_ready_has_left_nothing() -> None:
    world = World()
    world.guard.is_up = False
    before = world.vm.persistent
    with pytest.raises(NotReady):
        world.pivot()
    world.guard.is_up = True
    assert world.vm.persistent == before
    assert world.pivot().outcome is Outcome.ALL_NEW
