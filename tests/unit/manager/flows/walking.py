"""Walk a flow: every state that can be reached, with every event."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from manager.flows.base import Event, Next
from tests.collector import all_stays

S = TypeVar("S")
Edge = tuple[S, Event, Next[S]]


@dataclass(frozen=True)
class Walk(Generic[S]):
    """The edges, and for each, in the same order, the numbers of the states that it leads from and to.

    States that a flow cannot tell apart have one number.
    """

    edges: list[Edge[S]]
    ways: list[tuple[int, int]]

    def everywhere(self) -> set[int]:
        """Return every state that an edge leads from."""
        return {before for before, _ in self.ways}

    def to(self, wanted: Callable[[Edge[S]], bool]) -> set[int]:
        """Return the states that the wanted edges lead to."""
        return {after for edge, (_, after) in zip(self.edges, self.ways, strict=True) if wanted(edge)}

    def before(self, states: set[int]) -> set[int]:
        """Return these states and all from which one of them can be reached."""
        return _spread(states, ((after, before) for before, after in self.ways))

    def after(self, states: set[int]) -> set[int]:
        """Return these states and all that can be reached from one of them."""
        return _spread(states, self.ways)


def walk(
    first: S, events: Sequence[Event], advance: Callable[[S, Event], Next[S]], key: Callable[[S], Hashable]
) -> Walk[S]:
    """Return every edge that is reachable from `first`. `key` says what the decisions of the flow depend on."""
    with all_stays():
        return _walked(first, events, advance, key)


def _walked(
    first: S, events: Sequence[Event], advance: Callable[[S, Event], Next[S]], key: Callable[[S], Hashable]
) -> Walk[S]:
    numbers, todo = {key(first): 0}, deque([first])
    edges: list[Edge[S]] = []
    ways: list[tuple[int, int]] = []
    before = 0
    while todo:
        state = todo.popleft()
        for event in events:
            step = advance(state, event)
            edges.append((state, event, step))
            fresh = len(numbers)
            after = before if step.state is state else numbers.setdefault(key(step.state), fresh)
            ways.append((before, after))
            if after == fresh:
                todo.append(step.state)
        before += 1  # states are numbered in the order in which they are taken up
    return Walk(edges, ways)


def _spread(states: set[int], ways: Iterable[tuple[int, int]]) -> set[int]:
    following: dict[int, set[int]] = {}
    for here, there in ways:
        following.setdefault(here, set()).add(there)
    found, todo = set(states), deque(states)
    while todo:
        fresh = following.get(todo.popleft(), set()) - found
        found |= fresh
        todo.extend(fresh)
    return found
