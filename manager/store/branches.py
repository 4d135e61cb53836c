"""Volumes as a tree: what a snapshot's content is, what stands on what, and which volume somebody still needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from common.ids import DiskId, SnapshotId, StorageDomainId, VmId, VolumeId
from common.messaging.messages import Format, VolumeAt
from manager.revert_checks import SnapshotDisk, SnapshotFacts
from manager.store.show_snapshots import find_snapshot
from manager.store.snapshots import DROPPED
from manager.store.tables import snapshot_disks, snapshots, volumes

EXISTS = "exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A volume on record, and what it stands on."""

    volume: VolumeAt
    parent: VolumeId | None


def snapshot_facts(connection: Connection, reference: str) -> SnapshotFacts:
    """Return a snapshot with the volumes that hold it. Raises RequestRefused as `show_snapshots.find_snapshot` does."""
    row = find_snapshot(connection, reference)
    wanted = select(snapshot_disks).where(snapshot_disks.c.snapshot_id == row.id).order_by(snapshot_disks.c.target)
    disks = connection.execute(wanted).all()
    known = branches(connection, (VolumeId(disk.volume_id) for disk in disks))
    return SnapshotFacts(
        id=SnapshotId(row.id),
        vm=VmId(row.vm_id),
        name=row.name,
        state=row.state,
        disks=tuple(
            SnapshotDisk(
                target=disk.target,
                disk=DiskId(disk.disk_id),
                content=known[disk.volume_id].volume if disk.volume_id in known else None,
            )
            for disk in disks
        ),
    )


def branches(connection: Connection, ids: Iterable[VolumeId]) -> dict[str, Branch]:
    """Return those of these volumes that exist on record."""
    rows = connection.execute(select(volumes).where(volumes.c.id.in_(list(ids)), volumes.c.state == EXISTS))
    return {
        row.id: Branch(volume=volume_of(row), parent=VolumeId(row.parent_id) if row.parent_id else None) for row in rows
    }


def volume_of(row: Row[Any]) -> VolumeAt:
    """Return a row of `volumes` as a value."""
    return VolumeAt(
        volume_id=VolumeId(row.id),
        storage_domain_id=StorageDomainId(row.storage_domain_id),
        path=row.path,
        format=Format(row.format),
    )


def needed(connection: Connection, ids: Iterable[VolumeId]) -> set[str]:
    """Return those of these volumes on which another one stands, or that hold a snapshot's content."""
    wanted = list(ids)
    below = select(volumes.c.parent_id).where(volumes.c.parent_id.in_(wanted), volumes.c.state == EXISTS)
    held = (
        select(snapshot_disks.c.volume_id)
        .join(snapshots, snapshots.c.id == snapshot_disks.c.snapshot_id)
        .where(snapshot_disks.c.volume_id.in_(wanted), snapshots.c.state != DROPPED)
    )
    return {*connection.execute(below).scalars(), *connection.execute(held).scalars()}


def written_since(connection: Connection, leaves: Iterable[VolumeId]) -> datetime | None:
    """Return the moment from which on everything stands in these leaves alone: the oldest snapshot that made one of
    them, None where none has (the machine was put on a branch then)."""
    made = (
        select(func.min(snapshots.c.taken_at), func.count(func.distinct(snapshot_disks.c.new_volume_id)))
        .join(snapshot_disks, snapshot_disks.c.snapshot_id == snapshots.c.id)
        .where(snapshot_disks.c.new_volume_id.in_(wanted := list(leaves)), snapshots.c.state != DROPPED)
    )
    oldest, count = connection.execute(made).one()
    moment: datetime | None = oldest if count == len(wanted) else None
    return moment
