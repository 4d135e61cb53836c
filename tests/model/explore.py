"""Breadth-first exploration: every state within a model's budgets, and the shortest way to a broken promise."""

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.model.agent import agent_steps
from tests.model.guest import guard_steps, guest_steps
from tests.model.hypervisor import hypervisor_steps
from tests.model.invariants import Kind, Violation, has_end_or_name, is_thawed, violation
from tests.model.manager import manager_steps
from tests.model.mishaps import mishaps
from tests.model.model import Model
from tests.model.spm import spm_steps
from tests.model.world import Step, World, beginning


def steps(model: Model, world: World) -> Iterator[Step]:
    """Yield everything that may happen next."""
    yield from manager_steps(model, world)
    yield from spm_steps(model, world)
    for number, host in enumerate(world.hosts):
        if host.agent and not host.dead:
            yield from agent_steps(model, world, number)
        yield from hypervisor_steps(model, world, number)
        yield from guard_steps(model, world, number)
    yield from guest_steps(model, world)
    yield from mishaps(model, world)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """What an exploration found: how much it saw, and the shortest trace to the first violation, if there is one."""

    states: int
    seconds: float
    violation: Violation | None = None
    trace: tuple[str, ...] = ()

    def story(self) -> str:
        """Return the trace as lines for a person: who did what, and what is broken by it."""
        lines = [f"{number:3}. {line}" for number, line in enumerate(self.trace, start=1)]
        if self.violation is not None:
            lines.append(f"  => {self.violation.kind}: {self.violation.detail}")
        return "\n".join(lines)


class Exploration:
    """The states seen so far, each with where it came from."""

    def __init__(self, model: Model, *, most: int) -> None:
        """Start at the beginning; give up (AssertionError) beyond `most` states."""
        self.model = model
        self._most = most
        self._began = time.process_time()
        first = beginning(model.config)
        self.worlds = [first]
        self._numbers = {first: 0}
        self._from = array("q", [-1])
        self._texts = [""]
        self._sources, self._targets = array("q"), array("q")

    def run(self, *, lively: bool, only: Kind | None) -> Explored:
        """Explore everything; `lively`: check afterwards what must stay possible too; `only`: look for this alone."""
        todo = deque([0])
        while todo:
            number = todo.popleft()
            for step in steps(self.model, self.worlds[number]):
                target, is_new = self._reach(number, step)
                if lively and not step.mishap:
                    self._sources.append(number)
                    self._targets.append(target)
                if is_new:
                    found = violation(self.model, step.world)
                    if found is not None and only in (None, found.kind):
                        return self._explored(target, found)
                    todo.append(target)
        return self._liveness() if lively else self._explored(0, None)

    def _reach(self, number: int, step: Step) -> tuple[int, bool]:
        target = self._numbers.setdefault(step.world, len(self.worlds))
        if target < len(self.worlds):
            return target, False
        self.worlds.append(step.world)
        self._from.append(number)
        self._texts.append(step.text)
        assert len(self.worlds) <= self._most, f"more than {self._most} states: {self.model.config}"
        return target, True

    def _explored(self, number: int, found: Violation | None) -> Explored:
        seconds = time.process_time() - self._began
        trace = self._trace(number) if found else ()
        return Explored(states=len(self.worlds), seconds=seconds, violation=found, trace=trace)

    def _trace(self, number: int) -> tuple[str, ...]:
        lines = []
        while number:
            lines.append(self._texts[number])
            number = self._from[number]
        return tuple(reversed(lines))

    # ---- liveness: from every state, a goal can still be reached without any further mishap ------------------------

    def _liveness(self) -> Explored:
        goals: list[tuple[Kind, Callable[[World], bool]]] = [
            (Kind.FROZEN_FOR_EVER, is_thawed),
            (Kind.NEVER_ENDS, lambda world: has_end_or_name(self.model, world)),
        ]
        for kind, is_goal in goals:
            lost = self._cannot_reach(is_goal)
            if lost is not None:
                return self._explored(lost, Violation(kind, "from here on, nothing that can happen leads out of it"))
        return self._explored(0, None)

    def _cannot_reach(self, is_goal: Callable[[World], bool]) -> int | None:
        """Return the first state from which no goal can be reached, None if there is none."""
        before: list[list[int]] = [[] for _ in self.worlds]
        for source, target in zip(self._sources, self._targets, strict=True):
            before[target].append(source)
        good = bytearray(len(self.worlds))
        todo = deque(number for number, world in enumerate(self.worlds) if is_goal(world))
        for number in todo:
            good[number] = 1
        while todo:
            for source in before[todo.popleft()]:
                if not good[source]:
                    good[source] = 1
                    todo.append(source)
        lost = good.find(0)
        return None if lost < 0 else lost


def explore(model: Model, *, lively: bool = True, only: Kind | None = None, most: int = 100_000) -> Explored:
    """Explore a model to its end, or to the first violation (of the kind `only`, if that is given)."""
    return Exploration(model, most=most).run(lively=lively, only=only)


class Story:
    """One way through a model, chosen from outside step by step."""

    def __init__(self, model: Model) -> None:
        """Begin at the beginning."""
        self._model = model
        self.world = beginning(model.config)
        self._lines: list[str] = []

    def go_on(self, choice: int) -> None:
        """Take one of the steps that are no mishap, if there is one."""
        self._take([step for step in steps(self._model, self.world) if not step.mishap], choice)

    def suffer(self, choice: int) -> None:
        """Take one of the mishaps, if there is one."""
        self._take([step for step in steps(self._model, self.world) if step.mishap], choice)

    def _take(self, possible: list[Step], choice: int) -> None:
        if possible:
            step = sorted(possible, key=lambda step: step.text)[choice % len(possible)]
            self._lines.append(step.text)
            self.world = step.world

    def can_reach(self, is_goal: Callable[[World], bool]) -> bool:
        """Tell whether a world of that kind can be reached from here without any mishap."""
        seen, todo = {self.world}, deque([self.world])
        while todo:
            world = todo.popleft()
            if is_goal(world):
                return True
            for step in steps(self._model, world):
                if not step.mishap and step.world not in seen:
                    seen.add(step.world)
                    todo.append(step.world)
        return False

    def told(self, found: Violation | None) -> str:
        """Return the story so far."""
        return Explored(states=0, seconds=0, violation=found, trace=tuple(self._lines)).story()
