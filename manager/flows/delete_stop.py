"""How a deletion is given up: what runs is ended at the host, then at the SPM, and the marks are taken back. Pure.

Where one disk's volume has left the chain already there is no way back, and it goes on.
"""

from dataclasses import replace
from typing import Final, assert_never

from common.ids import HostId
from common.messaging.merging import MergeSeen, MergeState, Way
from common.messaging.messages import Failed, Refused
from manager.flows import delete_orders as orders
from manager.flows.base import Answered, CancelRequested, JobEvent, Next, Problem, ResolveRequested, Started, TimedOut
from manager.flows.delete_orders import ASK_AGAIN, HOLD_TRIES, Step
from manager.flows.delete_states import (
    At,
    AwaitingHost,
    Deleted,
    Finishing,
    GivenUp,
    Marking,
    Merging,
    NeedsOperator,
    State,
    Stopping,
)

CANCELLED: Final = Problem(code="job_cancelled", message="the job was cancelled")


def learned(at: At, seen: MergeSeen) -> At:
    """Return where the plan stands after an answer."""
    committed = tuple(dict.fromkeys((*at.committed, *seen.committed)))
    return replace(at, begun=at.begun or seen.begun, committed=committed)


def learned_of_host(at: At, seen: MergeSeen) -> At:
    """Return the same after a host's answer; of one that was only consulted, no more counts than what it has begun."""
    at = orders.heard(at, at.consulted or at.host)
    at = replace(at, begun_by_host=at.begun_by_host or seen.begun)
    return replace(at, begun=at.begun or seen.begun) if at.consulted else learned(at, seen)


def without(state: State, host: HostId) -> Step:
    """Go on without a host that will never answer: what it was told to merge, it may have merged or not.

    Every volume is kept. Where the machine wrote to what was to vanish, only that host knew whether it had gone on to
    the volume below: then both must be compared before the machine is started elsewhere.
    """
    goes_on = isinstance(state, Finishing | Deleted | GivenUp) or (isinstance(state, Stopping) and state.part != "host")
    if goes_on or state.at.host != host:
        return Next(state=state) if goes_on else _without_former(state, host)
    if isinstance(state, Marking):
        why = Problem(code="host_lost", message=f"host {host} was removed before it was asked to merge")
        return orders.stop(state.at, "marks", why, detail=why.message)
    pairs = ", ".join(f"{disk.top.path} above {disk.base.path}" for disk in state.at.round.disks if disk.leaf)
    kept = f"; kept are {pairs}, of which only that host knew which one the machine wrote to last" if pairs else ""
    why = Problem(code="host_lost", message=f"host {host} was removed while it was merging{kept}")
    return orders.stop(replace(state.at, begun=True), "spm", why, detail=why.message)


def _without_former(state: State, host: HostId) -> Step:
    """Go on without a host from which the machine may have come: the one that has it must know by itself."""
    if host not in state.at.unheard:
        return Next(state=state)
    at = orders.heard(state.at, host)
    match state:
        case Merging() | AwaitingHost():
            return orders.merge_anew(at, "check")
        case Stopping():
            return orders.stop(at, "host", state.why, tries=state.tries)
        case _:
            return Next(state=state)


def cancel(at: At) -> Step:
    """End what runs."""
    return orders.stop(at, "host", CANCELLED, detail="cancelled: ending the merge")


def stopping(state: Stopping, event: JobEvent) -> Step:
    """Go on from the end of one part."""
    match event:
        case Answered(answer=MergeSeen() as seen):
            return _ended(state, seen)
        case Answered(answer=Refused() | Failed() as answer):
            if state.tries >= HOLD_TRIES:
                return orders.needs_operator(state.at, replace(state.why, message=answer.message))
            later = replace(state, tries=state.tries + 1, pausing=True)
            return Next(
                state=later, wake_after=orders.pause(later.tries), detail=answer.message if later.tries == 1 else ""
            )
        case TimedOut() if state.pausing or state.part == "host":
            if state.part == "host":
                return orders.stop_or_consult(state, host=event.vm_host)
            return orders.stop(state.at, state.part, state.why, tries=state.tries)
        case TimedOut():
            return Next(state=state, wake_after=ASK_AGAIN)
        case Started() | Answered() | CancelRequested() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _ended(state: Stopping, seen: MergeSeen) -> Step:
    if state.part == "host" and state.at.consulted:
        return orders.stop(learned_of_host(state.at, seen), "host", state.why, tries=state.tries)
    at = learned_of_host(state.at, seen) if state.part == "host" else learned(state.at, seen)
    if state.part == "marks":
        return orders.give_up(at, state.why)
    if seen.state in (MergeState.RUNNING, MergeState.UNKNOWN):
        later = replace(state, at=at, tries=min(state.tries + 1, HOLD_TRIES), pausing=True)
        return Next(state=later, wake_after=orders.pause(later.tries))
    if state.part == "host":
        if _is_too_late(at, seen):
            return orders.merge_anew(at, "merge", detail="it cannot be given up any more: a volume has left the chain")
        return orders.stop(at, "spm", state.why)
    return orders.stop(at, "marks", state.why)


def _is_too_late(at: At, seen: MergeSeen) -> bool:
    """Tell whether a machine's chain has lost a volume already."""
    chained = {disk.target for disk in at.round.disks if disk.way is Way.CHAIN}
    return any(disk.target in chained and disk.state is MergeState.MERGED for disk in seen.disks)


def stuck(state: NeedsOperator, event: JobEvent) -> Step:
    """Go on, or give up, when an operator says so."""
    match event:
        case ResolveRequested():
            return orders.merge_anew(state.at, "merge", host=event.vm_host, detail="going on")
        case CancelRequested():
            return cancel(state.at)
        case Started() | Answered() | TimedOut():
            return Next(state=state)
        case _:
            assert_never(event)
