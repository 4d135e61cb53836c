"""The second half of going back: the machine is where it should be, and what was given up goes to the trash. Pure.

What is given up holds data that stands nowhere else. So it goes only with the same proofs as any volume: a host has
answered, behind its fence, that it is nowhere, and the SPM holds its lock meanwhile. The command names exactly the
volumes that may hold data all the same. `revert.py` has the first half and the map.
"""

from dataclasses import replace
from typing import assert_never

from common.ids import HostId
from common.messaging.messages import (
    DeleteVolumes,
    Failed,
    Kept,
    LeavesObserved,
    Outcome,
    Probe,
    Refused,
    VolumesDeleted,
)
from manager.flows.base import (
    Answered,
    BranchSettled,
    CancelRequested,
    JobEvent,
    Next,
    Problem,
    ResolveRequested,
    Started,
    TimedOut,
    ToHost,
    ToSpm,
    VolumesGone,
)
from manager.flows.revert_states import (
    PROBE_PATIENCE,
    RETRIES,
    Completed,
    Dropping,
    NeedsOperator,
    Plan,
    Proving,
    RolledBack,
    State,
)
from manager.flows.snapshot_states import (
    ASK_AGAIN,
    MAX_TRIES,
    SHORT_PAUSE,
    STANDING,
    cancelled,
)

Step = Next[State]

_KEPT_CODES = {
    Kept.NOT_EMPTY: "volume_not_empty",
    Kept.LOCKING_UNPROVEN: "locking_unproven",
    Kept.IN_USE: "volume_in_use",
}
"""Worst first: what is told when volumes were kept for several reasons."""


def why_kept(deleted: VolumesDeleted) -> tuple[str, str]:
    """Return the code and the words for volumes that the SPM has kept."""
    reasons = {kept.why for kept in deleted.kept}
    worst = next(code for kept, code in _KEPT_CODES.items() if kept in reasons)
    return worst, f"{len(deleted.kept)} volume(s) kept ({', '.join(sorted(reasons))})"


def settled(plan: Plan, host: HostId) -> Step:
    """Record that the machine is where it should be, and go on to what is given up."""
    record = BranchSettled(vm=plan.vm, leaves=plan.leaves)
    if not plan.drops:
        return Next(state=Completed(plan=plan), records=(record,), detail="nothing is to be given up")
    return replace(prove(plan, host, settled=True), records=(record,))


def advance(state: Proving | Dropping, event: JobEvent) -> Step:
    """Return what follows from `event` in `state`."""
    return _proving(state, event) if isinstance(state, Proving) else _dropping(state, event)


# ---- Proving ----------------------------------------------------------------------------------------------------


def prove(plan: Plan, host: HostId, *, settled: bool) -> Step:
    """Ask the machine's host whether what is given up is nowhere, behind a fence for every older attempt."""
    command = Probe(vm_id=plan.vm, disks=plan.drops)
    send = ToHost(host=host, command=command, deadline_after=STANDING)
    detail = f"asking host {host} to prove that {len(plan.drops)} volume(s) are used nowhere"
    return Next(
        state=Proving(plan=plan, host=host, settled=settled),
        send=send,
        wake_after=PROBE_PATIENCE,
        detail=detail,
    )


def _proving(state: Proving, event: JobEvent) -> Step:
    """Go on from a question about what is given up. A commit has changed nothing before it is answered."""
    match event:
        case Started() if not state.plan.drops:
            return settled(state.plan, state.host)
        case Started():
            return prove(state.plan, state.host, settled=state.settled)
        case Answered(answer=LeavesObserved() as seen):
            return _seen(state, seen, event.vm_host)
        case Answered(answer=Refused() | Failed() as answer):
            code = answer.code or "host_unreachable"
            return _later(state, Problem(code=code, message=f"host {state.host} cannot look: {answer.message}"))
        case TimedOut() if state.why is not None and state.why.code == "vm_not_found":
            return _again(state, event.vm_host or state.host)
        case TimedOut():
            return _again(state, state.host)
        case CancelRequested() if not state.settled:
            return Next(state=RolledBack(plan=state.plan, why=cancelled()), detail="cancelled; the preview stays")
        case CancelRequested() | Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _again(state: Proving, host: HostId) -> Step:
    asked = prove(state.plan, host, settled=state.settled)
    return replace(asked, state=replace(state, host=host, why=None), detail="")


def _seen(state: Proving, seen: LeavesObserved, vm_host: HostId | None) -> Step:
    match seen.outcome:
        case Outcome.NONE | Outcome.NONE_NO_AGENT:
            return _begin_drop(state)
        case Outcome.NOT_HERE:
            if vm_host is not None and vm_host != state.host and state.tries < MAX_TRIES:
                return _again(replace(state, tries=state.tries + 1), vm_host)
            return _later(state, Problem(code="vm_not_found", message=f"the vm is not on host {state.host}"))
        case Outcome.UNKNOWN:
            return _later(state, Problem(code=seen.code, message=f"host {state.host} cannot tell: {seen.message}"))
        case Outcome.ALL_NEW | Outcome.BAD | Outcome.NONE_ROLLED_BACK:
            message = f"what is to be given up is in use on host {state.host}: {seen.message or seen.outcome}"
            return _not_given_up(state, Problem(code="volume_in_use", message=message))
        case _:
            assert_never(seen.outcome)


def _later(state: Proving, why: Problem) -> Step:
    if state.tries >= RETRIES:
        return _not_given_up(state, why)
    waiting = replace(state, tries=state.tries + 1, why=why)
    return Next(state=waiting, wake_after=min(SHORT_PAUSE * waiting.tries, ASK_AGAIN), detail=why.message)


def _not_given_up(state: Proving, why: Problem) -> Step:
    """End a commit without effect: the preview stays. Everything else has had its effect already."""
    if not state.settled:
        return Next(state=RolledBack(plan=state.plan, why=why), detail=f"{why.message}; the preview stays")
    return _stuck(state, why)


# ---- Dropping ---------------------------------------------------------------------------------------------------


def _begin_drop(state: Proving) -> Step:
    """Go on to the deletion. With it a commit is made: the way back is given up."""
    dropping = Dropping(plan=state.plan, host=state.host, kept=state.kept)
    records = () if state.settled else (BranchSettled(vm=state.plan.vm, leaves=()),)
    detail = f"moving {len(state.plan.drops)} volume(s) that were given up to the trash"
    return replace(_send(dropping), records=records, detail=detail)


def _send(state: Dropping) -> Step:
    plan = state.plan
    command = DeleteVolumes(vm_id=plan.vm, disks=plan.drops, abandoned=plan.given_up)
    send = ToSpm(pool=plan.pool, command=command, deadline_after=STANDING)
    return Next(state=state, send=send, wake_after=ASK_AGAIN)


def _dropping(state: Dropping, event: JobEvent) -> Step:
    """Go on from a deletion that was asked for; silence changes nothing, the SPM is asked until it answers."""
    match event:
        case Answered(answer=VolumesDeleted() as deleted):
            return _dropped(state, deleted)
        case Answered(answer=Refused() | Failed() as answer) if state.failures < RETRIES:
            again = replace(state, failures=state.failures + 1)
            return Next(state=again, wake_after=min(SHORT_PAUSE * again.failures, ASK_AGAIN), detail=answer.message)
        case Answered(answer=Refused() | Failed() as answer):
            return _stuck(state, Problem(code="attempts_exhausted", message=answer.message))
        case TimedOut():
            return _send(state)
        case Started() | CancelRequested() | ResolveRequested() | Answered():
            return Next(state=state)
        case _:
            assert_never(event)


def _dropped(state: Dropping, deleted: VolumesDeleted) -> Step:
    gone = VolumesGone(volumes=deleted.gone)
    if not deleted.kept:
        return Next(state=Completed(plan=state.plan), records=(gone,), detail=_done(state.plan))
    code, message = why_kept(deleted)
    why = Problem(code=code, message=message)
    if Kept.NOT_EMPTY not in {kept.why for kept in deleted.kept} and state.kept < MAX_TRIES:
        # Somebody holds it for a moment, or no agent is there whose lock proves that locks work: the host looks again.
        asking = Proving(plan=state.plan, host=state.host, settled=True, kept=state.kept + 1, why=why)
        return Next(state=asking, records=(gone,), wake_after=SHORT_PAUSE * asking.kept, detail=message)
    return replace(_stuck(state, why), records=(gone,))


def _done(plan: Plan) -> str:
    match plan.goal:
        case "undo":
            return "the machine is where it was before the preview"
        case "commit":
            return f"the machine stays on snapshot {plan.name}"
        case "preview" | "revert":
            return f"the machine is on snapshot {plan.name}"


def _stuck(state: Proving | Dropping, why: Problem) -> Step:
    message = f"the machine is where it should be, but what was given up is still there: {why.message}"
    stuck = NeedsOperator(plan=state.plan, host=state.host, why=replace(why, message=message), settled=True)
    return Next(state=stuck, detail=message)
