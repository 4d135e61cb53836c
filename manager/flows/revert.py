"""Going back to a snapshot: preview, commit, undo, and revert (preview and commit in one). Pure.

    preview, revert: CreatingVolumes --created--> Moving
    undo:                                         Moving --on the new leaves--> Completed (a preview)
    commit:                                          |         `--> Proving --nowhere--> Dropping --> Completed
                          no answer, unknown: Probing <-> AwaitingHost
                          not on the new leaves: DeletingVolumes --> RolledBack
                          its host removed as lost: HostGone

A stopped machine is given another definition, by one fenced attempt whose outcome is observed, as in the snapshot saga
(`snapshot.py`): an answer is an observation, and a timeout leads to a probe. Two rules are of this flow. What the user
gives up holds data, so it goes only once the machine is proven to be elsewhere, and after that a host has answered that
it is nowhere (`Proving`). And nothing is ever committed back here: below a new leaf there is a snapshot.
`revert_drop.py` has what follows once the machine is where it should be, `revert_back.py` the way out.
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
    Probe,
    Redefine,
    Refusal,
    Refused,
    VolumesCreated,
)
from manager.flows import revert_back as back
from manager.flows import revert_drop as drop
from manager.flows.base import (
    Answered,
    CancelRequested,
    Event,
    HostLost,
    JobEvent,
    Next,
    PreviewBegun,
    Problem,
    ResolveRequested,
    Started,
    TimedOut,
    ToHost,
    ToSpm,
    VolumesMade,
)
from manager.flows.revert_states import (
    MOVE_LIMIT,
    PROBE_PATIENCE,
    Asking,
    AwaitingHost,
    Completed,
    CreatingVolumes,
    DeletingVolumes,
    Dropping,
    Holding,
    HostGone,
    Moving,
    NeedsOperator,
    Plan,
    Probing,
    Proving,
    RolledBack,
    State,
    Unsettled,
)
from manager.flows.snapshot_states import (
    ASK_AGAIN,
    CREATE_LIMIT,
    FOLLOW_TRIES,
    HOLD_TRIES,
    MAX_TRIES,
    PIVOT_MARGIN,
    SHORT_PAUSE,
    STANDING,
    cancelled,
    problem_in,
    silent,
)

Step = Next[State]


def advance(state: State, event: Event) -> Step:
    """Return what follows from `event` in `state`. Total: every event is allowed in every state."""
    match event:
        case HostLost():
            return _without(state, event.host)
        case Answered(answer=Refused(why=Refusal.BUSY)):
            return Next(state=state)  # the same command is being carried out by another handler, whose answer will come
        case _:
            return _follow(state, event)


def _follow(state: State, event: JobEvent) -> Step:
    match state:
        case CreatingVolumes():
            return _creating(state, event)
        case Moving():
            return _moving(state, event)
        case Holding():
            return _holding(state, event)
        case Probing() | AwaitingHost():
            return _asking(state, event)
        case DeletingVolumes():
            return back.deleting(state, event)
        case Proving() | Dropping():
            return drop.advance(state, event)
        case NeedsOperator():
            return _stuck(state, event)
        case Completed() | RolledBack() | HostGone():
            return Next(state=state)
        case _:
            assert_never(state)


def _without(state: State, host: HostId) -> Step:
    """Go on where the job waits for nothing of a host that was removed as lost; otherwise end, with every volume kept.

    Nothing is taken to have happened that the host has not said: a new leaf that was never booted is empty, and doctor
    finds it; a machine that was booted there is off its chain wherever it appears next, and nobody guesses.
    """
    match state:
        case CreatingVolumes() if state.host == host:
            return back.back_out(state, _lost(host))  # no host was ever shown the new volumes
        case Moving() | Holding() | Probing() | AwaitingHost() | Proving() | NeedsOperator() if state.host == host:
            why = _lost(host)
            return Next(state=HostGone(plan=state.plan, why=why), detail=f"{why.message}; every volume is kept")
        case _:
            return Next(state=state)  # what is being deleted has its proof already, and ends without any host


def _lost(host: HostId) -> Problem:
    return Problem(code="host_lost", message=f"host {host} was removed as lost before it had answered")


# ---- CreatingVolumes --------------------------------------------------------------------------------------------


def _creating(state: CreatingVolumes, event: JobEvent) -> Step:
    match event:
        case Started():
            return _create(state)
        case Answered(answer=VolumesCreated() as made):
            return _made(state, made)
        case Answered(answer=Failed() as failed):
            return back.back_out(state, Problem(code=failed.code, message=failed.message, hint=failed.hint))
        case Answered(answer=Refused() as refused):
            return _not_created(state, refused)
        case TimedOut() if state.why is not None:
            return _create(replace(state, why=None))
        case TimedOut():
            why = Problem(code="spm_unreachable", message=f"the SPM of pool {state.plan.pool} made no volume in time")
            return back.back_out(state, why)
        case CancelRequested():
            return back.back_out(state, cancelled())
        case Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _create(state: CreatingVolumes) -> Step:
    plan = state.plan
    command = CreateVolumes(vm_id=plan.vm, snapshot_id=plan.snapshot, disks=plan.moves)
    send = ToSpm(pool=plan.pool, command=command, deadline_after=CREATE_LIMIT)
    detail = f"asking the SPM of {plan.pool} for {len(plan.moves)} volume(s) above snapshot {plan.name}"
    return Next(state=state, send=send, wake_after=CREATE_LIMIT, detail=detail)


def _not_created(state: CreatingVolumes, refused: Refused) -> Step:
    why = Problem(code=refused.code or "spm_unreachable", message=f"the SPM cannot begin: {refused.message}")
    if refused.why in (Refusal.NOT_READY, Refusal.STALE) and state.tries < HOLD_TRIES:
        paused = replace(state, tries=state.tries + 1, why=why)
        return Next(state=paused, wake_after=SHORT_PAUSE, detail=why.message if state.tries == 0 else "")
    return back.back_out(state, why)


def _made(state: CreatingVolumes, made: VolumesCreated) -> Step:
    wanted = {disk.new.volume_id for disk in state.plan.moves}
    got = {found.volume.volume_id for found in made.created}
    if wanted != got:
        why = Problem(code="volume_not_found", message=f"the SPM answered for {sorted(got)}, not {sorted(wanted)}")
        return back.back_out(state, why)
    return replace(_move(state.plan, state.host), records=(VolumesMade(volumes=made.adopted + made.created),))


# ---- Moving, Holding --------------------------------------------------------------------------------------------


def _move(plan: Plan, host: HostId, tries: int = 0) -> Step:
    command = Redefine(vm_id=plan.vm, disks=plan.moves)
    send = ToHost(host=host, command=command, deadline_after=MOVE_LIMIT)
    where = "back onto its own leaves" if plan.goal == "undo" else f"onto snapshot {plan.name}"
    detail = f"asking host {host} to put {len(plan.moves)} disk(s) {where}"
    return Next(
        state=Moving(plan=plan, host=host, tries=tries),
        send=send,
        wake_after=MOVE_LIMIT + PIVOT_MARGIN,
        detail=detail,
    )


def _moving(state: Moving, event: JobEvent) -> Step:
    match event:
        case Started():
            return _move(state.plan, state.host)
        case Answered(answer=LeavesObserved(outcome=Outcome.NOT_HERE, message=seen_as)):
            message = f"the vm seems not to be on host {state.host}: {seen_as}"
            return _hold(state, Problem(code="vm_not_found", message=message), event.vm_host)
        case Answered(answer=LeavesObserved() as seen):
            return _settle(state, seen, problem_in(seen), event.vm_host)
        case Answered(answer=Refused(why=Refusal.NOT_READY | Refusal.STALE) as refused):
            code = refused.code or "host_unreachable"
            return _hold(state, Problem(code=code, message=f"host {state.host} cannot begin: {refused.message}"))
        case Answered(answer=Refused() | Failed() as answer):
            return _probe(state, state.host, Problem(code="pivot_unknown", message=answer.message))
        case TimedOut():
            return _probe(state, state.host, silent(state.host, "the redefinition"))
        case CancelRequested():
            return _probe(state, state.host, cancelled())
        case Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _hold(state: Moving, why: Problem, vm_host: HostId | None = None) -> Step:
    if vm_host is not None and vm_host != state.host and state.tries < HOLD_TRIES:
        nxt = _move(state.plan, vm_host, state.tries + 1)
        return replace(nxt, detail=f"the vm has moved: following it to host {vm_host}")
    if why.code == "vm_not_found" and state.tries >= FOLLOW_TRIES:
        return back.back_out(state, why)  # every host that was told to has answered that nothing of it is there
    if state.tries >= HOLD_TRIES:
        return _probe(state, state.host, why)
    held = Holding(plan=state.plan, host=state.host, tries=state.tries + 1, why=why)
    pause = min(SHORT_PAUSE * held.tries, timedelta(seconds=10))
    return Next(state=held, wake_after=pause, detail=f"{why.message}; trying again")


def _holding(state: Holding, event: JobEvent) -> Step:
    match event:
        case TimedOut():
            host = event.vm_host if state.why.code == "vm_not_found" and event.vm_host else state.host
            return _move(state.plan, host, state.tries)
        case CancelRequested():
            return _probe(state, state.host, cancelled())
        case Started() | Answered() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


# ---- Probing, AwaitingHost --------------------------------------------------------------------------------------


def _probe(state: Unsettled | NeedsOperator, host: HostId, why: Problem, tries: int = 0) -> Step:
    """Ask `host` to fence every older attempt and to say where the vm is; after many tries ask an operator."""
    if tries >= MAX_TRIES:
        return back.give_up(state, why)
    probing = Probing(plan=state.plan, host=host, why=why, tries=tries)
    detail = f"{why.message}; probing {host}"
    return Next(state=probing, send=_ask(state.plan, host), wake_after=PROBE_PATIENCE, detail=detail)


def _ask(plan: Plan, host: HostId) -> ToHost:
    return ToHost(host=host, command=Probe(vm_id=plan.vm, disks=plan.moves), deadline_after=STANDING)


def _asking(state: Asking, event: JobEvent) -> Step:
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.UNKNOWN) as seen):
            return _wait(state, SHORT_PAUSE * 2, f"{state.host} cannot tell: {seen.message}")
        case Answered(answer=LeavesObserved() as seen):
            return _settle(state, seen, state.why, event.vm_host)
        case Answered(answer=Refused() | Failed() as answer):
            return _wait(state, SHORT_PAUSE, f"{state.host} cannot look: {answer.message}")
        case TimedOut() if isinstance(state, Probing):
            return _wait(state, ASK_AGAIN, f"{state.host} is silent; every volume is kept")
        case TimedOut() | ResolveRequested():
            return _ask_again(state, event.vm_host)
        case Started() | CancelRequested() | Answered():
            return Next(state=state)
        case _:
            assert_never(event)


def _wait(state: Asking, pause: timedelta, detail: str) -> Step:
    waiting = AwaitingHost(plan=state.plan, host=state.host, why=state.why, tries=state.tries)
    return Next(state=waiting, wake_after=pause, detail=detail)


def _ask_again(state: Asking, vm_host: HostId | None) -> Step:
    """Repeat the probe where it was asked; only a host that has answered "not here" frees the question to move on."""
    if isinstance(state, AwaitingHost) and state.elsewhere:
        return _probe(state, vm_host or state.host, state.why, state.tries)
    return Next(state=state, send=_ask(state.plan, state.host), wake_after=ASK_AGAIN)


# ---- the one decision -------------------------------------------------------------------------------------------


def _settle(state: Moving | Asking, seen: LeavesObserved, why: Problem, vm_host: HostId | None) -> Step:
    """Turn what a host saw into what follows. The only place where the machine is taken to have moved."""
    tries = 0 if isinstance(state, Moving) else state.tries
    match seen.outcome:
        case Outcome.ALL_NEW:
            return _moved(state, why)
        case Outcome.NONE | Outcome.NONE_NO_AGENT:
            return back.back_out(state, why, tries=tries)
        case Outcome.BAD | Outcome.NONE_ROLLED_BACK:
            return back.give_up(state, problem_in(seen))
        case Outcome.NOT_HERE:
            return _look_elsewhere(state, why, vm_host, tries)
        case Outcome.UNKNOWN:
            return _probe(state, state.host, why, tries + 1)
        case _:
            assert_never(seen.outcome)


def _look_elsewhere(state: Moving | Asking, why: Problem, vm_host: HostId | None, tries: int) -> Step:
    if tries >= MAX_TRIES:
        return back.give_up(state, replace(why, code="vm_not_found"))
    if vm_host is not None and vm_host != state.host:
        return _probe(state, vm_host, why, tries + 1)
    looking = AwaitingHost(plan=state.plan, host=state.host, why=why, tries=tries + 1, elsewhere=True)
    return Next(state=looking, wake_after=SHORT_PAUSE, detail=f"the vm is not on {state.host}; looking for it")


def _moved(state: Moving | Asking, why: Problem) -> Step:
    """Record where the machine is. A revert that was cancelled too late keeps what it would have given up."""
    plan = state.plan
    was_cancelled = why.code == "job_cancelled" and plan.goal == "revert"
    if plan.goal == "preview" or was_cancelled:
        begun = PreviewBegun(vm=plan.vm, snapshot=plan.snapshot, disks=plan.moves)
        detail = f"{len(plan.moves)} disk(s) show snapshot {plan.name}; commit or undo ends the preview"
        if was_cancelled:
            detail = f"cancelled too late to come back by itself: {detail}"
        return Next(state=Completed(plan=plan), records=(begun,), detail=detail)
    return drop.settled(plan, state.host)


# ---- NeedsOperator --------------------------------------------------------------------------------------------------


def _stuck(state: NeedsOperator, event: JobEvent) -> Step:
    """Ask the host again when an operator says so; a cancel leaves what could not be deleted, and nothing else."""
    match event:
        case ResolveRequested() if state.settled:
            return drop.prove(state.plan, event.vm_host or state.host, settled=True)
        case ResolveRequested():
            return _probe(state, event.vm_host or state.host, state.why)
        case CancelRequested() if state.settled:
            kept = f"{len(state.plan.drops)} volume(s) that were given up are left where they are; see livesnap doctor"
            return Next(state=Completed(plan=state.plan), detail=kept)
        case Started() | Answered() | TimedOut() | CancelRequested():
            return Next(state=state)
        case _:
            assert_never(event)
