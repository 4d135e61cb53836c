"""A plan of each kind of going back, and every answer that the world can give to it."""

from functools import cache

from common.ids import PoolId, SnapshotId, VolumeId, derived_id
from common.images.layout import volume_path
from common.messaging.messages import (
    Answer,
    DiskSwitch,
    Failed,
    Format,
    Kept,
    KeptVolume,
    LeavesObserved,
    Outcome,
    Refusal,
    Refused,
    VolumeAt,
    VolumeFound,
    VolumesCreated,
    VolumesDeleted,
)
from manager.flows.base import Answered, CancelRequested, Event, HostLost, ResolveRequested, Started, TimedOut
from manager.flows.revert_states import Goal, Plan
from tests.unit.manager.flows.saga_kit import H1, H2, STORAGE_DOMAIN, VM
from tests.unit.manager.flows.saga_kit import disk as snapshot_of

GOALS: tuple[Goal, ...] = ("preview", "commit", "undo", "revert")
TARGETS = ("vda", "vdb")


def trial(target: str) -> VolumeAt:
    """Return the new leaf that shows the snapshot."""
    disk = snapshot_of(target).disk_id
    volume_id = VolumeId(derived_id("trial", target))
    path = volume_path(disk, volume_id)
    return VolumeAt(volume_id=volume_id, storage_domain_id=STORAGE_DOMAIN, path=path, format=Format.QCOW2)


def onto(target: str) -> DiskSwitch:
    """Return the way from the present leaf to a new one above the snapshot's volume."""
    taken = snapshot_of(target)
    return DiskSwitch(target=target, disk_id=taken.disk_id, old=taken.new, new=trial(target), over=taken.old)


def back(target: str) -> DiskSwitch:
    """Return the way back."""
    taken = snapshot_of(target)
    return DiskSwitch(target=target, disk_id=taken.disk_id, old=trial(target), new=taken.new, over=taken.old, kept=True)


def given_up(target: str, *, trials: bool) -> DiskSwitch:
    """Return a volume that is given up, as the command to delete it names it."""
    taken = snapshot_of(target)
    new = trial(target) if trials else taken.new
    return DiskSwitch(target=target, disk_id=taken.disk_id, old=taken.old, new=new)


@cache
def plan(goal: Goal) -> Plan:
    """Return a plan for two disks."""
    moves = {"preview": onto, "revert": onto, "undo": back}.get(goal)
    return Plan(
        goal=goal,
        vm=VM,
        pool=PoolId("default"),
        snapshot=SnapshotId(derived_id("test", "snapshot")),
        name="before",
        moves=tuple(moves(target) for target in TARGETS) if moves else (),
        drops=() if goal == "preview" else tuple(given_up(target, trials=goal == "undo") for target in TARGETS),
    )


def created() -> VolumesCreated:
    """Return the SPM's answer that every new leaf exists."""
    found = tuple(
        VolumeFound(volume=d.new, disk_id=d.disk_id, parent_id=d.parent.volume_id, size_bytes=1 << 26)
        for d in map(onto, TARGETS)
    )
    return VolumesCreated(created=found)


def observed(outcome: Outcome, code: str = "") -> LeavesObserved:
    """Return a host's observation."""
    return LeavesObserved(outcome=outcome, boot_id="b", runtime_id="", code=code, message=code)


def deleted(disks: tuple[DiskSwitch, ...], kept: Kept | None = None) -> VolumesDeleted:
    """Return the SPM's answer to a deletion: all gone, or the second volume kept."""
    first, second = (disk.new.volume_id for disk in disks)
    if kept is None:
        return VolumesDeleted(gone=(first, second))
    return VolumesDeleted(gone=(first,), kept=(KeptVolume(volume_id=second, why=kept),))


def events(goal: Goal) -> tuple[Event, ...]:
    """Return everything that may come in while such a job runs, in whatever state it is."""
    doomed = plan(goal).drops or plan(goal).moves
    answers: tuple[Answer, ...] = (
        created(),
        VolumesCreated(created=()),
        deleted(doomed),
        *(deleted(doomed, kept) for kept in Kept),
        *(observed(outcome) for outcome in Outcome),
        observed(Outcome.NONE, "vm_running"),
        Failed(code="storage_full", message="full"),
        *(Refused(why=why, message=why) for why in Refusal),
    )
    return (
        Started(),
        TimedOut(vm_host=H1),
        TimedOut(vm_host=H2),
        TimedOut(),
        CancelRequested(),
        ResolveRequested(vm_host=H1),
        ResolveRequested(),
        HostLost(host=H1),
        HostLost(host=H2),
        *(Answered(answer=answer, vm_host=H1) for answer in answers),
        *(Answered(answer=observed(Outcome.NOT_HERE), vm_host=host) for host in (H2, None)),
    )
