"""The snapshot saga without its host: what becomes of a job whose host was removed because it never comes back. Pure.

Only that host could have fenced the new volumes and said what its definitions name, so nothing is deleted any more.
The vm goes on from the new volumes, whatever the host had done: an empty one equals its base, and one that holds data
holds what the vm wrote last (P1). The one exception is a host that was lost after it had rolled the vm back: then the
previous volumes are newer, which only that host knew. Nothing is deleted, and the error's cure says to compare both.
Where a host has said that it began to roll back, there is no snapshot: the previous volumes may hold later data.
"""

from typing import assert_never

from common.ids import HostId
from common.messaging.messages import LeavesObserved, Outcome
from common.receipt import Consistency
from manager.flows.base import ChainSettled, HostLost, Next, Problem, Record, SnapshotDropped, SnapshotTaken
from manager.flows.snapshot_outcome import delete
from manager.flows.snapshot_states import (
    AwaitingHost,
    Completed,
    CreatingVolumes,
    DeletingVolumes,
    Holding,
    HostGone,
    NeedsOperator,
    Pivoting,
    Probing,
    Repairing,
    RolledBack,
    State,
)

Step = Next[State]


def without(state: State, event: HostLost) -> Step:
    """Go on where the job waits for nothing of that host; otherwise end."""
    match state:
        case CreatingVolumes() if state.host == event.host:
            return delete(state, _problem(event.host))  # no pivot was ever sent: no host knows of the new volumes
        case Pivoting() | Holding() | Probing() | AwaitingHost() | Repairing() | NeedsOperator():
            return _keep_everything(state, event) if state.host == event.host else Next(state=state)
        case CreatingVolumes() | DeletingVolumes() | Completed() | RolledBack() | HostGone():
            return Next(state=state)  # a deletion has its proof already, and ends without any host
        case _:
            assert_never(state)


def _keep_everything(
    state: Pivoting | Holding | Probing | AwaitingHost | Repairing | NeedsOperator, event: HostLost
) -> Step:
    """End with the new volumes that exist as the leaves on record; with some of them deleted, there is no snapshot."""
    plan, why = state.plan, _problem(event.host)
    leaves = tuple((disk.disk_id, disk.new.volume_id) for disk in plan.disks if disk.new.volume_id in event.standing)
    records: tuple[Record, ...] = (SnapshotDropped(snapshot=plan.snapshot),)
    if leaves:
        records = (ChainSettled(vm=plan.vm, leaves=leaves), *records)
    if len(leaves) == len(plan.disks) and not state.commit_begun:
        taken = SnapshotTaken(
            snapshot=plan.snapshot,
            vm=plan.vm,
            disks=plan.disks,
            mode=plan.mode,
            host=event.host,
            consistency=Consistency.CRASH,
            reason=why.code,
            observed=LeavesObserved(outcome=Outcome.UNKNOWN, boot_id="", runtime_id="", code=why.code),
        )
        records = (taken,)
    detail = f"{why.message}; {len(leaves)} new volume(s) kept, as the leaves on record"
    return Next(state=HostGone(plan=plan, why=why), records=records, detail=detail)


def _problem(host: HostId) -> Problem:
    return Problem(code="host_lost", message=f"host {host} was removed as lost before it had answered")
