"""A deletion whose machine has left the host that was told to merge, before that host has said what came of it."""

from __future__ import annotations

from dataclasses import replace

from common.messaging.merging import (
    CheckMerge,
    MergeDisks,
    MergeState,
)
from manager.flows.base import (
    Answered,
    CancelRequested,
    HostLost,
    Next,
    Started,
    TimedOut,
    ToHost,
)
from manager.flows.delete import advance
from manager.flows.delete_states import (
    AwaitingHost,
    Finishing,
    Merging,
    State,
    Stopping,
)
from tests.unit.manager.flows.delete_kit import H1, H2, answered, seen, story

GONE = seen(MergeState.UNKNOWN, begun=False, code="vm_not_found")
UNSURE = seen(MergeState.UNKNOWN, begun=False, code="merge_failed")


def left_behind() -> Next[State]:
    """Let H1 be told to merge, and fall silent; then H2 has the machine, and cannot tell what became of its volumes."""
    nxt = story(Started(), answered(seen(MergeState.IDLE, begun=False)), TimedOut(vm_host=H2), TimedOut(vm_host=H2))
    assert isinstance(nxt.send, ToHost)
    assert nxt.send.host == H2
    nxt = advance(nxt.state, Answered(answer=UNSURE, vm_host=H2))
    assert nxt.send is None
    return advance(nxt.state, TimedOut(vm_host=H2))


def test_the_host_that_the_machine_has_left_is_asked_what_it_had_begun() -> None:
    consulted = left_behind()
    assert isinstance(consulted.send, ToHost)
    assert consulted.send.host == H1
    assert isinstance(consulted.send.command, CheckMerge)
    nxt = advance(consulted.state, Answered(answer=replace(GONE, begun=True), vm_host=H2))
    assert isinstance(nxt.send, ToHost)
    assert nxt.send.host == H2
    assert isinstance(nxt.send.command, MergeDisks)
    assert nxt.send.command.begun
    assert isinstance(advance(nxt.state, Answered(answer=seen(MergeState.MERGED), vm_host=H2)).state, Finishing)


def test_whatever_else_the_former_host_says_counts_for_nothing() -> None:
    for answer in (seen(MergeState.MERGED, begun=False, committed=True), seen(MergeState.COLD, begun=False), GONE):
        nxt = advance(left_behind().state, Answered(answer=answer, vm_host=H2))
        assert isinstance(nxt.state, Merging)
        assert isinstance(nxt.send, ToHost)
        assert nxt.send.host == H2
        assert not nxt.state.at.committed
        assert H1 not in nxt.state.at.unheard


def test_a_former_host_that_is_silent_too_is_asked_each_second_time() -> None:
    nxt, asked = left_behind(), []
    for _ in range(6):
        nxt = advance(nxt.state, TimedOut(vm_host=H2))
        if isinstance(nxt.send, ToHost):
            asked.append(nxt.send.host)
    assert isinstance(nxt.state, AwaitingHost)
    assert asked == [H2, H1, H2, H1, H2]
    assert advance(nxt.state, HostLost(host=H1)).send is not None


def test_given_up_where_the_machine_has_moved_it_ends_what_runs_there() -> None:
    nxt = advance(left_behind().state, CancelRequested())
    assert isinstance(nxt.send, ToHost)
    assert nxt.send.host == H2
    for host in (H1, H2):
        nxt = advance(nxt.state, TimedOut(vm_host=H2))
        assert isinstance(nxt.send, ToHost)
        assert nxt.send.host == host
    nxt = advance(nxt.state, TimedOut(vm_host=H2))
    nxt = advance(nxt.state, Answered(answer=replace(GONE, begun=True), vm_host=H2))
    assert isinstance(nxt.state, Stopping)
    assert isinstance(nxt.send, ToHost)
    assert nxt.send.host == H2
    assert isinstance(nxt.send.command, CheckMerge)
    assert nxt.send.command.begun
