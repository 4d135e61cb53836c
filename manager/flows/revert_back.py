"""The way out of going back: it did not come to it, and the new, empty volumes go again. Pure; see `revert.py`."""

from dataclasses import replace
from typing import assert_never

from common.messaging.messages import DeleteVolumes, Failed, Kept, Refused, VolumesDeleted
from manager.flows.base import (
    Answered,
    CancelRequested,
    JobEvent,
    Next,
    Problem,
    ResolveRequested,
    Started,
    TimedOut,
    ToSpm,
    VolumesGone,
)
from manager.flows.revert_drop import why_kept
from manager.flows.revert_states import (
    RETRIES,
    AwaitingHost,
    DeletingVolumes,
    NeedsOperator,
    RolledBack,
    State,
    Unsettled,
)
from manager.flows.snapshot_states import ASK_AGAIN, MAX_TRIES, SHORT_PAUSE, STANDING

Step = Next[State]


def back_out(state: Unsettled, why: Problem, *, tries: int = 0) -> Step:
    """End without the effect. New volumes are proven to be nowhere (or were never shown to a host): the SPM deletes
    them. An undo has made none, and leaves the preview as it was."""
    plan = state.plan
    if not plan.makes_volumes:
        return Next(state=RolledBack(plan=plan, why=why), detail=why.message)
    deleting = DeletingVolumes(plan=plan, host=state.host, why=why, tries=tries)
    return replace(_send_delete(deleting), detail=f"{why.message}; deleting the new volumes")


def _send_delete(state: DeletingVolumes) -> Step:
    command = DeleteVolumes(vm_id=state.plan.vm, disks=state.plan.moves)
    send = ToSpm(pool=state.plan.pool, command=command, deadline_after=STANDING)
    return Next(state=state, send=send, wake_after=ASK_AGAIN)


def deleting(state: DeletingVolumes, event: JobEvent) -> Step:
    """Go on from a deletion that was asked for; silence changes nothing, the SPM is asked until it answers."""
    match event:
        case Answered(answer=VolumesDeleted() as deleted):
            return _deleted(state, deleted)
        case Answered(answer=Refused() | Failed() as answer) if state.failures < RETRIES:
            again = replace(state, failures=state.failures + 1)
            return Next(state=again, wake_after=min(SHORT_PAUSE * again.failures, ASK_AGAIN), detail=answer.message)
        case Answered(answer=Refused() | Failed()):
            return give_up(state, replace(state.why, code="attempts_exhausted"))
        case TimedOut():
            return _send_delete(state)
        case Started() | CancelRequested() | ResolveRequested() | Answered():
            return Next(state=state)
        case _:
            assert_never(event)


def _deleted(state: DeletingVolumes, deleted: VolumesDeleted) -> Step:
    gone = VolumesGone(volumes=deleted.gone)
    if not deleted.kept:
        return Next(state=RolledBack(plan=state.plan, why=state.why), records=(gone,), detail=state.why.message)
    code, seen = why_kept(deleted)
    message = f"{seen} after: {state.why.message}"
    if Kept.NOT_EMPTY not in {kept.why for kept in deleted.kept} and state.tries < MAX_TRIES:
        asking = AwaitingHost(plan=state.plan, host=state.host, why=state.why, tries=state.tries + 1)
        return Next(state=asking, records=(gone,), wake_after=SHORT_PAUSE * asking.tries, detail=message)
    return replace(give_up(state, Problem(code=code, message=message)), records=(gone,))


def give_up(state: Unsettled | NeedsOperator, why: Problem) -> Step:
    stuck = NeedsOperator(plan=state.plan, host=state.host, why=why)
    return Next(state=stuck, detail=f"an operator must decide: {why.message}")
