"""A vm that moves to another host, before, in the middle of and after a pivot: nothing is claimed that is not so.

What makes it hard: a migration takes along the persistent definition of its beginning, which may be ours; libvirt lets
a freeze through and keeps the switch waiting; and a switch that has waited until the vm is off "succeeds".
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from common.errors import LivesnapError
from common.messaging.messages import LeavesObserved, Outcome
from common.messaging.reports import VmState
from common.receipt import Consistency, label
from hostagent.operations.barrier import QUEUE_LIMIT_MS
from tests.fakes.vm import Switch, sources_of
from tests.unit.hostagent.operations.world import Crash, Process, World

SETTLED = {Outcome.ALL_NEW, Outcome.NONE, Outcome.NONE_NO_AGENT, Outcome.NONE_ROLLED_BACK}
Move = Callable[[World], World]


@pytest.fixture
def world() -> World:
    return World()


# ---- it is seen before anything waits for it ------------------------------------------------------------------------


def test_before_anything_is_touched_it_is_simply_refused(world: World) -> None:
    world.begin_migration()
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert (seen.outcome, seen.code, process.effects) == (Outcome.NONE, "vm_migrating", ["begin", "done"])


def test_beginning_after_the_definition_was_moved(world: World) -> None:
    world.during("define", world.begin_migration)
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "vm_migrating")
    assert "freeze" not in process.effects
    assert set(sources_of(world.vm.persistent).values()) == world.olds
    assert set(sources_of(world.travelling).values()) == world.news, "so NONE would be a lie: it is used there"
    assert world.journal.frozen_records() == ()


def test_beginning_while_it_freezes(world: World) -> None:
    world.during("freeze", world.begin_migration)
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "vm_migrating")
    assert "switch_leaves" not in process.effects, "it would wait, with the guest frozen"
    assert set(sources_of(world.vm.persistent).values()) == world.olds
    assert world.vm.mark, "to clear it would wait too: it travels, and is cleared there"
    assert len(world.journal.frozen_records()) == 1


def test_nothing_is_claimed_until_it_is_over(world: World) -> None:
    world.during("freeze", world.begin_migration)
    world.pivot()
    begun = world.clock.boottime_ms()
    assert [world.probe().code for _ in range(3)] == ["vm_migrating"] * 3
    assert world.clock.boottime_ms() == begun, "the barrier does not wait for what can last for hours"
    there = world.arrive()
    assert set(sources_of(there.vm.persistent).values()) == there.news
    _let_waiting_calls_end(world)
    assert world.probe().outcome is Outcome.NOT_HERE
    seen = there.probe()
    there.check(seen)
    assert seen.outcome is Outcome.NONE
    assert (there.vm.mark, there.journal.frozen_records(), world.journal.frozen_records()) == ("", (), ())


def test_another_call_that_holds_the_vm_is_not_waited_for_either(world: World) -> None:
    world.during("freeze", lambda: setattr(world.vm, "job", "call"))
    process = Process()
    seen = world.pivot(process)
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_busy")
    assert "switch_leaves" not in process.effects


# ---- it begins when the call is on its way --------------------------------------------------------------------------


def _at_the_last_moment(world: World, ends: Callable[[], object] | None = None) -> Process:
    """Return a process during whose last durable write before the switch the migration begins."""
    begun = Process()
    World().pivot(begun)
    last = len(begun.effects) - begun.effects[::-1].index("call_issued")
    return Process(meddle_after=last, meddle=lambda: world.begin_migration(ends))


def test_migration_that_fails_lets_the_late_switch_through(world: World) -> None:
    world.switch_limit_ms = 0
    seen = world.pivot(_at_the_last_moment(world, world.fail_migration))
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert not world.vm.was_frozen_at_switch, "the guard has thawed long before"
    assert label(seen.receipt) == (Consistency.CRASH, "switch_late")


def test_guard_that_fires_in_a_quick_switch_is_another_reason(world: World) -> None:
    seen = world.pivot(_at_the_last_moment(world, world.fail_migration))
    assert label(seen.receipt) == (Consistency.CRASH, "guard_fired")


@pytest.mark.parametrize(("switch_limit_ms", "armed_ms"), [(700, 700), (5000, 1000)])
def test_guest_is_kept_frozen_no_longer_than_either_limit(world: World, switch_limit_ms: int, armed_ms: int) -> None:
    """The command's own limit is 1000 ms."""
    armed: list[int] = []
    world.switch_limit_ms = switch_limit_ms
    world.during("switch_leaves", lambda: armed.extend(world.guard.armed.values()))
    world.pivot()
    assert armed == [armed_ms]


@pytest.mark.parametrize("leave_definition", [False, True])
def test_switch_that_waited_until_the_vm_was_gone(world: World, leave_definition: bool) -> None:
    there: list[World] = []
    ends = lambda: there.append(world.arrive(leave_definition=leave_definition))  # noqa: E731
    seen = world.pivot(_at_the_last_moment(world, ends))
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "vm_migrating")
    assert not world.news & set(sources_of(world.vm.persistent).values())
    _let_waiting_calls_end(world)
    seen = world.probe()
    assert seen.outcome is Outcome.NOT_HERE, "what was left behind here says nothing about the vm"
    seen = there[0].probe()
    there[0].check(seen)
    assert seen.outcome is Outcome.NONE


def _let_waiting_calls_end(world: World) -> None:
    """Let the time pass for which libvirt keeps a call waiting."""
    world.clock.advance(QUEUE_LIMIT_MS / 1000)


def test_a_call_may_wait_for_a_vm_that_has_left_and_comes_back(world: World) -> None:
    with pytest.raises(Crash):
        world.pivot(Process(crash_in="switch_leaves"))
    world.guard.client_died()
    world.begin_migration()
    world.arrive()
    seen = world.probe()
    assert (seen.outcome, seen.code, "may still wait" in seen.message) == (Outcome.UNKNOWN, "vm_migrating", True)
    _let_waiting_calls_end(world)
    assert world.probe().outcome is Outcome.NOT_HERE


# ---- a definition left behind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("require", [False, True])
def test_definition_left_behind_is_not_the_vm(world: World, require: bool) -> None:
    world.begin_migration()
    there = world.arrive(leave_definition=True)
    process = Process()
    seen = world.pivot(process, require=require)
    assert (seen.outcome, seen.code, process.effects) == (Outcome.NOT_HERE, "vm_not_found", ["begin", "done"])
    assert there.pivot().outcome is Outcome.ALL_NEW


def test_stopped_vm_whose_volume_somebody_writes_to(world: World) -> None:
    """It runs elsewhere, and libvirtd was restarted since; or it is a tool: nothing is touched, and nothing claimed."""
    world.begin_migration()
    world.arrive(leave_definition=True)
    world.vm.moved_away = False
    process = Process()
    seen = world.pivot(process)
    assert (seen.outcome, seen.code, process.effects) == (Outcome.NONE, "vm_busy", ["begin", "done"])
    assert world.probe().outcome is Outcome.NOT_HERE


def test_definition_left_behind_that_names_the_new_leaf_is_no_success(world: World) -> None:
    """An agent that died after it had moved the definition, and a vm that moved on with the old one."""
    with pytest.raises(Crash):
        world.pivot(Process(crash_after=3))
    assert set(sources_of(world.vm.persistent).values()) == world.news
    world.begin_migration()
    there = world.arrive(leave_definition=True)
    seen = world.probe()
    world.check(seen)
    assert seen.outcome is Outcome.NOT_HERE
    assert set(sources_of(world.vm.persistent).values()) == world.olds
    seen = there.probe()
    there.check(seen)
    assert seen.outcome is Outcome.NONE


# ---- everywhere -----------------------------------------------------------------------------------------------------


def _follow(world: World, seen: LeavesObserved, move: Move) -> LeavesObserved:
    """Do as the Manager does: probe where it was asked, then where the vm is; repair what is bad. Hold each answer
    against what is so."""
    at = world
    for _ in range(6):
        at.check(seen)
        at.vm.switch = Switch.WORKS
        if seen.outcome in SETTLED:
            break
        if seen.outcome is Outcome.UNKNOWN and world.vm.job:
            world.others = move(world)  # type: ignore[attr-defined]
        if seen.outcome is Outcome.UNKNOWN:
            _let_waiting_calls_end(world)
        if seen.outcome is Outcome.NOT_HERE:
            at = world.others  # type: ignore[attr-defined]
        seen = at.repair() if seen.outcome is Outcome.BAD else at.probe()
    return seen


def _fails(world: World) -> World:
    world.fail_migration()
    return world


MOVES: dict[str, Move] = {
    "undefined": lambda world: world.arrive(),
    "left defined": lambda world: world.arrive(leave_definition=True),
    "failed": _fails,
}
SCENARIOS: dict[str, Callable[[World], object]] = {
    "quiesced": lambda world: None,
    "paused": lambda world: setattr(world.vm, "state", VmState.PAUSED),
    "storage full": lambda world: setattr(world.storage.files[world.new(1)], "is_full", True),
    "switch is partial": lambda world: setattr(world.vm, "switch", Switch.IS_PARTIAL),
}
"""Not "switch lies": a vm that moves on before its libvirtd's lie is repaired opens the old leaf, which no rule of ours
prevents (the new one is kept, since it is not empty)."""


def _every_moment(scenario: str, begin: Callable[[World], object]) -> Iterator[tuple[int, World, LeavesObserved]]:
    """Yield, for each effect of a pivot, a world in which `begin` happened after it, and the pivot's answer."""
    for number in range(1, 100):
        world = World()
        SCENARIOS[scenario](world)
        process = Process(meddle_after=number, meddle=partial(begin, world))
        try:
            seen = world.pivot(process)
        except LivesnapError as refused:
            raise AssertionError(f"{scenario}, after effect {number}: {refused}") from refused
        if len(process.effects) < number:
            return
        yield number, world, seen
    raise AssertionError("no end of effects")


@pytest.mark.slow
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("waited_for", [False, True])
def test_migration_that_begins_at_any_moment(scenario: str, move: str, waited_for: bool) -> None:
    def begin(world: World) -> None:
        def ends() -> None:
            world.others = MOVES[move](world)  # type: ignore[attr-defined]

        world.begin_migration(ends if waited_for else None)

    for number, world, answered in _every_moment(scenario, begin):
        seen = _follow(world, answered, MOVES[move])
        assert seen.outcome in SETTLED, f"{scenario}, {move}, after effect {number}: {seen.code} {seen.message}"


@pytest.mark.slow
@pytest.mark.parametrize("move", ["undefined", "left defined"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_crash_after_every_effect_and_then_it_moves(scenario: str, move: str) -> None:
    for number in range(1, 100):
        world = World()
        SCENARIOS[scenario](world)
        try:
            world.pivot(Process(crash_after=number))
            return
        except Crash:
            world.guard.client_died()
        world.begin_migration()
        world.others = MOVES[move](world)  # type: ignore[attr-defined]
        seen = _follow(world, world.probe(), MOVES[move])
        where = f"{scenario}, {move}, crash after effect {number}: {seen.outcome} {seen.message}"
        assert seen.outcome in SETTLED, where
    raise AssertionError("no end of effects")
