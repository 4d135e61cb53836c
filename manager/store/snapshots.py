"""Snapshots: reserved with their job, completed or dropped by its outcome."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, assert_never

from sqlalchemy import Connection, bindparam, insert, select, update

from common.ids import JobId, SnapshotId, VmId, VolumeId
from common.messaging.messages import DiskSwitch
from common.receipt import Consistency
from manager.flows.base import (
    BranchSettled,
    ChainSettled,
    PreviewBegun,
    Record,
    SnapshotDropped,
    SnapshotFound,
    SnapshotMerged,
    SnapshotsMarked,
    SnapshotTaken,
    VolumesGone,
    VolumesMade,
)
from manager.store import codec, inventory, merges, previews, receipts
from manager.store.tables import snapshot_disks, snapshots, volumes
from manager.views import ExcludedDisk

CREATING = "creating"
OK = "ok"
DROPPED = "dropped"
DELETING = "deleting"
HALF_MERGED = "half_merged"
"""A deletion was given up after it had begun: its volume is no point of its own any more, and can only be deleted."""

_NAMED: Final = select(snapshots.c.id).where(
    snapshots.c.vm_id == bindparam("vm"), snapshots.c.name == bindparam("name"), snapshots.c.state != DROPPED
)
_STANDING: Final = (
    select(volumes.c.id)
    .join(snapshot_disks, snapshot_disks.c.new_volume_id == volumes.c.id)
    .where(snapshot_disks.c.snapshot_id == bindparam("snapshot"), volumes.c.state == "exists")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot that a job is to take. `partial`: a writable disk is left out."""

    id: SnapshotId
    vm: VmId
    name: str
    description: str
    disks: Sequence[DiskSwitch]
    excluded: tuple[ExcludedDisk, ...]
    partial: bool
    created_at: datetime


def reserve(connection: Connection, new: NewSnapshot) -> None:
    """Store a snapshot in state `creating`; its name is taken from here on.

    Raises sqlalchemy.exc.IntegrityError if the vm has one of that name.
    """
    row = {
        "id": new.id,
        "vm_id": new.vm,
        "name": new.name,
        "description": new.description,
        "state": CREATING,
        "excluded_json": codec.dump(codec.EXCLUDED, new.excluded),
        "partial": new.partial,
        "created_at": new.created_at,
    }
    connection.execute(insert(snapshots), row)
    rows = [
        {
            "snapshot_id": new.id,
            "disk_id": disk.disk_id,
            "target": disk.target,
            "volume_id": disk.old.volume_id,
            "new_volume_id": disk.new.volume_id,
        }
        for disk in new.disks
    ]
    connection.execute(insert(snapshot_disks), rows)


def name_is_taken(connection: Connection, vm: VmId, name: str) -> bool:
    """Tell whether a vm has a snapshot of that name, one that is being taken included."""
    return connection.execute(_NAMED, {"vm": vm, "name": name}).first() is not None


def apply_records(connection: Connection, job: JobId, records: Sequence[Record], at: datetime) -> None:
    """Carry out in the inventory what a step of `job`, whose answer is recorded, has found to be true; `at` is now."""
    for record in records:
        match record:
            case VolumesMade(volumes=made):
                inventory.record_volumes(connection, made)
            case VolumesGone(volumes=gone):
                inventory.forget_volumes(connection, gone)
            case SnapshotTaken():
                _complete(connection, job, record, at)
            case SnapshotDropped(snapshot=snapshot):
                dropped = update(snapshots).where(snapshots.c.id == snapshot)
                connection.execute(dropped.values(state=DROPPED))
            case SnapshotFound(snapshot=snapshot, reason=reason):
                found = update(snapshots).where(snapshots.c.id == snapshot)
                connection.execute(found.values(state=OK, consistency=Consistency.CRASH.value, reason=reason))
            case ChainSettled(vm=vm, leaves=leaves):
                inventory.settle_chain(connection, vm, leaves)
            case _:
                _apply_to_tree(connection, record, at)


def _apply_to_tree(
    connection: Connection, record: PreviewBegun | BranchSettled | SnapshotMerged | SnapshotsMarked, at: datetime
) -> None:
    """Carry out what changes the tree of a machine's volumes: going back to a snapshot, and deleting one."""
    match record:
        case PreviewBegun():
            previews.begin(connection, record, at)
        case BranchSettled(vm=vm, leaves=leaves):
            previews.end(connection, vm, leaves)
        case SnapshotMerged(snapshot=snapshot, merges=merged):
            merges.record(connection, merged)
            connection.execute(update(snapshots).where(snapshots.c.id == snapshot).values(state=DROPPED))
        case SnapshotsMarked(snapshots=marked, state=state):
            mark(connection, marked, state)
        case _:
            assert_never(record)


def mark(connection: Connection, marked: Sequence[SnapshotId], state: str) -> None:
    """Put snapshots that exist into a state."""
    kept = snapshots.c.id.in_(marked) & (snapshots.c.state != DROPPED)
    connection.execute(update(snapshots).where(kept).values(state=state))


def _complete(connection: Connection, job: JobId, taken: SnapshotTaken, at: datetime) -> None:
    """Move the leaves on record and complete the snapshot. Without a receipt the moment of the pivot is not known."""
    pivoted = taken.observed.receipt
    inventory.move_leaves(connection, tuple((disk.disk_id, disk.new.volume_id) for disk in taken.disks))
    connection.execute(
        update(snapshots)
        .where(snapshots.c.id == taken.snapshot)
        .values(
            state=OK,
            consistency=taken.consistency.value,
            reason=taken.reason,
            receipt_json=json.dumps(receipts.receipt_of(connection, job, taken)),
            live_xml=taken.observed.live_xml,
            persistent_xml=taken.observed.persistent_xml,
            taken_at=pivoted.switched_at if pivoted else at,
            freeze_ms=pivoted.freeze_ms if pivoted and pivoted.freeze_confirmed else None,
            held_ms=pivoted.held_ms if pivoted and pivoted.freeze_confirmed else None,
        )
    )


def standing_volumes(connection: Connection, snapshot: SnapshotId) -> tuple[VolumeId, ...]:
    """Return those of the new volumes of a snapshot that exist on record."""
    return tuple(VolumeId(id_) for id_ in connection.execute(_STANDING, {"snapshot": snapshot}).scalars())
