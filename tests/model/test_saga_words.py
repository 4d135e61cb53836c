"""The model tells the saga's states apart without their words: hold that against the saga, state by state."""

import pytest

from manager.flows.base import Next
from manager.flows.snapshot import advance, begin
from manager.flows.snapshot_states import NeedsOperator, QuiesceMode, State
from tests.model.saga import wordless
from tests.unit.manager.flows.saga_kit import EVENTS, H1, plan

MOST = 3
"""Counters above this are not walked: what they count is bounded elsewhere (tests/unit/manager/flows), not by words."""


def decided(step: Next[State]) -> tuple[object, ...]:
    """Return a step without its words."""
    return (wordless(step.state), step.send, step.records, step.wake_after)


def is_low(state: State) -> bool:
    return max(getattr(state, "tries", 0), getattr(state, "failures", 0)) <= MOST


@pytest.mark.parametrize("mode", ["auto", "best-effort"])
def test_nothing_is_decided_by_words(mode: QuiesceMode) -> None:
    todo = [begin(plan(mode), H1)]
    seen = {wordless(todo[0])}
    while todo:
        state = todo.pop()
        for event in EVENTS:
            step = advance(state, event)
            assert decided(step) == decided(advance(wordless(state), event)), (state, event)
            if isinstance(step.state, NeedsOperator):
                assert step.state.why.code, "an operator is told why"
                assert step.state.why.message
            if is_low(step.state) and wordless(step.state) not in seen:
                seen.add(wordless(step.state))
                todo.append(step.state)
    assert len(seen) > 100
