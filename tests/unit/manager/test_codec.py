"""Everything that the database holds as JSON comes back as it was."""

from typing import get_args

import pytest

from common.messaging.messages import Answer
from manager.flows.base import Problem
from manager.flows.snapshot_states import (
    AwaitingHost,
    Completed,
    CreatingVolumes,
    DeletingVolumes,
    Holding,
    HostGone,
    NeedsOperator,
    Pivoting,
    Probing,
    Repairing,
    RolledBack,
    State,
)
from manager.store import codec
from tests.unit.manager.flows.saga_kit import ANSWERS, H1, plan

WHY = Problem(code="pivot_unknown", message="nobody knows: é \x00", hint="look")
STATES: tuple[State, ...] = (
    CreatingVolumes(plan=plan(), host=H1, tries=3, why=WHY),
    Pivoting(plan=plan("require"), host=H1, quiesce=True, tries=1),
    Holding(plan=plan(), host=H1, quiesce=False, tries=2, why=WHY),
    Probing(plan=plan(), host=H1, why=WHY, tries=4),
    AwaitingHost(plan=plan(), host=H1, why=WHY, elsewhere=True),
    Repairing(plan=plan(), host=H1, why=WHY, tries=1),
    DeletingVolumes(plan=plan(), host=H1, why=WHY, committed=True),
    NeedsOperator(plan=plan(), host=H1, why=WHY),
    Completed(plan=plan("never")),
    RolledBack(plan=plan("best-effort"), why=WHY),
    HostGone(plan=plan(), why=WHY),
)


def test_every_kind_of_state_is_here() -> None:
    assert {type(state) for state in STATES} == set(get_args(State))


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.kind)
def test_every_state_of_the_saga_comes_back(state: State) -> None:
    adapter = codec.state_adapter("snapshot")
    assert adapter.validate_json(codec.dump(adapter, state)) == state


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_every_answer_comes_back_and_has_an_outcome(answer: Answer) -> None:
    assert codec.ANSWER.validate_json(codec.dump(codec.ANSWER, answer)) == answer
    outcome, _ = codec.outcome_of(answer)
    assert outcome == outcome.strip() != ""


def test_a_kind_of_job_that_is_not_known_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="teleport"):
        codec.state_adapter("teleport")
