"""Walk every reachable state of going back with every event, and hold each step against the promises.

As test_snapshot_walk.py does with the saga: every answer in every state (late, repeated, misplaced), so that an edge
found here stands for any order in which a broker may deliver, and for a crash of the Manager after any transition.
"""

from dataclasses import fields
from functools import cache
from typing import get_args

import pytest

from common.messaging.messages import (
    CreateVolumes,
    DeleteVolumes,
    LeavesObserved,
    Outcome,
    Pivot,
    Redefine,
    Repair,
    VolumesDeleted,
)
from manager.flows.base import (
    Answered,
    BranchSettled,
    Event,
    HostLost,
    Next,
    PreviewBegun,
    Started,
    TimedOut,
    VolumesMade,
)
from manager.flows.revert import advance
from manager.flows.revert_states import (
    AwaitingHost,
    Completed,
    CreatingVolumes,
    DeletingVolumes,
    Dropping,
    Goal,
    Holding,
    HostGone,
    Moving,
    NeedsOperator,
    Probing,
    Proving,
    RolledBack,
    State,
    begin,
    is_over,
    problem_of,
)
from tests.unit.manager.flows.revert_kit import GOALS, events, plan
from tests.unit.manager.flows.saga_kit import H1
from tests.unit.manager.flows.walking import Edge, Walk, walk

pytestmark = pytest.mark.xdist_group("revert-walk")  # the walk is made once per goal, not once per worker

Key = tuple[object, ...]
NOWHERE = {Outcome.NONE, Outcome.NONE_NO_AGENT}
TELLING = {
    kind: tuple(field.name for field in fields(kind) if field.name not in ("plan", "why")) for kind in get_args(State)
}
SPECIAL_CODES = ("vm_not_found", "job_cancelled")
"""Of a reason only whether there is one, and these, is ever asked for."""


def key(state: State) -> Key:
    """Return what the decisions depend on: all but the plan, which never changes, and the words of the reason."""
    why = problem_of(state)
    code = why.code if why is not None and why.code in SPECIAL_CODES else ""
    return (type(state), *(getattr(state, name) for name in TELLING[type(state)]), why is not None, code)


@cache
def walked(goal: Goal) -> Walk[State]:
    """Return every edge that is reachable from the beginning."""
    return walk(begin(plan(goal), H1), events(goal), advance, key)


@pytest.fixture(scope="module", params=GOALS)
def goal(request: pytest.FixtureRequest) -> Goal:
    """One kind of job after the other."""
    chosen: Goal = request.param
    return chosen


@pytest.fixture(scope="module")
def whole(goal: Goal) -> Walk[State]:
    """The walk of that kind."""
    return walked(goal)


@pytest.fixture(scope="module")
def edges(whole: Walk[State]) -> list[Edge[State]]:
    """All its edges."""
    return whole.edges


def outcome_in(event: Event) -> Outcome | None:
    """Return the outcome that an event reports, None if it reports none."""
    if isinstance(event, Answered) and isinstance(event.answer, LeavesObserved):
        return event.answer.outcome
    return None


def test_every_kind_of_state_is_reached(goal: Goal, edges: list[Edge[State]]) -> None:
    moving = {Moving, Holding, Probing, AwaitingHost}
    making = {CreatingVolumes, DeletingVolumes}
    dropping = {Proving, Dropping}
    ends = {Completed, RolledBack, HostGone, NeedsOperator}
    wanted = {
        "preview": making | moving | ends,
        "revert": making | moving | dropping | ends,
        "undo": moving | dropping | ends,
        "commit": dropping | ends,
    }
    assert {type(step.state) for _, _, step in edges} == wanted[goal]


def test_what_holds_data_is_deleted_only_behind_a_hosts_proof(goal: Goal, edges: list[Edge[State]]) -> None:
    """P1: the permission names exactly what is given up, and the proof is of the probe that was asked for that."""
    permitted = [(s, e, n) for s, e, n in edges if n.send and isinstance(n.send.command, DeleteVolumes)]
    for state, event, step in permitted:
        assert step.send is not None
        assert isinstance(step.send.command, DeleteVolumes)
        command = step.send.command
        assert command.committed == ()
        if not command.abandoned:
            continue
        assert (command.disks, command.abandoned) == (plan(goal).drops, plan(goal).given_up)
        repeated = isinstance(state, Dropping) and isinstance(event, TimedOut)
        assert repeated or (isinstance(state, Proving) and outcome_in(event) in NOWHERE), (state, event)
    assert any(n.send.command.abandoned for _, _, n in permitted) == (goal != "preview")  # type: ignore[union-attr]


def test_new_volumes_are_deleted_only_with_proof(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if step.send and isinstance(step.send.command, DeleteVolumes) and not step.send.command.abandoned:
            never_shown = isinstance(state, CreatingVolumes)  # a host that was lost by then has seen nothing either
            repeated = isinstance(state, DeletingVolumes) and isinstance(event, TimedOut)
            not_on_any_host_asked = isinstance(state, Moving) and outcome_in(event) is Outcome.NOT_HERE
            proven = isinstance(state, Moving | Probing | AwaitingHost) and outcome_in(event) in NOWHERE
            assert never_shown or repeated or not_on_any_host_asked or proven, (state, event)


def test_the_record_moves_only_with_an_observation(goal: Goal, edges: list[Edge[State]]) -> None:
    """P3: the leaves on record, and the way back, change once a host has seen the machine there; a commit's, once what
    is given up is proven to be nowhere."""
    for state, event, step in edges:
        moved = [record for record in step.records if isinstance(record, PreviewBegun | BranchSettled)]
        if not moved:
            continue
        assert len(moved) == 1
        if goal == "commit":
            assert isinstance(state, Proving)
            assert not state.settled
            assert outcome_in(event) in NOWHERE
            assert moved == [BranchSettled(vm=plan(goal).vm, leaves=())]
        else:
            assert isinstance(state, Moving | Probing | AwaitingHost)
            assert outcome_in(event) is Outcome.ALL_NEW


def test_after_the_record_has_moved_a_job_never_says_that_nothing_happened(whole: Walk[State]) -> None:
    """What follows BranchSettled ends as Completed, or asks an operator: RolledBack is not reached from there."""
    settled = whole.to(lambda edge: any(isinstance(record, BranchSettled) for record in edge[2].records))
    rolled_back = whole.to(lambda edge: isinstance(edge[2].state, RolledBack))
    assert not whole.after(settled) & rolled_back


def test_completed_has_its_record(goal: Goal, edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if not isinstance(step.state, Completed) or isinstance(state, Completed):
            continue
        if isinstance(state, Dropping):
            assert isinstance(event, Answered)
            assert isinstance(event.answer, VolumesDeleted)
            assert not event.answer.kept
        elif isinstance(state, NeedsOperator):
            assert state.settled
        else:
            assert [type(record) for record in step.records] == [PreviewBegun]
            assert goal == "preview" or (
                goal == "revert" and (why := problem_of(state)) and why.code == "job_cancelled"
            )


def test_rolled_back_means_every_new_volume_is_gone(goal: Goal, edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if isinstance(step.state, RolledBack) and not isinstance(state, RolledBack) and goal in ("preview", "revert"):
            assert isinstance(state, DeletingVolumes)
            assert isinstance(event, Answered)
            assert isinstance(event.answer, VolumesDeleted)
            assert not event.answer.kept


def test_nothing_is_ever_committed_back_or_pivoted(edges: list[Edge[State]]) -> None:
    """Below a new leaf there is a snapshot: a commit would write into it."""
    assert not [n for _, _, n in edges if n.send and isinstance(n.send.command, Repair | Pivot)]


def test_volumes_are_made_before_the_machine_moves(goal: Goal, edges: list[Edge[State]]) -> None:
    for state, _event, step in edges:
        if step.send and isinstance(step.send.command, CreateVolumes):
            assert isinstance(state, CreatingVolumes)
        if step.send and isinstance(step.send.command, Redefine) and isinstance(state, CreatingVolumes):
            assert [type(record) for record in step.records] == [VolumesMade]
        if step.send and isinstance(step.send.command, Redefine):
            assert step.send.command.disks == plan(goal).moves


def test_a_second_attempt_needs_an_answer_that_nothing_happened(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if step.send and isinstance(step.send.command, Redefine) and isinstance(state, Moving):
            assert isinstance(event, Started) or outcome_in(event) is Outcome.NOT_HERE, (state, event)


def test_no_state_waits_for_nothing(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        waits = not is_over(step.state) and not isinstance(step.state, NeedsOperator)
        if step.state != state and waits:
            assert step.wake_after is not None, f"{event} leads to a state without a timer: {step.state}"


def test_an_ended_job_stays_as_it_is(edges: list[Edge[State]]) -> None:
    for state, _event, step in edges:
        if is_over(state):
            assert step == Next(state=state)


def test_every_state_can_still_reach_an_end(whole: Walk[State]) -> None:
    assert whole.everywhere() <= whole.before(whole.to(lambda edge: is_over(edge[2].state)))


def test_without_an_observation_nothing_is_decided_after_a_move(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if isinstance(state, Moving | Holding | Probing | AwaitingHost) and outcome_in(event) is None:
            assert not isinstance(step.state, Completed | RolledBack | DeletingVolumes | Proving), (state, event)


def test_a_lost_host_ends_what_waits_for_it_and_deletes_nothing(edges: list[Edge[State]]) -> None:
    """P1: nothing is deleted in its place, and nothing is taken to have happened that it has not said."""
    for state, event, step in edges:
        if not isinstance(event, HostLost):
            continue
        match state:
            case CreatingVolumes(host=event.host):
                assert isinstance(step.state, DeletingVolumes)
            case Moving() | Holding() | Probing() | AwaitingHost() | Proving() | NeedsOperator() if (
                state.host == event.host
            ):
                assert isinstance(step.state, HostGone)
                assert (step.send, step.records) == (None, ())
            case _:
                assert step == Next(state=state)
