"""The flow of one repair that `livesnap doctor` has planned for one machine. Pure.

    Asking --every host has answered as was expected--> Adopting --> Deleting --> Mended
       |  `-- otherwise: GivenUp, with nothing changed     |             |
       |                                                   |             `-- kept: GivenUp, and says why
       `-- silent, cannot tell, after a Repair: goes on    `-- cannot: GivenUp
           asking (a commit may be half way)                   attempts exhausted: NeedsOperator

What doctor saw is a plan and no proof: it was seen by many processes at many moments. The proof is made here, by the
fences, barriers and locks of the same commands that a snapshot's own job uses: a volume is deleted only after the hosts
have answered a fencing probe and by the SPM's own tests (P1); a volume is adopted only after the host has answered that
QEMU and both definitions are on it, above the leaf on record. Every part may be left out of a plan.
"""

from dataclasses import replace
from datetime import timedelta
from typing import assert_never

from common.ids import HostId
from common.messaging.messages import (
    AdoptVolumes,
    DeleteVolumes,
    Failed,
    LeavesObserved,
    Outcome,
    Probe,
    Refusal,
    Refused,
    Repair,
    VolumesDeleted,
    VolumesInspected,
)
from manager.flows.base import (
    Answered,
    CancelRequested,
    ChainSettled,
    Event,
    HostLost,
    JobEvent,
    Next,
    Problem,
    Record,
    ResolveRequested,
    SnapshotDropped,
    SnapshotFound,
    Started,
    TimedOut,
    ToHost,
    ToSpm,
    VolumesGone,
    VolumesMade,
)
from manager.flows.mend_states import (
    Adopting,
    Asking,
    Deleting,
    GivenUp,
    Mended,
    NeedsOperator,
    Plan,
    State,
    Want,
)

Step = Next[State]

MAX_TRIES = 8
"""How often one step is tried before the repair is given up, or an operator is asked (P7)."""
ANSWER_WAIT = timedelta(seconds=45)
"""libvirt lets go of its job lock after 30 s at the latest (measured), so a healthy host has answered by then."""
PAUSE = timedelta(seconds=4)
STANDING = timedelta(days=1)
"""Deadline of what is safe whenever it arrives: it observes, or proves before it acts."""
REPAIR_LIMIT = timedelta(seconds=30)


def advance(state: State, event: Event) -> Step:
    """Return what follows from `event` in `state`. Total: every event is allowed in every state."""
    match event:
        case HostLost():
            return _without(state, event.host)
        case Answered(answer=Refused(why=Refusal.BUSY)):
            return Next(state=state)  # another handler is at it, whose answer will come
        case _:
            return _follow(state, event)


def _follow(state: State, event: JobEvent) -> Step:
    match state:
        case Asking():
            return _asking(state, event)
        case Adopting():
            return _adopting(state, event)
        case Deleting():
            return _deleting(state, event)
        case NeedsOperator():
            return _stuck(state, event)
        case Mended() | GivenUp():
            return Next(state=state)
        case _:
            assert_never(state)


# ---- asking hosts -----------------------------------------------------------------------------------------------


def _asking(state: Asking, event: JobEvent) -> Step:
    match event:
        case Started():
            return _ask(state)
        case Answered(answer=LeavesObserved() as seen):
            return _observed(state, seen)
        case Answered(answer=Refused() | Failed() as answer):
            code = answer.code or "host_unreachable"
            return _again(state, Problem(code=code, message=f"host {state.host} cannot look: {answer.message}"))
        case TimedOut() if state.why is not None:
            return _ask(replace(state, why=None))
        case TimedOut():
            silence = f"host {state.host} did not answer in time"
            return _again(state, Problem(code="host_unreachable", message=silence), tries=MAX_TRIES)
        case CancelRequested() if not _commits(state):
            return _give_up(state.plan, Problem(code="job_cancelled", message="the job was cancelled"))
        case Answered() | CancelRequested() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _commits(state: Asking) -> bool:
    return state.plan.commit_back and len(state.ahead) == 1


def _ask(state: Asking) -> Step:
    plan = state.plan
    command = (Repair if _commits(state) else Probe)(vm_id=plan.vm, disks=plan.disks)
    send = ToHost(host=state.host, command=command, deadline_after=REPAIR_LIMIT if _commits(state) else STANDING)
    detail = f"{plan.what}: asking host {state.host}" if state.tries == 0 else ""
    return Next(state=state, send=send, wake_after=ANSWER_WAIT, detail=detail)


def _again(state: Asking, why: Problem, tries: int = 0) -> Step:
    """Ask the same host once more, a little later. A Repair may have begun: only its host can end that."""
    tries = max(state.tries + 1, tries)
    if tries < MAX_TRIES or (_commits(state) and tries == MAX_TRIES):
        return Next(state=replace(state, tries=tries, why=why), wake_after=PAUSE, detail=why.message)
    if _commits(state):
        return _needs_operator(state.plan, state.host, why)
    return _give_up(state.plan, why)


def _observed(state: Asking, seen: LeavesObserved) -> Step:
    plan = state.plan
    why = Problem(code=seen.code or "pivot_unknown", message=f"host {state.host} saw {seen.outcome}: {seen.message}")
    if seen.outcome is Outcome.UNKNOWN:
        return _again(state, why)
    if not _fits(plan.want, seen.outcome):
        # Only a Repair that has begun leaves BAD; any other outcome says that it found nothing to do.
        is_half_way = _commits(state) and seen.outcome is Outcome.BAD
        return _needs_operator(plan, state.host, why) if is_half_way else _give_up(plan, why)
    ahead = state.ahead[1:]
    if ahead:
        return _ask(Asking(plan=plan, host=ahead[0], ahead=ahead))
    return _adopt(plan, committed=seen.outcome is Outcome.NONE_ROLLED_BACK)


def _fits(want: Want, outcome: Outcome) -> bool:
    match want:
        case "on_new":
            return outcome is Outcome.ALL_NEW
        case "off_new":
            return outcome in (Outcome.NONE, Outcome.NONE_NO_AGENT, Outcome.NONE_ROLLED_BACK, Outcome.NOT_HERE)
        case "answered":
            return True
        case _:
            assert_never(want)


# ---- on storage -------------------------------------------------------------------------------------------------


def _adopt(plan: Plan, *, committed: bool = False, tries: int = 0) -> Step:
    if not plan.adopt:
        return _delete(plan, committed=committed)
    command = AdoptVolumes(vm_id=plan.vm, volumes=plan.adopt)
    send = ToSpm(pool=plan.pool, command=command, deadline_after=STANDING)
    detail = f"{plan.what}: asking the SPM of {plan.pool}" if tries == 0 else ""
    return Next(state=Adopting(plan=plan, tries=tries), send=send, wake_after=ANSWER_WAIT, detail=detail)


def _adopting(state: Adopting, event: JobEvent) -> Step:
    plan = state.plan
    match event:
        case Started():
            return _adopt(plan)
        case Answered(answer=VolumesInspected(found=made)):
            return replace(nxt := _delete(plan), records=(VolumesMade(volumes=made), *nxt.records))
        case Answered(answer=Failed() as failed):
            return _give_up(plan, Problem(code=failed.code, message=failed.message, hint=failed.hint))
        case Answered(answer=Refused() as refused) if state.tries < MAX_TRIES:
            why = Problem(code=refused.code or "spm_unreachable", message=f"the SPM cannot begin: {refused.message}")
            return Next(state=replace(state, tries=state.tries + 1, why=why), wake_after=PAUSE, detail=why.message)
        case TimedOut() if state.tries < MAX_TRIES:
            return _adopt(plan, tries=state.tries + 1)
        case TimedOut() | Answered(answer=Refused()):
            why = state.why or Problem(code="spm_unreachable", message=f"the SPM of pool {plan.pool} is silent")
            return _give_up(plan, why)
        case Answered() | CancelRequested() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


def _delete(plan: Plan, *, committed: bool = False, tries: int = 0) -> Step:
    if not plan.delete:
        return _mended(plan)
    ids = tuple(disk.new.volume_id for disk in plan.delete) if committed else ()
    command = DeleteVolumes(vm_id=plan.vm, disks=plan.delete, committed=ids)
    send = ToSpm(pool=plan.pool, command=command, deadline_after=STANDING)
    detail = f"{plan.what}: moving {len(plan.delete)} volume(s) to the trash" if tries == 0 else ""
    state = Deleting(plan=plan, committed=committed, tries=tries)
    return Next(state=state, send=send, wake_after=ANSWER_WAIT, detail=detail)


def _deleting(state: Deleting, event: JobEvent) -> Step:
    plan = state.plan
    match event:
        case Answered(answer=VolumesDeleted(kept=()) as deleted):
            return replace(nxt := _mended(plan), records=(VolumesGone(volumes=deleted.gone), *nxt.records))
        case Answered(answer=VolumesDeleted() as deleted):
            kept = "; ".join(f"{each.volume_id} is kept: {each.why}" for each in deleted.kept)
            nxt = _give_up(plan, Problem(code="volume_in_use", message=f"the SPM says: {kept}"))
            return replace(nxt, records=(VolumesGone(volumes=deleted.gone), *nxt.records))
        case Answered(answer=Failed() | Refused() as answer) if state.tries < MAX_TRIES:
            why = Problem(code=answer.code or "spm_unreachable", message=f"the SPM cannot delete: {answer.message}")
            return Next(state=replace(state, tries=state.tries + 1, why=why), wake_after=PAUSE, detail=why.message)
        case TimedOut() if state.tries < MAX_TRIES:
            return _delete(plan, committed=state.committed, tries=state.tries + 1)
        case TimedOut() | Answered(answer=Failed() | Refused()):
            why = state.why or Problem(code="spm_unreachable", message=f"the SPM of pool {plan.pool} is silent")
            return _needs_operator(plan, None, why)
        case Started() | Answered() | CancelRequested() | ResolveRequested():
            return Next(state=state)
        case _:
            assert_never(event)


# ---- ends -------------------------------------------------------------------------------------------------------


def _mended(plan: Plan) -> Step:
    records: list[Record] = [VolumesMade(volumes=plan.lost)] if plan.lost else []
    records += [VolumesGone(volumes=plan.replaced)] if plan.replaced else []
    records += [SnapshotFound(snapshot=each.snapshot, reason=each.reason) for each in plan.found]
    records.append(ChainSettled(vm=plan.vm, leaves=plan.leaves))
    return Next(state=Mended(plan=plan), records=tuple(records), detail=f"{plan.what}: done")


def _give_up(plan: Plan, why: Problem) -> Step:
    records = tuple(SnapshotDropped(snapshot=each.snapshot) for each in plan.found)
    return Next(state=GivenUp(plan=plan, why=why), records=records, detail=f"{plan.what}: given up: {why.message}")


def _without(state: State, host: HostId) -> Step:
    """Give up where a host must still be asked that was removed as lost; every volume is kept."""
    match state:
        case Asking() if host in state.ahead:
            pass
        case NeedsOperator() if host == state.host:
            pass
        case _:
            return Next(state=state)
    return _give_up(state.plan, Problem(code="host_lost", message=f"host {host} was removed as lost"))


def _needs_operator(plan: Plan, host: HostId | None, why: Problem) -> Step:
    return Next(state=NeedsOperator(plan=plan, host=host, why=why), detail=f"{plan.what}: {why.message}")


def _stuck(state: NeedsOperator, event: JobEvent) -> Step:
    """Begin anew when an operator says so: every part of a plan is safe to repeat."""
    match event:
        case ResolveRequested() if state.plan.hosts:
            hosts = state.plan.hosts
            return _ask(Asking(plan=state.plan, host=hosts[0], ahead=hosts))
        case ResolveRequested():
            return _adopt(state.plan)
        case Started() | Answered() | TimedOut() | CancelRequested():
            return Next(state=state)
        case _:
            assert_never(event)
