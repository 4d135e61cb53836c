"""The snapshot saga: every state, what it waits for, and what follows. Pure; the map of the whole product.

    CreatingVolumes --created--> Pivoting --all on new leaves--> Completed
          |                        |  |  `-- no agent: Pivoting again, without quiescing
          |                        |  `-- not ready, not here: Holding -> Pivoting
          | failed, cancelled      | no answer, unknown, cancelled: Probing <-> AwaitingHost
          v                        v                                 |  `-- mixed: Repairing
    DeletingVolumes <--- none on new leaves ------------------------'
          |  `-- still in use: Probing        not empty, attempts exhausted: NeedsOperator
          v
      RolledBack                    its host removed as lost: HostGone, from every state that waits for a host

The first row and Holding are here; `snapshot_outcome.py` has what follows once the outcome must be found out,
`snapshot_lost.py` what becomes of a job whose host never comes back, `snapshot_states.py` the states. Three rules
carry it. An answer is an observation; one function, `settle`, turns it into a decision. A timeout means "unknown" and
leads to a probe. A volume is deleted only after a host has answered that it is nowhere (or when no pivot was ever
sent). Sources: DESIGN.md section 4 and the model check in protocol.md, part A.
"""

from dataclasses import replace
from datetime import timedelta
from typing import assert_never

from common.ids import HostId
from common.messaging.messages import (
    CreateVolumes,
    Failed,
    LeavesObserved,
    Outcome,
    Pivot,
    Refusal,
    Refused,
    VolumesCreated,
)
from manager.flows import snapshot_outcome as outcome
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
    ToHost,
    ToSpm,
    VolumesMade,
)
from manager.flows.snapshot_lost import without
from manager.flows.snapshot_states import (
    CREATE_LIMIT,
    FOLLOW_TRIES,
    HOLD_TRIES,
    PIVOT_MARGIN,
    SHORT_PAUSE,
    AwaitingHost,
    Completed,
    CreatingVolumes,
    DeletingVolumes,
    Holding,
    HostGone,
    NeedsOperator,
    Pivoting,
    Plan,
    Probing,
    Repairing,
    RolledBack,
    State,
    cancelled,
    problem_in,
    silent,
)

Step = Next[State]


def begin(plan: Plan, host: HostId) -> State:
    """Return the first state of a snapshot of a vm that the inventory has on `host`; feed it Started."""
    return CreatingVolumes(plan=plan, host=host)


def advance(state: State, event: Event) -> Step:
    """Return what follows from `event` in `state`. Total: every event is allowed in every state."""
    match event:
        case HostLost():
            return without(state, event)
        case Answered(answer=Refused(why=Refusal.BUSY)):
            return Next(state=state)  # the same command is being carried out by another handler, whose answer will come
        case Answered(answer=LeavesObserved(commit_begun=True)):
            return _follow(_with_commit_begun(state), event)
        case _:
            return _follow(state, event)


def _with_commit_begun(state: State) -> State:
    """Note that a host has said so, where an observation is awaited."""
    match state:
        case Pivoting() | Probing() | AwaitingHost() | Repairing():
            return replace(state, commit_begun=True)
        case _:
            return state


def _follow(state: State, event: JobEvent) -> Step:
    match state:
        case CreatingVolumes():
            return _creating(state, event)
        case Pivoting():
            return _pivoting(state, event)
        case Holding():
            return _holding(state, event)
        case Probing() | AwaitingHost():
            return outcome.asking(state, event)
        case Repairing():
            return outcome.repairing(state, event)
        case DeletingVolumes():
            return outcome.deleting(state, event)
        case NeedsOperator():
            return outcome.stuck(state, event)
        case Completed() | RolledBack() | HostGone():
            return Next(state=state)
        case _:
            assert_never(state)


# ---- CreatingVolumes --------------------------------------------------------------------------------------------


def _creating(state: CreatingVolumes, event: JobEvent) -> Step:
    match event:
        case Started(warnings=""):
            return _create(state)
        case Started(warnings=warnings):
            nxt = _create(state)
            return replace(nxt, detail=f"{nxt.detail}; warnings: {warnings}")
        case Answered(answer=VolumesCreated() as made):
            return _made(state, made)
        case Answered(answer=Failed() as failed):
            return outcome.delete(state, Problem(code=failed.code, message=failed.message, hint=failed.hint))
        case Answered(answer=Refused() as refused):
            return _not_created(state, refused)
        case TimedOut() if state.why is not None:
            return _create(replace(state, why=None))
        case TimedOut():
            why = Problem(code="spm_unreachable", message=f"the SPM of pool {state.plan.pool} made no volume in time")
            return outcome.delete(state, why)
        case CancelRequested():
            return outcome.delete(state, cancelled())
        case Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _not_created(state: CreatingVolumes, refused: Refused) -> Step:
    why = Problem(code=refused.code or "spm_unreachable", message=f"the SPM cannot begin: {refused.message}")
    if refused.why in (Refusal.NOT_READY, Refusal.STALE) and state.tries < HOLD_TRIES:
        paused = replace(state, tries=state.tries + 1, why=why)
        return Next(state=paused, wake_after=SHORT_PAUSE, detail=why.message if state.tries == 0 else "")
    return outcome.delete(state, why)


def _create(state: CreatingVolumes) -> Step:
    plan = state.plan
    command = CreateVolumes(vm_id=plan.vm, snapshot_id=plan.snapshot, disks=plan.disks)
    send = ToSpm(pool=plan.pool, command=command, deadline_after=CREATE_LIMIT)
    detail = f"asking the SPM of {plan.pool} for {len(plan.disks)} volume(s)"
    return Next(state=state, send=send, wake_after=CREATE_LIMIT, detail=detail)


def _made(state: CreatingVolumes, made: VolumesCreated) -> Step:
    wanted, got = set(state.plan.new_volumes), {found.volume.volume_id for found in made.created}
    if wanted != got:
        why = Problem(code="volume_not_found", message=f"the SPM answered for {sorted(got)}, not {sorted(wanted)}")
        return outcome.delete(state, why)
    nxt = _pivot(state.plan, state.host, quiesce=state.plan.mode != "never", tries=0)
    return replace(nxt, records=(VolumesMade(volumes=made.adopted + made.created),))


# ---- Pivoting, Holding ------------------------------------------------------------------------------------------


def _pivot(plan: Plan, host: HostId, *, quiesce: bool, tries: int) -> Step:
    command = Pivot(
        vm_id=plan.vm,
        disks=plan.disks,
        quiesce=quiesce,
        require_quiesce=plan.mode == "require",
        freeze_limit_ms=plan.freeze_limit_ms,
        held_limit_ms=plan.held_limit_ms,
        limits=plan.limits,
    )
    state = Pivoting(plan=plan, host=host, quiesce=quiesce, tries=tries)
    send = ToHost(host=host, command=command, deadline_after=plan.pivot_limit)
    detail = f"asking host {host} to pivot {'with' if quiesce else 'without'} quiescing"
    return Next(state=state, send=send, wake_after=plan.pivot_limit + PIVOT_MARGIN, detail=detail)


def _pivoting(state: Pivoting, event: JobEvent) -> Step:
    match event:
        case Answered(answer=LeavesObserved() as seen) if state.commit_begun:
            return outcome.settle(state, seen, problem_in(seen), event.vm_host)
        case Answered(answer=LeavesObserved() as seen):
            return _pivot_observed(state, seen, event.vm_host)
        case Answered(answer=Refused(why=Refusal.NOT_READY | Refusal.STALE) as refused):
            code = refused.code or "host_unreachable"
            return _hold(state, Problem(code=code, message=f"host {state.host} cannot begin: {refused.message}"))
        case Answered(answer=Refused() | Failed() as answer):
            return outcome.probe(state, state.host, Problem(code="pivot_unknown", message=answer.message))
        case Answered() | Started() | ResolveRequested():
            return Next(state=state)
        case TimedOut():
            return outcome.probe(state, state.host, silent(state.host, "the pivot"))
        case CancelRequested():
            return outcome.probe(state, state.host, cancelled())
        case _:
            assert_never(event)


def _pivot_observed(state: Pivoting, seen: LeavesObserved, vm_host: HostId | None) -> Step:
    mode, why = state.plan.mode, problem_in(seen)
    match seen.outcome:
        case Outcome.NONE_NO_AGENT if state.quiesce and mode in ("auto", "best-effort"):
            nxt = _pivot(state.plan, state.host, quiesce=False, tries=state.tries)
            return replace(nxt, detail=f"no compatible guest agent ({seen.message}): initiated again without quiescing")
        case Outcome.NONE if seen.code == "freeze_failed" and state.quiesce and mode == "best-effort":
            nxt = _pivot(state.plan, state.host, quiesce=False, tries=state.tries)
            return replace(nxt, detail=f"the freeze failed ({seen.message}): going on without quiescing")
        case Outcome.NOT_HERE:
            return _hold(state, Problem(code="vm_not_found", message=f"the vm is not on host {state.host}"), vm_host)
        case _:
            return outcome.settle(state, seen, why, vm_host)


def _hold(state: Pivoting, why: Problem, vm_host: HostId | None = None) -> Step:
    if vm_host is not None and vm_host != state.host and state.tries < HOLD_TRIES:
        nxt = _pivot(state.plan, vm_host, quiesce=state.quiesce, tries=state.tries + 1)
        return replace(nxt, detail=f"the vm has moved: following it to host {vm_host}")
    if why.code == "vm_not_found" and state.tries >= FOLLOW_TRIES:
        return outcome.delete(state, why)  # every host that was told to pivot has answered that nothing of it is there
    if state.tries >= HOLD_TRIES:
        return outcome.probe(state, state.host, why)
    held = Holding(plan=state.plan, host=state.host, quiesce=state.quiesce, tries=state.tries + 1, why=why)
    pause = min(SHORT_PAUSE * held.tries, timedelta(seconds=10))
    return Next(state=held, wake_after=pause, detail=f"{why.message}; trying again")


def _holding(state: Holding, event: JobEvent) -> Step:
    match event:
        case TimedOut():
            host = event.vm_host if state.why.code == "vm_not_found" and event.vm_host else state.host
            return _pivot(state.plan, host, quiesce=state.quiesce, tries=state.tries)
        case CancelRequested():
            return outcome.probe(state, state.host, cancelled())
        case Started() | Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)
