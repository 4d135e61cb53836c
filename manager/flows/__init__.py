"""Flows: pure functions from state and event to state, commands and records. Pure.

A new kind of job is a new file here and a line in FLOWS; the engine, the store and the relay do not change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from manager.flows import (
    delete,
    delete_states,
    mend,
    mend_states,
    revert,
    revert_states,
    snapshot,
    snapshot_states,
)
from manager.flows.base import Event, Next, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One kind of job, as the engine needs it. `states` is the union of its states, told apart by their `kind`."""

    advance: Callable[[Any, Event], Next[Any]]
    is_over: Callable[[Any], bool]
    problem_of: Callable[[Any], Problem | None]
    states: Any
    may_look_early: Callable[[Any], bool] = lambda _: False
    """Whether a state waits for nothing but the time to look again at work that goes on elsewhere."""


_GOING_BACK = Flow(
    advance=revert.advance,
    is_over=revert_states.is_over,
    problem_of=revert_states.problem_of,
    states=revert_states.State,
)

FLOWS = {
    "snapshot": Flow(
        advance=snapshot.advance,
        is_over=snapshot_states.is_over,
        problem_of=snapshot_states.problem_of,
        states=snapshot_states.State,
    ),
    "repair": Flow(
        advance=mend.advance, is_over=mend_states.is_over, problem_of=mend_states.problem_of, states=mend_states.State
    ),
    "preview": _GOING_BACK,
    "commit": _GOING_BACK,
    "undo": _GOING_BACK,
    "revert": _GOING_BACK,
    "delete": Flow(
        advance=delete.advance,
        is_over=delete_states.is_over,
        problem_of=delete_states.problem_of,
        states=delete_states.State,
        may_look_early=delete_states.may_look_early,
    ),
}
