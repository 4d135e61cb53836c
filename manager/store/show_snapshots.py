"""Snapshots as users see them; those that were rolled back are not shown."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from common.errors import RequestRefused
from common.ids import SnapshotId, VmId, is_uuid
from manager.store import codec
from manager.store.facts import find_vm
from manager.store.snapshots import DROPPED
from manager.store.tables import snapshot_disks, snapshots, storage_domains, vms, volumes
from manager.views import SnapshotDiskView, SnapshotView

_SHOWN = snapshots.c.state != DROPPED


def list_snapshots(connection: Connection, vm: VmId) -> list[SnapshotView]:
    """Return the snapshots of a vm, newest first."""
    newest = snapshots.c.created_at.desc(), snapshots.c.id
    found = connection.execute(_joined().where(snapshots.c.vm_id == vm, _SHOWN).order_by(*newest)).all()
    return _views(connection, found)


def show_snapshot(connection: Connection, reference: str) -> SnapshotView:
    """Return the snapshot of that id, or VM/NAME, or that name where only one vm has it.

    Raises RequestRefused (snapshot_not_found, snapshot_ambiguous, vm_not_found, vm_ambiguous).
    """
    return _views(connection, [find_snapshot(connection, reference)])[0]


def find_snapshot(connection: Connection, reference: str) -> Row[Any]:
    """Return the row of the snapshot that a reference means. Raises as `show_snapshot` does."""
    found = connection.execute(_joined().where(_SHOWN, _meant(connection, reference)).limit(2)).all()
    if not found:
        raise RequestRefused("snapshot_not_found", f"there is no snapshot {reference!a}")
    if len(found) > 1:
        raise RequestRefused("snapshot_ambiguous", f"several machines have a snapshot {reference!a}")
    return found[0]


def _meant(connection: Connection, reference: str) -> ColumnElement[bool]:
    """Return what a reference means. libvirt allows no slash in a vm's name, so the first one divides VM and NAME."""
    if is_uuid(reference):
        return snapshots.c.id == reference
    alone = snapshots.c.name == reference
    vm, slash, name = reference.partition("/")
    if not slash:
        return alone
    if connection.execute(select(snapshots.c.id).where(_SHOWN, alone).limit(1)).first():
        return alone  # a name may hold a slash itself
    return (snapshots.c.vm_id == find_vm(connection, vm)) & (snapshots.c.name == name)


def _joined() -> Any:
    return select(snapshots, vms.c.name.label("vm_name")).join(vms, vms.c.id == snapshots.c.vm_id)


def _views(connection: Connection, found: Sequence[Row[Any]]) -> list[SnapshotView]:
    wanted = (
        select(snapshot_disks, volumes.c.path, volumes.c.storage_domain_id, storage_domains.c.name)
        .join(volumes, volumes.c.id == snapshot_disks.c.volume_id)
        .outerjoin(storage_domains, storage_domains.c.id == volumes.c.storage_domain_id)
        .where(snapshot_disks.c.snapshot_id.in_([row.id for row in found]))
        .order_by(snapshot_disks.c.target)
    )
    of: dict[str, list[SnapshotDiskView]] = {}
    for row in connection.execute(wanted):
        disk = SnapshotDiskView(
            target=row.target,
            volume_id=row.volume_id,
            storage_domain=row.name or row.storage_domain_id,
            path=row.path,
            size_bytes=row.size_bytes,
        )
        of.setdefault(row.snapshot_id, []).append(disk)
    return [_view(row, tuple(of.get(row.id, ()))) for row in found]


def _view(row: Row[Any], disks: tuple[SnapshotDiskView, ...]) -> SnapshotView:
    return SnapshotView(
        id=SnapshotId(row.id),
        name=row.name,
        description=row.description,
        vm=row.vm_id,
        vm_name=row.vm_name,
        state=row.state,
        consistency=row.consistency,
        consistency_reason=row.reason,
        taken_at=row.taken_at,
        created_at=row.created_at,
        disks=disks,
        excluded=codec.EXCLUDED.validate_json(row.excluded_json),
        partial=row.partial,
        receipt=json.loads(row.receipt_json),
    )
