"""The flow of a deletion: every reachable state with every event, held against what may never happen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from common.messaging.merging import (
    CheckMerge,
    FinishMerge,
    MarkMerge,
    MergeDisks,
    MergeSeen,
    MergeState,
    MergeVolumes,
)
from common.messaging.messages import Kept, KeptVolume, Refusal, Refused, VolumesDeleted
from manager.flows.base import (
    Answered,
    CancelRequested,
    Event,
    HostLost,
    Next,
    Problem,
    ResolveRequested,
    SnapshotMerged,
    SnapshotsMarked,
    Started,
    TimedOut,
    ToHost,
    VolumesGone,
)
from manager.flows.delete import advance, begin
from manager.flows.delete_orders import HOLD_TRIES, MAX_TRIES
from manager.flows.delete_states import (
    AwaitingHost,
    ColdMerging,
    Deleted,
    Finishing,
    GivenUp,
    Marking,
    Merging,
    NeedsOperator,
    State,
    Stopping,
    is_over,
    problem_of,
)
from manager.store import codec
from tests.unit.manager.flows.delete_kit import (
    EVENTS,
    H1,
    H2,
    PLAN,
    TOPS,
    answered,
    seen,
    story,
)
from tests.unit.manager.flows.walking import Edge, walk

pytestmark = pytest.mark.xdist_group("delete-walk")  # the walk is made once, not once per worker


def shortened(state: State) -> State:
    """Keep the walk finite: how often something was looked at or tried matters only near its bounds."""
    if isinstance(state, Merging | ColdMerging):
        state = replace(state, looks=min(state.looks, 1))
    if isinstance(state, Merging | ColdMerging | Marking | Finishing | Stopping) and 0 < state.tries < MAX_TRIES - 1:
        state = replace(state, tries=MAX_TRIES - 1)
    if isinstance(state, Merging | ColdMerging | Marking | Finishing | Stopping) and (
        MAX_TRIES < state.tries < HOLD_TRIES - 1
    ):
        state = replace(state, tries=HOLD_TRIES - 1)
    if (why := problem_of(state)) is not None:
        code = why.code if why.code == "host_lost" else "why"
        state = replace(state, why=Problem(code=code, message="why"))  # type: ignore[arg-type]
    return state


def step(state: State, event: Event) -> Next[State]:
    """Advance, and go on from where that is near a bound."""
    nxt = advance(state, event)
    return nxt if nxt.state is state else replace(nxt, state=shortened(nxt.state))


@cache
def walked() -> tuple[Edge[State], ...]:
    """Return every step from every state that can be reached; a job is told but once that it has started."""
    begun = advance(begin(PLAN, H1), Started())
    return (begin(PLAN, H1), Started(), begun), *walk(begun.state, EVENTS, step, lambda state: state).edges


def test_the_walk_reaches_every_state() -> None:
    reached = {type(state) for state, _, _ in walked()}
    assert reached == {
        Marking,
        Merging,
        AwaitingHost,
        ColdMerging,
        Finishing,
        Stopping,
        NeedsOperator,
        Deleted,
        GivenUp,
    }


def test_volumes_are_finished_only_after_a_host_has_said_that_they_are_merged() -> None:
    for state, event, nxt in walked():
        if nxt.send is None or not isinstance(nxt.send.command, FinishMerge):
            continue
        if isinstance(state, Finishing):
            assert isinstance(event, TimedOut)
            continue
        assert isinstance(state, Merging | AwaitingHost)
        assert isinstance(event, Answered)
        assert isinstance(event.answer, MergeSeen)
        assert event.answer.state is MergeState.MERGED
        assert any(isinstance(record, SnapshotMerged) for record in nxt.records)


def test_what_is_merged_is_on_record_before_its_volume_goes() -> None:
    for _, _, nxt in walked():
        gone = [isinstance(record, VolumesGone) for record in nxt.records]
        assert not any(gone) or gone[0]
        if isinstance(nxt.state, Deleted) and nxt.records:
            assert any(isinstance(record, SnapshotMerged) for record in nxt.records)


def test_only_what_a_host_saw_committed_is_called_committed() -> None:
    for _, event, nxt in walked():
        if nxt.send is not None and isinstance(nxt.send.command, FinishMerge):
            assert set(nxt.send.command.committed) <= set(TOPS[:1])
            if isinstance(event, Answered) and isinstance(event.answer, MergeSeen) and event.answer.committed:
                assert nxt.send.command.committed == TOPS[:1]


def test_it_is_given_up_only_after_everything_was_ended_and_unmarked() -> None:
    for state, event, nxt in walked():
        if isinstance(nxt.state, GivenUp) and not isinstance(state, GivenUp):
            assert isinstance(state, Stopping)
            assert state.part == "marks"
            assert isinstance(event, Answered)
            assert isinstance(event.answer, MergeSeen)


def test_a_snapshot_whose_volume_may_have_changed_is_never_called_whole_again() -> None:
    for _, _, nxt in walked():
        if isinstance(nxt.state, GivenUp):
            for record in nxt.records:
                assert isinstance(record, SnapshotsMarked)
                current = nxt.state.at.round.snapshot in record.snapshots
                assert not current or (record.state == "half_merged") == nxt.state.at.begun


def test_a_merge_that_may_run_is_ended_before_the_marks_are_taken_back() -> None:
    for state, _, nxt in walked():
        undoing = nxt.send is not None and isinstance(nxt.send.command, MarkMerge) and nxt.send.command.undo
        if undoing and not isinstance(state, Marking):
            assert isinstance(state, Stopping)
            assert state.part in ("spm", "marks")


def test_it_cannot_be_cancelled_once_a_volume_has_left_the_chain() -> None:
    at = begin(PLAN, H1).at
    stopping = Stopping(at=at, part="host", why=Problem(code="job_cancelled", message=""))
    nxt = advance(stopping, Answered(answer=seen(MergeState.IDLE, MergeState.MERGED), vm_host=H1))
    assert isinstance(nxt.state, Merging)
    assert nxt.send is not None
    assert isinstance(nxt.send.command, MergeDisks)


def test_every_job_waits_for_an_answer_a_timer_or_an_operator() -> None:
    """A state that is entered has something outstanding (sent now) or a timer; only an operator's has neither."""
    for state, _, nxt in walked():
        if nxt.state == state or is_over(nxt.state) or isinstance(nxt.state, NeedsOperator):
            continue
        assert nxt.send is not None or nxt.wake_after is not None


def test_nothing_is_outstanding_while_it_pauses_and_a_timer_ends_every_pause() -> None:
    for _, _, nxt in walked():
        if getattr(nxt.state, "pausing", False):
            assert nxt.send is None
            again = advance(nxt.state, TimedOut(vm_host=H1))
            assert again.send is not None


def test_busy_changes_nothing_and_what_is_over_stays_over() -> None:
    busy = Answered(answer=Refused(why=Refusal.BUSY, message="at it"), vm_host=H1)
    for state, event, nxt in walked():
        if event == busy or is_over(state):
            assert nxt == Next(state=state)


def test_an_operator_can_go_on_or_give_up() -> None:
    stuck = [state for state, _, _ in walked() if isinstance(state, NeedsOperator)]
    assert stuck
    for state in stuck:
        resolved = advance(state, ResolveRequested(vm_host=H2)).send
        assert isinstance(resolved, ToHost)
        assert resolved.host == H2
        assert isinstance(resolved.command, MergeDisks)
        cancelled = advance(state, CancelRequested()).send
        assert cancelled is not None
        assert isinstance(cancelled.command, CheckMerge)
        assert cancelled.command.abort


def test_what_storage_keeps_though_the_host_calls_it_merged_is_an_operators_matter_in_the_end() -> None:
    """Host and SPM contradict each other: neither is believed, and they are not asked for ever."""
    state: State = Merging(at=begin(PLAN, H1).at)
    kept = VolumesDeleted(gone=TOPS[1:], kept=(KeptVolume(volume_id=TOPS[0], why=Kept.NOT_EMPTY),))
    for _ in range(MAX_TRIES + 1):
        state = advance(state, Answered(answer=seen(MergeState.MERGED, MergeState.MERGED), vm_host=H1)).state
        assert isinstance(state, Finishing)
        state = advance(state, Answered(answer=kept, vm_host=H1)).state
        if isinstance(state, NeedsOperator):
            assert state.why.code == "volume_in_use"
            return
        assert isinstance(state, Merging)
        state = advance(state, TimedOut()).state
    pytest.fail("they are asked for ever")


def test_a_lost_host_is_never_asked_again_and_everything_is_kept() -> None:
    for state, event, nxt in walked():
        if isinstance(event, HostLost) and nxt.state != state:
            assert event.host not in (nxt.state.at.unheard if nxt.state.at.host != event.host else ())
            if state.at.host != event.host:
                assert isinstance(nxt.send, ToHost)
                assert nxt.send.host == state.at.host  # it was only a former host: the machine's own is asked
                continue
            assert isinstance(nxt.state, Stopping)
            assert nxt.state.part == ("marks" if isinstance(state, Marking) else "spm")
            assert nxt.state.at.begun == (state.at.begun or not isinstance(state, Marking))
            assert nxt.state.why.code == "host_lost"


def test_a_command_to_a_lost_host_is_never_what_a_job_waits_for() -> None:
    """The engine tells a flow of a lost host in the place of a command to it: the flow must then go another way."""
    for state, _, nxt in walked():
        asks = isinstance(state, Merging | AwaitingHost | Stopping)
        if isinstance(nxt.send, ToHost) and nxt.send.host in (state.at.host, *(state.at.unheard if asks else ())):
            instead = advance(state, HostLost(host=nxt.send.host))
            assert instead.send is not None
            assert not isinstance(instead.send, ToHost) or instead.send.host != nxt.send.host


def test_without_room_an_operator_is_asked_at_once() -> None:
    merging = Merging(at=begin(PLAN, H1).at)
    nxt = advance(merging, Answered(answer=seen(MergeState.IDLE, code="storage_full"), vm_host=H1))
    assert isinstance(nxt.state, NeedsOperator)
    assert nxt.state.why.code == "storage_full"


def test_every_state_survives_the_database() -> None:
    adapter = codec.state_adapter("delete")
    for state in {state for state, _, _ in walked()}:
        assert adapter.validate_json(codec.dump(adapter, state)) == state


LIVE = (answered(seen(MergeState.IDLE)), answered(seen(MergeState.MERGED)), answered(VolumesDeleted(gone=TOPS)))


def test_three_snapshots_are_deleted_one_after_the_other_on_a_running_machine() -> None:
    nxt = story(Started(), *LIVE, *LIVE)
    assert isinstance(nxt.state, Deleted)
    assert "second" in nxt.detail
    after_first = story(Started(), *LIVE)
    assert isinstance(after_first.state, Marking)
    assert after_first.state.at.number == 2  # of the one between only the record went
    assert [type(record) for record in after_first.records] == [VolumesGone, SnapshotMerged, SnapshotMerged]


def test_a_stopped_machine_is_merged_by_the_spm_and_redefined_by_its_host() -> None:
    cold = (Started(), answered(seen(MergeState.IDLE)), answered(seen(MergeState.COLD, MergeState.MERGED)))
    nxt = story(*cold)
    assert nxt.send is not None
    assert isinstance(nxt.send.command, MergeVolumes)
    assert [disk.target for disk in nxt.send.command.disks] == ["vda"]  # the other one needs nothing any more
    nxt = story(*cold, answered(seen(MergeState.MERGED)))
    assert nxt.send is not None
    assert isinstance(nxt.send.command, CheckMerge)
    nxt = story(*cold, answered(seen(MergeState.MERGED)), answered(seen(MergeState.MERGED)))
    assert isinstance(nxt.state, Finishing)


@pytest.mark.parametrize("number", [1, 10, 60])
def test_the_looks_at_a_long_merge_grow_rare_but_never_stop(number: int) -> None:
    nxt = story(Started(), answered(seen(MergeState.IDLE)))
    for _ in range(number):
        nxt = advance(nxt.state, answered(seen(MergeState.RUNNING)))
        assert nxt.wake_after is not None
        assert 0.2 < nxt.wake_after.total_seconds() <= 5
        nxt = advance(nxt.state, TimedOut(vm_host=H1))
        assert nxt.send is not None
        assert isinstance(nxt.send.command, CheckMerge)
