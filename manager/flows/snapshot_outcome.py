"""The snapshot saga once the straight way is left: find out what is true, then complete, repair or delete. Pure.

`settle` is the one place where an observation becomes a decision; `snapshot.py` has the straight way and the map.
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
    Repair,
    VolumesDeleted,
)
from common.receipt import REASONS, Consistency, label
from manager.flows.base import (
    Answered,
    CancelRequested,
    JobEvent,
    Next,
    Problem,
    ResolveRequested,
    SnapshotDropped,
    SnapshotTaken,
    Started,
    TimedOut,
    ToHost,
    ToSpm,
    VolumesGone,
)
from manager.flows.snapshot_states import (
    ASK_AGAIN,
    HOLD_TRIES,
    MAX_TRIES,
    PIVOT_MARGIN,
    SHORT_PAUSE,
    STANDING,
    AwaitingHost,
    Completed,
    DeletingVolumes,
    Live,
    NeedsOperator,
    Pivoting,
    Plan,
    Probing,
    Repairing,
    RolledBack,
    State,
    problem_in,
)

Step = Next[State]
Observing = Pivoting | Probing | AwaitingHost | Repairing

_KEPT_CODES = {
    Kept.NOT_EMPTY: "volume_not_empty",
    Kept.LOCKING_UNPROVEN: "locking_unproven",
    Kept.IN_USE: "volume_in_use",
}
"""Worst first: what is told when volumes were kept for several reasons."""
_SPOILT = "the previous volumes may hold later data, by a commit that had begun"


# ---- Probing, AwaitingHost, Repairing ---------------------------------------------------------------------------


def probe(state: Live | NeedsOperator, host: HostId, why: Problem, tries: int = 0) -> Step:
    """Ask `host` to fence every older attempt and to say where the vm writes; after many tries ask an operator."""
    if tries >= MAX_TRIES:
        return _give_up(state, why)
    probing = Probing(plan=state.plan, host=host, why=why, tries=tries, commit_begun=state.commit_begun)
    detail = f"{why.message}; probing {host}"
    return Next(state=probing, send=_ask(state.plan, host), wake_after=state.plan.probe_patience, detail=detail)


def _ask(plan: Plan, host: HostId) -> ToHost:
    return ToHost(host=host, command=Probe(vm_id=plan.vm, disks=plan.disks), deadline_after=STANDING)


def asking(state: Probing | AwaitingHost, event: JobEvent) -> Step:
    """Go on from a question that is outstanding, or that could not be answered."""
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.UNKNOWN) as seen):
            waiting = _wait(state, state.why, state.tries)
            return Next(state=waiting, wake_after=SHORT_PAUSE * 2, detail=f"{state.host} cannot tell: {seen.message}")
        case Answered(answer=LeavesObserved() as seen):
            return settle(state, seen, state.why, event.vm_host)
        case Answered(answer=Refused() | Failed() as answer):
            waiting = _wait(state, state.why, state.tries)
            return Next(state=waiting, wake_after=SHORT_PAUSE, detail=f"{state.host} cannot look: {answer.message}")
        case TimedOut() if isinstance(state, Probing):
            waiting = _wait(state, state.why, state.tries)
            return Next(state=waiting, wake_after=ASK_AGAIN, detail=f"{state.host} is silent; every volume is kept")
        case ResolveRequested():
            return replace(_ask_again(state, event.vm_host), detail=_word(event, state.host))
        case TimedOut():
            return _ask_again(state, event.vm_host)
        case Started() | CancelRequested() | Answered():
            return Next(state=state)
        case _:
            assert_never(event)


def _wait(state: Observing | DeletingVolumes, why: Problem, tries: int, *, elsewhere: bool = False) -> AwaitingHost:
    return AwaitingHost(
        plan=state.plan,
        host=state.host,
        why=why,
        tries=tries,
        commit_begun=state.commit_begun,
        elsewhere=elsewhere,
    )


def _word(event: ResolveRequested, host: HostId) -> str:
    """Return what an operator has said, for the timeline."""
    if event.host_was_rebooted:
        return f"an operator says that host {host} was rebooted; its lock is free; every volume is kept; asking again"
    return f"an operator asks to go on: asking {host} again"


def _ask_again(state: Probing | AwaitingHost, vm_host: HostId | None) -> Step:
    """Repeat the probe where it was asked; only a host that has answered "not here" frees the question to move on."""
    if isinstance(state, AwaitingHost) and state.elsewhere:
        return probe(state, vm_host or state.host, state.why, state.tries)
    return Next(state=state, send=_ask(state.plan, state.host), wake_after=ASK_AGAIN)


def _repair(state: Observing, why: Problem, *, again: bool = False, undo: bool = False) -> Step:
    tries = 0 if isinstance(state, Pivoting) else state.tries
    if tries >= MAX_TRIES:
        return _give_up(state, replace(why, code="repair_failed"))
    repairing = Repairing(
        plan=state.plan,
        host=state.host,
        why=why,
        tries=tries,
        commit_begun=state.commit_begun,
        again=again,
        undo=undo,
    )
    command = Repair(vm_id=state.plan.vm, disks=state.plan.disks, undo=undo)
    send = ToHost(host=state.host, command=command, deadline_after=PIVOT_MARGIN)
    doing = "bringing the disks back" if undo else "repairing"
    return Next(state=repairing, send=send, wake_after=PIVOT_MARGIN * 2, detail=f"{why.message}; {doing}")


def repairing(state: Repairing, event: JobEvent) -> Step:
    """Go on from a repair that was asked for; one that fails twice is an operator's matter."""
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.BAD, code="volume_not_writable") as seen):
            return _give_up(state, problem_in(seen))
        case Answered(answer=LeavesObserved(outcome=Outcome.BAD) as seen) if state.again:
            return _give_up(state, replace(problem_in(seen), code="repair_failed"))
        case Answered(answer=LeavesObserved(outcome=Outcome.BAD) as seen):
            return _repair(state, problem_in(seen), again=True)
        case Answered(answer=LeavesObserved() as seen):
            return settle(state, seen, state.why, event.vm_host)
        case Answered(answer=Refused() | Failed()) | TimedOut():
            return probe(state, state.host, state.why, state.tries + 1)
        case Started() | CancelRequested() | ResolveRequested() | Answered():
            return Next(state=state)
        case _:
            assert_never(event)


# ---- the one decision -------------------------------------------------------------------------------------------


def settle(state: Observing, seen: LeavesObserved, why: Problem, vm_host: HostId | None) -> Step:
    """Turn what a host saw into what follows. The only place where a job completes or may delete after a pivot."""
    tries = 0 if isinstance(state, Pivoting) else state.tries
    match seen.outcome:
        case Outcome.ALL_NEW if state.commit_begun:
            return _undo(state, _spoilt(why))
        case Outcome.ALL_NEW:
            return _complete(state, seen)
        case Outcome.NONE | Outcome.NONE_NO_AGENT:
            return delete(state, why, tries=tries)
        case Outcome.NONE_ROLLED_BACK:
            # What stood in the way is known from before, unless this very look has met it; the way out is behind us.
            met = problem_in(seen) if seen.code == "volume_not_writable" else replace(why, hint="")
            return delete(state, met, committed=True, tries=tries)
        case Outcome.BAD if seen.code == "volume_not_writable":
            return _give_up(state, problem_in(seen))
        case Outcome.BAD:
            return _repair(state, problem_in(seen))
        case Outcome.NOT_HERE:
            return _look_elsewhere(state, why, vm_host, tries)
        case Outcome.UNKNOWN:
            return probe(state, state.host, why, tries + 1)
        case _:
            assert_never(seen.outcome)


def _look_elsewhere(state: Observing, why: Problem, vm_host: HostId | None, tries: int) -> Step:
    if tries >= MAX_TRIES:
        return _give_up(state, replace(why, code="vm_not_found"))
    if vm_host is not None and vm_host != state.host:
        return probe(state, vm_host, why, tries + 1)
    looking = _wait(state, why, tries + 1, elsewhere=True)
    return Next(state=looking, wake_after=SHORT_PAUSE, detail=f"the vm is not on {state.host}; looking for it")


def _complete(state: Observing, seen: LeavesObserved) -> Step:
    plan = state.plan
    consistency, reason = label(seen.receipt)
    if plan.mode == "require" and consistency is not Consistency.FILESYSTEM:
        message = f"quiescing was required and is not proven: {REASONS[reason]}"
        return _undo(state, Problem(code="quiesce_unproven", message=message))
    taken = SnapshotTaken(
        snapshot=plan.snapshot,
        vm=plan.vm,
        disks=plan.disks,
        mode=plan.mode,
        host=state.host,
        consistency=consistency,
        reason=reason,
        observed=seen,
    )
    because = f" ({reason})" if reason else ""
    warned = sorted({line.code for line in seen.receipt.warnings}) if seen.receipt else []
    warnings = f"; warnings: {', '.join(warned)}" if warned else ""
    detail = f"{len(plan.disks)} disk(s) on their new volumes; {consistency}-consistent{because}{warnings}"
    return Next(state=Completed(plan=plan), records=(taken,), detail=detail)


def _spoilt(why: Problem) -> Problem:
    return why if _SPOILT in why.message else replace(why, message=f"{why.message}; {_SPOILT}", hint="")


def _undo(state: Observing, why: Problem) -> Step:
    """Take back a switch whose snapshot is not what it has to be, however it came to that.

    Not by a second pivot (P4): the disks come back by active commit. A vm that was stopped meanwhile cannot do that.
    """
    if isinstance(state, Repairing) and state.undo:
        stays = f"{why.message}; the machine could not be brought back and is on its new volumes"
        return _give_up(state, replace(why, message=stays, hint="Start the machine if it is off; resolve the job."))
    return _repair(state, why, undo=True)


# ---- DeletingVolumes, NeedsOperator -----------------------------------------------------------------------------


def delete(state: Live, why: Problem, *, committed: bool = False, tries: int = 0) -> Step:
    """Have the SPM delete the new volumes, which are proven to be nowhere (or were never shown to a host)."""
    deleting = DeletingVolumes(
        plan=state.plan,
        host=state.host,
        why=why,
        committed=committed,
        tries=tries,
        commit_begun=state.commit_begun,
    )
    return replace(_send_delete(deleting), detail=f"{why.message}; deleting the new volumes")


def _send_delete(state: DeletingVolumes) -> Step:
    committed = state.plan.new_volumes if state.committed else ()
    command = DeleteVolumes(vm_id=state.plan.vm, disks=state.plan.disks, committed=committed)
    send = ToSpm(pool=state.plan.pool, command=command, deadline_after=STANDING)
    return Next(state=state, send=send, wake_after=ASK_AGAIN)


def deleting(state: DeletingVolumes, event: JobEvent) -> Step:
    """Go on from a deletion that was asked for; silence changes nothing, the SPM is asked until it answers."""
    match event:
        case Answered(answer=VolumesDeleted() as deleted):
            return _deleted(state, deleted)
        case Answered(answer=Refused() | Failed() as answer) if state.failures < HOLD_TRIES:
            again = replace(state, failures=state.failures + 1)
            return Next(state=again, wake_after=min(SHORT_PAUSE * again.failures, ASK_AGAIN), detail=answer.message)
        case Answered(answer=Refused() | Failed()):
            return _give_up(state, replace(state.why, code="attempts_exhausted"))
        case TimedOut():
            return _send_delete(state)
        case Started() | CancelRequested() | ResolveRequested() | Answered():
            return Next(state=state)
        case _:
            assert_never(event)


def _deleted(state: DeletingVolumes, deleted: VolumesDeleted) -> Step:
    gone = VolumesGone(volumes=deleted.gone)
    if not deleted.kept:
        records = (gone, SnapshotDropped(snapshot=state.plan.snapshot))
        return Next(state=RolledBack(plan=state.plan, why=state.why), records=records, detail=state.why.message)
    reasons = {kept.why for kept in deleted.kept}
    message = f"{len(deleted.kept)} new volume(s) kept ({', '.join(sorted(reasons))}) after: {state.why.message}"
    if reasons == {Kept.LOCKING_UNPROVEN} and state.failures < HOLD_TRIES:
        # No agent lives on any host of this storage domain just now: where one was killed, it is back in a moment.
        again = replace(state, failures=state.failures + 1)
        pause = min(SHORT_PAUSE * again.failures, ASK_AGAIN)
        return Next(state=again, records=(gone,), wake_after=pause, detail=message)
    if reasons == {Kept.IN_USE} and state.tries < MAX_TRIES:
        asking = _wait(state, state.why, state.tries + 1)
        return Next(state=asking, records=(gone,), wake_after=SHORT_PAUSE * asking.tries, detail=message)
    worst = next(code for kept, code in _KEPT_CODES.items() if kept in reasons)
    return replace(_give_up(state, Problem(code=worst, message=message)), records=(gone,))


def _give_up(state: Live | NeedsOperator, why: Problem) -> Step:
    stuck = NeedsOperator(plan=state.plan, host=state.host, why=why, commit_begun=state.commit_begun)
    return Next(state=stuck, detail=f"an operator must decide: {why.message}")


def stuck(state: NeedsOperator, event: JobEvent) -> Step:
    """Ask the same host again when an operator says so; nothing else that happens to the job leaves this state.

    Not the host where the vm is now: an answer of that one fences only that one, and this one may still name the new
    volumes. It answers "not here" then, and the question follows the vm.
    """
    if isinstance(event, ResolveRequested):
        return replace(probe(state, state.host, state.why), detail=_word(event, state.host))
    return Next(state=state)
