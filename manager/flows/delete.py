"""The flow that deletes snapshots, one after the other: every state, and what follows. Pure.

    Marking --marked--> Merging <--no machine has it open / merged--> ColdMerging
       |                  |  `-- silent: AwaitingHost -> Merging
       | not as planned   | top is in no chain any more, its data in base (recorded)
       v                  v
    Stopping(marks)    Finishing --gone--> Marking of the next snapshot, or Deleted
       |                  `-- still open, or written to meanwhile: Merging
       v
    GivenUp <-- Stopping(marks) <-- Stopping(spm) <-- Stopping(host) <-- cancelled
                                                     no room, tries exhausted: NeedsOperator

Who merges is found out by asking the machine's host: QEMU, while the machine runs; the SPM, where no machine has the
volumes open. Both begin and return: how far it is, short looks say, so that no queue's task lasts as long as a merge.
That something has ended they tell with a report, and then it is looked at before its time.
That a merge is over is read from the chain (a host's MERGED), never from a job's end. Whatever is half done is safe to
go on with: what stands on `top` shows the same before, during and after. `delete_stop.py` has the way back.
"""

from dataclasses import replace
from typing import assert_never

from common.ids import HostId
from common.messaging.merging import MergeSeen, MergeState
from common.messaging.messages import Failed, Kept, Refusal, Refused, VolumesDeleted
from manager.flows import delete_orders as orders
from manager.flows import delete_stop
from manager.flows.base import (
    Answered,
    CancelRequested,
    Event,
    HostLost,
    JobEvent,
    Next,
    Problem,
    ResolveRequested,
    Started,
    TimedOut,
    VolumesGone,
)
from manager.flows.delete_orders import ASK_AGAIN, HOLD_TRIES, MAX_TRIES, Step
from manager.flows.delete_states import (
    At,
    AwaitingHost,
    ColdMerging,
    Deleted,
    Finishing,
    GivenUp,
    Marking,
    Merging,
    NeedsOperator,
    Plan,
    State,
    Stopping,
)


def begin(plan: Plan, host: HostId) -> State:
    """Return the first state of a deletion on a vm that the inventory has on `host`; feed it Started."""
    return Marking(at=At(plan=plan, host=host))


def advance(state: State, event: Event) -> Step:
    """Return what follows from `event` in `state`. Total: every event is allowed in every state."""
    match event:
        case HostLost():
            return delete_stop.without(state, event.host)
        case Answered(answer=Refused(why=Refusal.BUSY)):
            return Next(state=state)  # another handler is at it, whose answer will come
        case _:
            return _follow(state, event)


def _follow(state: State, event: JobEvent) -> Step:
    match state:
        case Marking():
            return _marking(state, event)
        case Merging():
            return _merging(state, event)
        case AwaitingHost():
            return _awaiting(state, event)
        case ColdMerging():
            return _cold(state, event)
        case Finishing():
            return _finishing(state, event)
        case Stopping():
            return delete_stop.stopping(state, event)
        case NeedsOperator():
            return delete_stop.stuck(state, event)
        case Deleted() | GivenUp():
            return Next(state=state)
        case _:
            assert_never(state)


# ---- Marking ----------------------------------------------------------------------------------------------------


def _marking(state: Marking, event: JobEvent) -> Step:
    match event:
        case Started():
            return orders.mark(state.at)
        case Answered(answer=MergeSeen()):
            return orders.merge_anew(state.at, "merge", host=event.vm_host, detail=f"asking host {state.at.host}")
        case Answered(answer=Failed() as failed):
            why = Problem(code=failed.code, message=failed.message, hint=failed.hint)
            return orders.stop(state.at, "marks", why, detail=why.message)
        case Answered(answer=Refused() as refused):
            why = _not_begun("the SPM", refused)
            if state.tries >= HOLD_TRIES:
                return orders.stop(state.at, "marks", why, detail=why.message)
            held = replace(state, tries=state.tries + 1, why=why)
            return Next(state=held, wake_after=orders.pause(held.tries), detail=why.message if held.tries == 1 else "")
        case TimedOut() if state.why is not None:
            return orders.mark(state.at, tries=state.tries)
        case TimedOut():
            return Next(state=state, wake_after=ASK_AGAIN)  # the outbox sends it until the SPM answers
        case CancelRequested():
            return orders.stop(state.at, "marks", delete_stop.CANCELLED, detail="cancelled")
        case Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _not_begun(who: str, refused: Refused) -> Problem:
    return Problem(code=refused.code or "host_unreachable", message=f"{who} cannot begin: {refused.message}")


# ---- Merging, AwaitingHost --------------------------------------------------------------------------------------


def _merging(state: Merging, event: JobEvent) -> Step:
    match event:
        case Answered(answer=MergeSeen() as seen):
            return _seen(state, seen, event.vm_host)
        case Answered(answer=Refused() as refused):
            return _again(state, _not_begun(f"host {state.at.host}", refused))
        case Answered(answer=Failed() as failed):
            return _again(state, Problem(code=failed.code, message=failed.message, hint=failed.hint))
        case TimedOut() if state.pausing:
            return orders.merge_or_consult(state, host=event.vm_host)
        case TimedOut():
            silence = f"host {state.at.consulted or state.at.host} did not answer in time"
            # What it was told it may have begun.
            at = replace(state.at, begun=True)
            return orders.await_host(at, Problem(code="host_unreachable", message=silence))
        case CancelRequested():
            return delete_stop.cancel(state.at)
        case Answered() | Started() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _awaiting(state: AwaitingHost, event: JobEvent) -> Step:
    match event:
        case Answered(answer=MergeSeen() as seen):
            return _seen(Merging(at=state.at, order="check"), seen, event.vm_host)
        case Answered(answer=Refused() | Failed() as answer):
            why = Problem(code=answer.code or "host_unreachable", message=answer.message)
            return Next(state=replace(state, why=why), wake_after=orders.pause(MAX_TRIES))
        case TimedOut():
            asking = orders.merge_or_consult(Merging(at=state.at, order="check"), host=event.vm_host)
            return replace(asking, state=replace(state, at=asking.state.at), wake_after=ASK_AGAIN)
        case ResolveRequested():
            return orders.merge_anew(state.at, "check", host=event.vm_host, detail="asking again")
        case CancelRequested():
            return delete_stop.cancel(state.at)
        case Answered() | Started():
            return Next(state=state)
        case _:
            assert_never(event)


def _seen(state: Merging, seen: MergeSeen, vm_host: HostId | None) -> Step:
    at = delete_stop.learned_of_host(state.at, seen)
    if at.consulted:
        return orders.merge(replace(state, at=at, order="merge"), host=vm_host)
    state = replace(state, at=at)
    why = orders.problem_in(seen, f"host {at.host}")
    match seen.state:
        case MergeState.MERGED:
            return orders.finish(at, tries=state.tries)
        case MergeState.RUNNING:
            return _running(state, seen)
        case MergeState.COLD if state.tries < MAX_TRIES:
            targets = {disk.target for disk in seen.disks if disk.state is MergeState.COLD}
            cold = tuple(disk for disk in at.round.disks if disk.target in targets)
            return orders.cold(at, cold, tries=state.tries)
        case MergeState.IDLE | MergeState.IN_USE if why.code == "storage_full":
            return orders.needs_operator(at, why)
        case MergeState.IDLE | MergeState.IN_USE | MergeState.COLD:
            return _again(replace(state, order="merge"), why)
        case MergeState.UNKNOWN if state.tries < MAX_TRIES:
            return _again(state, why, host=vm_host)
        case MergeState.UNKNOWN:
            return orders.await_host(at, why)
        case _:
            assert_never(seen.state)


def _running(state: Merging, seen: MergeSeen) -> Step:
    progress = orders.progress_of(seen)
    detail = f"host {state.at.host} merges {len(seen.disks)} disk(s)" if state.order == "merge" else ""
    going = replace(state, order="check", progress=progress, looks=state.looks + 1, pausing=True, why=None)
    return Next(state=going, wake_after=orders.look_pause(state.looks), detail=detail)


def _again(state: Merging, why: Problem, host: HostId | None = None) -> Step:
    """Try once more a little later; give up what has changed nothing, and leave the rest to an operator."""
    if state.tries >= MAX_TRIES:
        if state.at.begun:
            return orders.needs_operator(state.at, why)
        return orders.stop(state.at, "host", why, detail=why.message)
    at = state.at if host is None else replace(state.at, host=host)
    later = replace(state, at=at, tries=state.tries + 1, pausing=True, why=why)
    return Next(state=later, wake_after=orders.pause(later.tries), detail=f"{why.message}; trying again")


# ---- ColdMerging ------------------------------------------------------------------------------------------------


def _cold(state: ColdMerging, event: JobEvent) -> Step:
    match event:
        case Answered(answer=MergeSeen() as seen):
            return _seen_cold(state, seen)
        case Answered(answer=Refused() as refused) if state.tries < HOLD_TRIES:
            return _cold_again(state, _not_begun("the SPM", refused))
        case Answered(answer=Failed() as failed) if state.tries < MAX_TRIES:
            return _cold_again(state, Problem(code=failed.code, message=failed.message, hint=failed.hint))
        case Answered(answer=Failed() | Refused() as answer):
            return orders.needs_operator(state.at, Problem(code=answer.code or "merge_failed", message=answer.message))
        case TimedOut() if state.pausing:
            return orders.ask_spm(state)
        case TimedOut():
            return Next(state=state, wake_after=ASK_AGAIN)
        case CancelRequested():
            return delete_stop.cancel(replace(state.at, begun=True))
        case Answered() | Started() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _seen_cold(state: ColdMerging, seen: MergeSeen) -> Step:
    at = delete_stop.learned(state.at, seen)
    why = orders.problem_in(seen, "the SPM")
    match seen.state:
        case MergeState.MERGED:
            # The definition, and whether the machine was started meanwhile, are the host's matter.
            told = f"the SPM has merged {len(state.disks)} disk(s)"
            return orders.merge_anew(at, "check", tries=state.tries + 1, detail=told)
        case MergeState.RUNNING:
            progress = orders.progress_of(seen)
            going = replace(state, at=at, progress=progress, looks=state.looks + 1, pausing=True, why=None)
            return Next(state=going, wake_after=orders.look_pause(state.looks))
        case _ if why.code == "storage_full" or state.tries >= MAX_TRIES:
            return orders.needs_operator(at, why)
        case MergeState.IN_USE | MergeState.UNKNOWN | MergeState.COLD:
            later = Merging(at=at, order="merge", tries=state.tries + 1, pausing=True, why=why)
            return Next(state=later, wake_after=orders.pause(later.tries), detail=f"{why.message}; asking the host")
        case MergeState.IDLE:
            return _cold_again(replace(state, at=at), why)
        case _:
            assert_never(seen.state)


def _cold_again(state: ColdMerging, why: Problem) -> Step:
    later = replace(state, tries=state.tries + 1, pausing=True, why=why)
    detail = f"{why.message}; trying again" if state.tries == 0 else ""
    return Next(state=later, wake_after=orders.pause(later.tries), detail=detail)


# ---- Finishing --------------------------------------------------------------------------------------------------


def _finishing(state: Finishing, event: JobEvent) -> Step:
    match event:
        case Answered(answer=VolumesDeleted(kept=()) as deleted):
            nxt = orders.next_round(state.at, f"snapshot {state.at.round.name} is deleted")
            return replace(nxt, records=(VolumesGone(volumes=deleted.gone), *nxt.records))
        case Answered(answer=VolumesDeleted() as deleted):
            return replace(_kept(state, deleted), records=(VolumesGone(volumes=deleted.gone),))
        case Answered(answer=Refused() | Failed() as answer):
            why = Problem(code=answer.code or "spm_unreachable", message=f"the SPM cannot delete: {answer.message}")
            if state.tries >= HOLD_TRIES:
                return orders.needs_operator(state.at, why)
            later = replace(state, tries=state.tries + 1, why=why)
            return Next(
                state=later, wake_after=orders.pause(later.tries), detail=why.message if later.tries == 1 else ""
            )
        case TimedOut() if state.why is not None:
            return orders.finish(state.at, tries=state.tries, again=True)
        case TimedOut():
            return Next(state=state, wake_after=ASK_AGAIN)
        case Answered() | Started() | CancelRequested() | ResolveRequested():
            return Next(state=state)  # there is no way back from here: the data of two volumes is one
        case _:
            assert_never(event)


def _kept(state: Finishing, deleted: VolumesDeleted) -> Step:
    """Ask the host again: somebody still has a volume open, or the machine was started and has written to it."""
    reasons = {kept.why for kept in deleted.kept}
    message = f"{len(deleted.kept)} volume(s) kept ({', '.join(sorted(reasons))})"
    code = "locking_unproven" if Kept.LOCKING_UNPROVEN in reasons else "volume_in_use"
    why = Problem(code=code, message=message)
    if state.tries >= MAX_TRIES:
        return orders.needs_operator(state.at, why)
    later = Merging(at=state.at, order="merge", tries=state.tries + 1, pausing=True, why=why)
    return Next(state=later, wake_after=orders.pause(later.tries), detail=f"{message}; asking the host")
