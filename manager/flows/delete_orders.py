"""What a deletion orders when it enters a state: the commands, and how long their answers are waited for. Pure."""

from dataclasses import replace
from datetime import timedelta
from typing import Literal

from common.ids import HostId
from common.messaging.merging import (
    CheckMerge,
    DiskMerge,
    FinishMerge,
    MarkMerge,
    MergeDisks,
    MergeSeen,
    MergeVolumes,
)
from manager.flows.base import Next, Problem, SnapshotMerged, SnapshotsMarked, ToHost, ToSpm
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
    Progress,
    State,
    Stopping,
)

Step = Next[State]

MAX_TRIES = 8
"""How often what does not go is tried before an operator is asked (P7)."""
HOLD_TRIES = 60
"""How often a step that could not begin is put off: about ten minutes."""
ANSWER_WAIT = timedelta(seconds=45)
"""After this a silent host is shown as such. libvirt lets go of its job lock after 30 s at the latest (measured)."""
ASK_AGAIN = timedelta(seconds=60)
STANDING = timedelta(days=30)
"""Deadline of commands that are safe whenever they arrive: each looks first, and proves before it acts."""
_SHORT_PAUSE = timedelta(seconds=2)
_FIRST_LOOK = timedelta(milliseconds=250)
_LONGEST_LOOK = timedelta(seconds=5)


def look_pause(looks: int) -> timedelta:
    """Return how long to wait before the next look at a merge that runs: about a tenth of what it has run, at most 5 s.

    Its end is told (`Flow.may_look_early`); where that is lost, it is seen late by a tenth at most.
    """
    return min(_FIRST_LOOK * 1.1 ** min(looks, 40), _LONGEST_LOOK)


def pause(tries: int) -> timedelta:
    """Return how long to wait before something is tried again."""
    return min(_SHORT_PAUSE * max(tries, 1), timedelta(seconds=10))


def _what(at: At) -> str:
    whole = len(at.plan.rounds)
    return f"snapshot {at.round.name}" + (f" ({at.number + 1} of {whole})" if whole > 1 else "")


def mark(at: At, tries: int = 0) -> Step:
    """Begin a round: have storage checked, and what vanishes marked. Without a disk there is only the record."""
    if not at.round.disks:
        return next_round(at, f"{_what(at)}: its volumes are still wanted, only its record goes")
    command = MarkMerge(vm_id=at.plan.vm, disks=at.round.disks)
    send = ToSpm(pool=at.plan.pool, command=command, deadline_after=STANDING)
    detail = f"{_what(at)}: having storage checked and marked" if tries == 0 else ""
    return Next(state=Marking(at=at, tries=tries), send=send, wake_after=ASK_AGAIN, detail=detail)


def merge(state: Merging, *, host: HostId | None = None, detail: str = "") -> Step:
    """Tell the machine's host what `state.order` says; it is the one where the inventory has the machine now."""
    at = _asked(state.at, host or state.at.host)
    disks, begun = at.round.disks, at.begun_by_host
    command: MergeDisks | CheckMerge = CheckMerge(vm_id=at.plan.vm, disks=disks, begun=begun)
    if state.order == "merge":
        command = MergeDisks(vm_id=at.plan.vm, disks=disks, bytes_per_s=at.plan.bytes_per_s, begun=begun)
    send = ToHost(host=at.host, command=command, deadline_after=STANDING)
    asking = replace(state, at=at, pausing=False, why=None)
    return Next(state=asking, send=send, wake_after=ANSWER_WAIT, detail=detail)


def merge_anew(
    at: At, order: Literal["merge", "check"], *, tries: int = 0, host: HostId | None = None, detail: str = ""
) -> Step:
    """Go to the host, whatever was before."""
    return merge(Merging(at=at, order=order, tries=tries), host=host, detail=detail)


def _asked(at: At, host: HostId) -> At:
    """Return where the plan stands once the machine's host is asked."""
    return replace(at, host=host, unheard=(*_others(at.unheard, host), host), consulted=None)


def heard(at: At, host: HostId) -> At:
    """Return where the plan stands once a host has answered: each command fences all that it had before."""
    return replace(at, unheard=_others(at.unheard, host))


def _others(hosts: tuple[HostId, ...], host: HostId) -> tuple[HostId, ...]:
    return tuple(other for other in hosts if other != host)


def _former(at: At, host: HostId | None) -> tuple[HostId, ...]:
    """Return the hosts to consult; none while the machine's own was not asked since, or what they know is known."""
    is_due = host in (None, at.host) and not at.begun_by_host and at.consulted is None
    return _others(at.unheard, at.host) if is_due else ()


def merge_or_consult(state: Merging, *, host: HostId | None) -> Step:
    """Ask the machine's host; or, each second time, one from which it may have come: only there it may be written down
    that a commit was begun."""
    at, former = state.at, _former(state.at, host)
    if not former:
        return merge(state, host=host)
    at = replace(at, consulted=former[-1])
    send = ToHost(host=former[-1], command=CheckMerge(vm_id=at.plan.vm, disks=at.round.disks), deadline_after=STANDING)
    return Next(state=replace(state, at=at, pausing=False, why=None), send=send, wake_after=ANSWER_WAIT)


def cold(at: At, disks: tuple[DiskMerge, ...], *, tries: int = 0) -> Step:
    """Have the SPM merge disks that no machine has open."""
    state = ColdMerging(at=at, disks=disks, tries=tries)
    return replace(ask_spm(state), detail=f"{_what(at)}: no machine uses the volumes, the SPM merges")


def ask_spm(state: ColdMerging) -> Step:
    """Have the SPM begin, or say how far it is: it is the same command."""
    plan = state.at.plan
    command = MergeVolumes(vm_id=plan.vm, disks=state.disks, bytes_per_s=plan.bytes_per_s)
    send = ToSpm(pool=plan.pool, command=command, deadline_after=STANDING)
    return Next(state=replace(state, pausing=False, why=None), send=send, wake_after=ASK_AGAIN)


def finish(at: At, tries: int = 0, *, again: bool = False) -> Step:
    """Have what is merged recorded on storage, and what vanishes moved to the trash; `again`, since it could not be."""
    command = FinishMerge(vm_id=at.plan.vm, disks=at.round.disks, committed=at.committed)
    send = ToSpm(pool=at.plan.pool, command=command, deadline_after=STANDING)
    merged = SnapshotMerged(snapshot=at.round.snapshot, merges=at.round.disks)
    detail = f"{_what(at)}: merged; moving {len(at.round.disks)} volume(s) to the trash" if not again else ""
    state = Finishing(at=at, tries=tries)
    return Next(state=state, send=send, wake_after=ASK_AGAIN, records=(merged,), detail=detail)


def next_round(at: At, detail: str) -> Step:
    """Go on with the next snapshot, or end."""
    records = (SnapshotMerged(snapshot=at.round.snapshot, merges=at.round.disks),)
    if at.number + 1 == len(at.plan.rounds):
        return Next(state=Deleted(at=at), records=records, detail=detail)
    following = mark(At(plan=at.plan, host=at.host, number=at.number + 1))
    return replace(following, records=(*records, *following.records), detail=f"{detail}; {following.detail}")


def stop(at: At, part: Literal["host", "spm", "marks"], why: Problem, *, tries: int = 0, detail: str = "") -> Step:
    """End what runs, part by part, and take the marks back."""
    plan, disks = at.plan, at.round.disks
    state = Stopping(at=at, part=part, why=why, tries=tries)
    if part == "host":
        order = CheckMerge(vm_id=plan.vm, disks=disks, abort=True, begun=at.begun_by_host)
        send: ToHost | ToSpm = ToHost(host=at.host, command=order, deadline_after=STANDING)
        state = replace(state, at=_asked(at, at.host))
        return Next(state=state, send=send, wake_after=ANSWER_WAIT, detail=detail)
    if part == "spm":
        send = ToSpm(
            pool=plan.pool, command=MergeVolumes(vm_id=plan.vm, disks=disks, abort=True), deadline_after=STANDING
        )
    else:
        send = ToSpm(pool=plan.pool, command=MarkMerge(vm_id=plan.vm, disks=disks, undo=True), deadline_after=STANDING)
    return Next(state=state, send=send, wake_after=ASK_AGAIN, detail=detail)


def stop_or_consult(state: Stopping, *, host: HostId | None) -> Step:
    """End what runs at the machine's host; or, each second time, ask one from which it may have come."""
    at, former = state.at, _former(state.at, host)
    if not former:
        return stop(replace(at, host=host or at.host), "host", state.why, tries=state.tries)
    asking = replace(state, at=replace(at, consulted=former[-1]), pausing=False)
    order = CheckMerge(vm_id=at.plan.vm, disks=at.round.disks, abort=True)
    send = ToHost(host=former[-1], command=order, deadline_after=STANDING)
    return Next(state=asking, send=send, wake_after=ANSWER_WAIT)


def give_up(at: At, why: Problem) -> Step:
    """End; a snapshot whose volume may hold newer data than it had is no snapshot any more, but can be deleted."""
    later = tuple(each.snapshot for each in at.plan.rounds[at.number + (1 if at.begun else 0) :])
    records = [SnapshotsMarked(snapshots=later, state="ok")] if later else []
    if at.begun:
        records.append(SnapshotsMarked(snapshots=(at.round.snapshot,), state="half_merged"))
    return Next(state=GivenUp(at=at, why=why), records=tuple(records), detail=f"{_what(at)}: given up: {why.message}")


def needs_operator(at: At, why: Problem) -> Step:
    """Keep the machine, whose chain is whole and works, until somebody decides."""
    stuck = NeedsOperator(at=at, why=why)
    return Next(state=stuck, detail=f"{_what(at)}: an operator must decide: {why.message}")


def await_host(at: At, why: Problem) -> Step:
    """Wait for a host that is silent or cannot look."""
    return Next(state=AwaitingHost(at=at, why=why), wake_after=ASK_AGAIN, detail=why.message)


def progress_of(seen: MergeSeen) -> Progress:
    """Return the sum over the disks."""
    done, total = (sum(disk.done_bytes for disk in seen.disks), sum(disk.total_bytes for disk in seen.disks))
    return Progress(done_bytes=done, total_bytes=total)


def problem_in(seen: MergeSeen, who: str) -> Problem:
    """Return why a merge is not going well."""
    message = f"{who} saw {seen.state.value}" + (f": {seen.message}" if seen.message else "")
    return Problem(code=seen.code or "merge_failed", message=message, hint=seen.hint)
