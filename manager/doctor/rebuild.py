"""What the metadata on storage knows and the record does not: how a lost database comes back. Pure.

Every volume's document says its machine, disk, parent, and the snapshot for which it was made; the content of that
snapshot is in the parent. Only what is in the chain of a machine comes back by itself: elsewhere a volume may be left
from a snapshot that never was.
"""

from collections.abc import Iterator
from typing import Final

from common.ids import DiskId, SnapshotId, VmId, VolumeId
from common.messaging.messages import DiskSwitch, VolumeFound
from common.messaging.surveys import MetadataSeen
from manager.doctor.facts import Key
from manager.doctor.findings import Finding, FoundSnapshot, Mend
from manager.doctor.machines import pool_of, stands_of
from manager.doctor.view import View, volume_of
from manager.flows.mend_states import Found, Plan

LOST: Final = "record_lost"
"""Why a snapshot whose receipt is gone is crash-consistent."""


def of_record(view: View) -> Iterator[Finding]:
    """Yield the machines of whose chains the record knows less than storage does."""
    for vm in view.record.vms:
        if view.is_settled(vm) and (finding := _of_vm(view, vm)):
            yield finding


def lost_in(view: View, vm: VmId) -> list[tuple[Key, MetadataSeen]]:
    """Return the volumes in a machine's chains, base first, that the record does not have under their own id."""
    home = view.home(vm)
    lost: dict[VolumeId, tuple[Key, MetadataSeen]] = {}
    for stand in stands_of(view, home) if home else ():
        # The leaf must be where it is on record: anything else is to be sorted out first.
        chain = [stand.leaf_key, *view.below(stand.leaf_key)] if stand.is_on_record else []
        for key in reversed(chain):
            seen = view.volumes.get(key)
            if seen is not None and seen.metadata.volume_id not in view.record.volumes:
                lost[seen.metadata.volume_id] = (key, seen.metadata)
    return list(lost.values())


def _of_vm(view: View, vm: VmId) -> Finding | None:
    lost = lost_in(view, vm)
    home = view.home(vm)
    if not lost or home is None:
        return None
    leaves: list[tuple[DiskId, VolumeId]] = []
    replaced: list[VolumeId] = []
    for stand in stands_of(view, home):
        for key, metadata in lost:
            if key == stand.leaf_key and metadata.volume_id != stand.leaf.volume_id:
                leaves.append((stand.disk, metadata.volume_id))
                replaced.append(stand.leaf.volume_id)
    snapshots = _snapshots(view, vm, lost)
    plan = Plan(
        vm=vm,
        pool=pool_of(view, volume_of(lost[0][0][0], lost[0][1])),
        what=f"put {len(lost)} volume(s) of {view.name(vm)} back on record",
        found=tuple(Found(snapshot=each.id, reason=LOST) for each in snapshots),
        leaves=tuple(leaves),
        lost=tuple(_found(key, metadata) for key, metadata in lost),
        replaced=tuple(replaced),
    )
    seen = f"{len(lost)} volume(s) and {len(snapshots)} snapshot(s) are only in the metadata on storage"
    mend = Mend(plan=plan, snapshots=snapshots)
    return Finding(code="record_lost", subject=view.name(vm), seen=seen, vm=vm, mend=mend)


def _found(key: Key, metadata: MetadataSeen) -> VolumeFound:
    return VolumeFound(
        volume=volume_of(key[0], metadata),
        disk_id=metadata.disk_id,
        parent_id=metadata.parent_id,
        size_bytes=metadata.size_bytes,
        immutable=metadata.is_immutable,
        origin="created" if metadata.is_created else "adopted",
    )


def _snapshots(view: View, vm: VmId, lost: list[tuple[Key, MetadataSeen]]) -> tuple[FoundSnapshot, ...]:
    targets = {id_: disk.target for id_, disk in view.record.disks.items() if disk.vm == vm}
    disks: dict[SnapshotId, list[DiskSwitch]] = {}
    for key, metadata in lost:
        snapshot, parent = metadata.snapshot_id, view.by_id.get(metadata.parent_id) if metadata.parent_id else None
        if snapshot is None or parent is None or metadata.disk_id not in targets or snapshot in view.record.snapshots:
            continue
        disks.setdefault(snapshot, []).append(
            DiskSwitch(
                target=targets[metadata.disk_id],
                disk_id=metadata.disk_id,
                old=volume_of(parent[0][0], parent[1]),
                new=volume_of(key[0], metadata),
            )
        )
    return tuple(
        FoundSnapshot(id=snapshot, name=f"recovered-{snapshot[:8]}", disks=tuple(found))
        for snapshot, found in disks.items()
        if snapshot not in view.record.dropped
    )
