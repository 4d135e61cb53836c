"""Machines that show a snapshot for trial: which, since when, and each disk's way back."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, insert, select

from common.ids import DiskId, SnapshotId, VmId, VolumeId
from manager.flows.base import PreviewBegun
from manager.store.inventory import move_leaves
from manager.store.tables import previews, snapshots
from manager.views import PreviewDiskView, PreviewView

_JOINED: Final = select(previews, snapshots.c.name.label("snapshot_name")).join(
    snapshots, snapshots.c.id == previews.c.snapshot_id
)
_OF_VM: Final = _JOINED.where(previews.c.vm_id == bindparam("vm")).order_by(previews.c.target)


def begin(connection: Connection, begun: PreviewBegun, at: datetime) -> None:
    """Move the leaves on record to the preview's, and record the way back."""
    move_leaves(connection, tuple((disk.disk_id, disk.new.volume_id) for disk in begun.disks))
    rows = [
        {
            "disk_id": disk.disk_id,
            "vm_id": begun.vm,
            "snapshot_id": begun.snapshot,
            "target": disk.target,
            "kept_volume_id": disk.old.volume_id,
            "volume_id": disk.new.volume_id,
            "created_at": at,
        }
        for disk in begun.disks
    ]
    connection.execute(insert(previews), rows)


def end(connection: Connection, vm: VmId, leaves: tuple[tuple[DiskId, VolumeId], ...]) -> None:
    """Forget the way back, and set the leaves on record that are given. Safe to repeat."""
    connection.execute(delete(previews).where(previews.c.vm_id == vm))
    if leaves:
        move_leaves(connection, leaves)


def of_vm(connection: Connection, vm: VmId) -> PreviewView | None:
    """Return what a machine previews, None if nothing."""
    return _views(connection.execute(_OF_VM, {"vm": vm}).all()).get(vm)


def of_all(connection: Connection) -> dict[str, PreviewView]:
    """Return every preview, by machine."""
    return _views(connection.execute(_JOINED.order_by(previews.c.target)).all())


def _views(rows: Iterable[Row[Any]]) -> dict[str, PreviewView]:
    of: dict[str, list[Row[Any]]] = {}
    for row in rows:
        of.setdefault(row.vm_id, []).append(row)
    return {vm: _view(found) for vm, found in of.items()}


def _view(rows: list[Row[Any]]) -> PreviewView:
    disks = (
        PreviewDiskView(target=row.target, volume_id=row.volume_id, kept_volume_id=row.kept_volume_id) for row in rows
    )
    return PreviewView(
        snapshot_id=SnapshotId(rows[0].snapshot_id),
        snapshot_name=rows[0].snapshot_name,
        since=rows[0].created_at,
        disks=tuple(disks),
    )
