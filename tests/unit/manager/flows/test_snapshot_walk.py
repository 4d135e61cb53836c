"""Walk every reachable state of the saga with every event, and hold each step against the promises.

The events include every answer in every state (late, repeated, misplaced), so that an edge found here stands for any
order in which a broker may deliver. A crash of the Manager after a transition re-reads the stored state and goes on
with some event: which is the same walk.
"""

from dataclasses import fields
from functools import cache
from typing import get_args

import pytest

from common.ids import HostId, VolumeId
from common.messaging.messages import DeleteVolumes, LeavesObserved, Outcome, Pivot, Probe, Repair, VolumesDeleted
from common.receipt import Consistency
from manager.flows.base import (
    Answered,
    ChainSettled,
    Event,
    HostLost,
    Next,
    Record,
    ResolveRequested,
    SnapshotDropped,
    SnapshotTaken,
    Started,
    TimedOut,
    ToHost,
    VolumesGone,
)
from manager.flows.snapshot import advance, begin
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
    QuiesceMode,
    Repairing,
    RolledBack,
    State,
    is_over,
    problem_of,
)
from tests.unit.manager.flows.saga_kit import EVENTS, H1, plan
from tests.unit.manager.flows.walking import Edge, Walk, walk

pytestmark = pytest.mark.xdist_group("saga-walk")  # the walk is made once per mode, not once per worker

PROVEN_NOWHERE = {Outcome.NONE, Outcome.NONE_NO_AGENT, Outcome.NONE_ROLLED_BACK}


def telling(kind: type[State]) -> tuple[str, ...]:
    """Return the names of the fields that tell two states of a kind apart."""
    return tuple(field.name for field in fields(kind) if field.name not in ("plan", "why"))


TELLING = {kind: telling(kind) for kind in get_args(State)}


def key(state: State) -> tuple[object, ...]:
    """Return what the decisions depend on: all but the plan, which never changes, and the words of the reason.

    Of the reason only whether there is one, and the code vm_not_found, is ever asked for; without this the walk would
    tell apart every sentence.
    """
    values = [getattr(state, name) for name in TELLING[type(state)]]
    why = problem_of(state)
    return (*values, why is not None, why is not None and why.code == "vm_not_found")


@cache
def walked(mode: QuiesceMode) -> Walk[State]:
    """Return every edge that is reachable from the beginning."""
    return walk(begin(plan(mode), H1), EVENTS, advance, key)


@pytest.fixture(
    scope="module",
    params=["auto", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("require", "best-effort", "never"))],
)
def whole(request: pytest.FixtureRequest) -> Walk[State]:
    """Return the walk of one quiesce mode."""
    mode: QuiesceMode = request.param
    return walked(mode)


@pytest.fixture(scope="module")
def edges(whole: Walk[State]) -> list[Edge[State]]:
    """Return all its edges."""
    return whole.edges


def outcome_in(event: Event) -> Outcome | None:
    """Return the outcome that an event reports, None if it reports none."""
    if isinstance(event, Answered) and isinstance(event.answer, LeavesObserved):
        return event.answer.outcome
    return None


def test_every_kind_of_state_is_reached(edges: list[Edge[State]]) -> None:
    kinds = {type(step.state) for _, _, step in edges}
    assert kinds == {
        CreatingVolumes, Pivoting, Holding, Probing, AwaitingHost, Repairing, DeletingVolumes,
        Completed, RolledBack, NeedsOperator, HostGone,
    }  # fmt: skip


def test_a_deletion_begins_only_with_proof(edges: list[Edge[State]]) -> None:
    begun = [(s, e) for s, e, n in edges if n.send and isinstance(n.send.command, DeleteVolumes)]
    assert begun
    for state, event in begun:
        no_pivot_was_sent = isinstance(state, CreatingVolumes)
        repeated = isinstance(state, DeletingVolumes) and isinstance(event, TimedOut)
        not_on_any_host_asked = isinstance(state, Pivoting) and outcome_in(event) is Outcome.NOT_HERE
        proven = outcome_in(event) in PROVEN_NOWHERE
        assert no_pivot_was_sent or repeated or not_on_any_host_asked or proven, (state, event)


def test_only_an_observation_completes(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if isinstance(step.state, Completed) and not isinstance(state, Completed):
            assert outcome_in(event) is Outcome.ALL_NEW
            assert [type(record) for record in step.records] == [SnapshotTaken]


def begins_commit(event: Event) -> bool:
    """Tell whether a host says that it has begun to commit."""
    return isinstance(event, Answered) and isinstance(event.answer, LeavesObserved) and event.answer.commit_begun


def remembers_commit(state: State) -> bool:
    """Tell whether a state knows of a commit that had begun."""
    return not isinstance(state, Completed | RolledBack | HostGone) and state.commit_begun


def test_a_commit_that_has_begun_is_remembered_to_the_end_and_no_snapshot_comes_of_it(
    edges: list[Edge[State]],
) -> None:
    heeding = (Pivoting, Probing, AwaitingHost, Repairing)
    begun = [(s, e, n) for s, e, n in edges if remembers_commit(s) or (isinstance(s, heeding) and begins_commit(e))]
    assert {type(state) for state, _, _ in begun} == {*heeding, DeletingVolumes, NeedsOperator}
    for state, event, step in begun:
        assert is_over(step.state) or remembers_commit(step.state), (state, event)
        assert not isinstance(step.state, Completed)
        assert not any(isinstance(record, SnapshotTaken) for record in step.records)


def test_rolled_back_means_every_volume_is_gone(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if isinstance(step.state, RolledBack) and not isinstance(state, RolledBack):
            assert isinstance(event, Answered)
            assert isinstance(event.answer, VolumesDeleted)
            assert not event.answer.kept
            assert SnapshotDropped(snapshot=state.plan.snapshot) in step.records


def test_a_second_pivot_needs_a_typed_answer_that_nothing_happened(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if step.send and isinstance(step.send.command, Pivot) and isinstance(state, Pivoting):
            assert outcome_in(event) in {Outcome.NONE_NO_AGENT, Outcome.NONE, Outcome.NOT_HERE}, (state, event)


def test_no_state_waits_for_nothing(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if (
            step.state is not state
            and step.state != state
            and not is_over(step.state)
            and not isinstance(step.state, NeedsOperator)
        ):
            assert step.wake_after is not None, f"{event} leads to a state without a timer: {step.state}"


def test_an_ended_job_stays_as_it_is(edges: list[Edge[State]]) -> None:
    for state, _event, step in edges:
        if is_over(state):
            assert step.state is state
            assert step == Next(state=state)


def test_every_state_can_still_reach_an_end(whole: Walk[State]) -> None:
    assert whole.everywhere() <= whole.before(whole.to(lambda edge: is_over(edge[2].state)))


def test_without_an_observation_nothing_is_decided_after_a_pivot(edges: list[Edge[State]]) -> None:
    after_pivot = (Pivoting, Holding, Probing, AwaitingHost, Repairing)
    for state, event, step in edges:
        if isinstance(state, after_pivot) and outcome_in(event) is None and not isinstance(event, Started):
            assert not isinstance(step.state, Completed | RolledBack | DeletingVolumes), (state, event)


# ---- a silent host, an operator's word, a lost host --------------------------------------------------------------


def test_an_operators_word_only_asks_the_same_host_again(edges: list[Edge[State]]) -> None:
    """It deletes nothing, ends nothing, and no other host's answer may stand for the one that was asked (A9)."""
    heard = [(s, n) for s, e, n in edges if isinstance(e, ResolveRequested) and n != Next(state=s)]
    kinds = {type(state) for state, _ in heard}
    assert kinds == {Probing, AwaitingHost, NeedsOperator}
    for state, step in heard:
        assert isinstance(state, Probing | AwaitingHost | NeedsOperator)
        assert isinstance(step.state, Probing | AwaitingHost | NeedsOperator)
        assert not step.records
        if step.send is not None:
            assert isinstance(step.send, ToHost)
            assert isinstance(step.send.command, Probe)
            has_answered = isinstance(state, AwaitingHost) and state.elsewhere
            assert step.send.host == state.host or has_answered, (state, step)


def test_only_the_loss_of_its_own_host_ends_a_job_without_an_answer(edges: list[Edge[State]]) -> None:
    ended = [(s, e) for s, e, n in edges if isinstance(n.state, HostGone) and not isinstance(s, HostGone)]
    kinds = {type(state) for state, _ in ended}
    assert kinds == {Pivoting, Holding, Probing, AwaitingHost, Repairing, NeedsOperator}
    for was, event in ended:
        assert isinstance(event, HostLost)
        assert host_of(was) == event.host
    for state, event, step in edges:
        if isinstance(event, HostLost) and event.host != host_of(state):
            assert step == Next(state=state)


def test_a_lost_host_deletes_nothing_that_it_may_know_of(edges: list[Edge[State]]) -> None:
    for state, event, step in edges:
        if not isinstance(event, HostLost):
            continue
        assert not any(isinstance(record, VolumesGone) for record in step.records)
        if isinstance(state, CreatingVolumes):
            continue  # no pivot was ever sent
        assert step.send is None, (state, event)
        if isinstance(step.state, HostGone) and step.state is not state:
            check_kept(step.records, event.standing, spoilt=remembers_commit(state))


def check_kept(records: tuple[Record, ...], standing: tuple[VolumeId, ...], *, spoilt: bool) -> None:
    """Every volume that stands is its disk's leaf on record; a snapshot is kept only whole, and promises little."""
    taken = [record for record in records if isinstance(record, SnapshotTaken)]
    moved = [record for record in records if isinstance(record, ChainSettled)]
    leaves = {disk.new.volume_id for record in taken for disk in record.disks}
    leaves |= {volume for record in moved for _, volume in record.leaves}
    assert leaves == set(standing)
    assert bool(taken) == (standing == plan().new_volumes and not spoilt)
    assert bool(taken) != (SnapshotDropped(snapshot=plan().snapshot) in records)
    for record in taken:
        assert (record.consistency, record.reason) == (Consistency.CRASH, "host_lost")


def test_nothing_is_sent_to_the_host_that_was_lost(edges: list[Edge[State]]) -> None:
    """The engine puts the loss in the place of such a sending: whatever would send it ends, or needs no host."""
    for state, _event, step in edges:
        if isinstance(step.send, ToHost):
            over = advance(state, HostLost(host=step.send.host, standing=plan().new_volumes))
            aims_elsewhere = host_of(state) != step.send.host
            assert isinstance(over.state, HostGone | DeletingVolumes) or aims_elsewhere, state


def host_of(state: State) -> HostId | None:
    """Return the host that a state names, None for one that is over."""
    return None if isinstance(state, Completed | RolledBack | HostGone) else state.host


def test_a_repair_or_a_second_pivot_never_follows_an_operators_word_or_a_loss(edges: list[Edge[State]]) -> None:
    for _state, event, step in edges:
        if isinstance(event, HostLost | ResolveRequested):
            assert step.send is None or not isinstance(step.send.command, Pivot | Repair)
