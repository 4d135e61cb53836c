"""What the tests of a deletion's flow share: a plan of three snapshots, every answer, every event."""

from __future__ import annotations

from common.ids import HostId, PoolId, SnapshotId, VmId, derived_id, disk_id
from common.messaging.merging import (
    DiskMerge,
    DiskMergeSeen,
    MergeSeen,
    MergeState,
    Way,
)
from common.messaging.messages import Answer, Failed, Kept, KeptVolume, Refusal, Refused, VolumesDeleted
from manager.flows.base import (
    Answered,
    CancelRequested,
    Event,
    HostLost,
    Next,
    ResolveRequested,
    TimedOut,
)
from manager.flows.delete import advance, begin
from manager.flows.delete_states import (
    Plan,
    Round,
    State,
)
from tests.unit.manager.doctor.scene import volume

H1, H2 = HostId("h1"), HostId("h2")
VM = VmId(derived_id("vm"))
FIRST, SECOND, BARE = (SnapshotId(derived_id(name)) for name in ("first", "second", "bare"))


def merge(top: str, base: str, target: str = "vda", way: Way = Way.CHAIN, *, leaf: bool = False) -> DiskMerge:
    return DiskMerge(target=target, disk_id=disk_id(VM, target), base=volume(base), top=volume(top), way=way, leaf=leaf)


PLAN = Plan(
    vm=VM,
    pool=PoolId("default"),
    rounds=(
        Round(snapshot=FIRST, name="first", disks=(merge("C", "B", leaf=True), merge("Y", "X", "vdb"))),
        Round(snapshot=BARE, name="bare", disks=()),
        Round(snapshot=SECOND, name="second", disks=(merge("B", "A", leaf=True),)),
    ),
)
TOPS = tuple(disk.top.volume_id for disk in PLAN.rounds[0].disks)


def seen(
    state: MergeState, *others: MergeState, begun: bool = True, code: str = "", committed: bool = False
) -> MergeSeen:
    """Return an answer in which vda, and vdb if it is given, are in these states."""
    states = (state, *others)
    disks = tuple(
        DiskMergeSeen(target=target, state=each, done_bytes=1, total_bytes=2)
        for target, each in zip(("vda", "vdb"), states, strict=False)
    )
    return MergeSeen(
        state=state, disks=disks, begun=begun, code=code, message=code, committed=TOPS[:1] if committed else ()
    )


ANSWERS: tuple[Answer, ...] = (
    *(seen(state) for state in MergeState),
    seen(MergeState.IDLE, begun=False, code="vm_busy"),
    seen(MergeState.IDLE, code="storage_full"),
    seen(MergeState.MERGED, committed=True),
    seen(MergeState.IDLE, MergeState.MERGED),
    seen(MergeState.COLD, MergeState.MERGED),
    VolumesDeleted(gone=TOPS),
    VolumesDeleted(gone=TOPS[:1], kept=(KeptVolume(volume_id=TOPS[1], why=Kept.IN_USE),)),
    VolumesDeleted(gone=(), kept=(KeptVolume(volume_id=TOPS[1], why=Kept.NOT_EMPTY),)),
    Failed(code="chain_unexpected", message="it is not as planned"),
    Refused(why=Refusal.NOT_READY, message="libvirt is away", code="libvirt_unavailable"),
    Refused(why=Refusal.BUSY, message="at it"),
    Refused(why=Refusal.STALE, message="late", highest=9),
)
EVENTS: tuple[Event, ...] = (
    *(Answered(answer=answer, vm_host=H1) for answer in ANSWERS),
    Answered(answer=seen(MergeState.UNKNOWN, begun=False, code="vm_not_found"), vm_host=H2),
    TimedOut(vm_host=H1),
    TimedOut(vm_host=H2),
    CancelRequested(),
    ResolveRequested(vm_host=H1),
    HostLost(host=H1),
    HostLost(host=H2),
)


def story(*events: Event) -> Next[State]:
    nxt: Next[State] = Next(state=begin(PLAN, H1))
    for event in events:
        nxt = advance(nxt.state, event)
    return nxt


def answered(answer: Answer) -> Event:
    return Answered(answer=answer, vm_host=H1)
