"""The tree of a machine's volumes on record: read for the plan of a deletion, and changed by what was merged."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, update

from common.ids import DiskId, SnapshotId, StorageDomainId, VmId, VolumeId
from common.messaging.merging import DiskMerge, Way
from common.messaging.messages import Format, VolumeAt
from manager.delete_plan import Content, Kept, Node, Tree
from manager.store import inventory
from manager.store.tables import disks, snapshot_disks, snapshots, volumes

_DROPPED = "dropped"
_EXISTS = "exists"


def tree_of(connection: Connection, vm: VmId) -> Tree:
    """Return a machine's volumes and snapshots, with whatever stands on them, other machines' volumes too."""
    kept = _snapshots(connection, vm)
    own = volumes.c.disk_id.in_(select(disks.c.id).where(disks.c.vm_id == vm))
    named = {content.volume for each in kept.values() for content in each.disks}
    found = _nodes(connection, own | volumes.c.id.in_(named))
    while more := _nodes(connection, volumes.c.parent_id.in_(found) & volumes.c.id.not_in(found)):
        found |= more
    below = {node.parent for node in found.values() if node.parent and node.parent not in found}
    found |= _nodes(connection, volumes.c.id.in_(below))
    leaves = connection.execute(select(disks.c.id, disks.c.leaf_volume_id).where(disks.c.leaf_volume_id.in_(found)))
    return Tree(volumes=found, leaves={DiskId(row.id): VolumeId(row.leaf_volume_id) for row in leaves}, snapshots=kept)


def _nodes(connection: Connection, wanted: ColumnElement[bool]) -> dict[VolumeId, Node]:
    rows = connection.execute(select(volumes).where(wanted, volumes.c.state == _EXISTS).order_by(volumes.c.id))
    return {VolumeId(row.id): _node(row) for row in rows}


def _node(row: Row[Any]) -> Node:
    at = VolumeAt(
        volume_id=VolumeId(row.id),
        storage_domain_id=StorageDomainId(row.storage_domain_id),
        path=row.path,
        format=Format(row.format),
    )
    parent = VolumeId(row.parent_id) if row.parent_id else None
    return Node(at=at, disk_id=DiskId(row.disk_id), parent=parent, immutable=row.immutable)


def _snapshots(connection: Connection, vm: VmId) -> dict[SnapshotId, Kept]:
    """Return the machine's snapshots, those that are being taken or deleted too: their volumes are wanted."""
    wanted = (
        select(snapshots.c.id, snapshots.c.name, snapshot_disks)
        .join(snapshot_disks, snapshot_disks.c.snapshot_id == snapshots.c.id)
        .where(snapshots.c.vm_id == vm, snapshots.c.state != _DROPPED)
        .order_by(snapshots.c.created_at, snapshot_disks.c.target)
    )
    kept: dict[SnapshotId, Kept] = {}
    for row in connection.execute(wanted):
        content = Content(target=row.target, disk_id=DiskId(row.disk_id), volume=VolumeId(row.volume_id))
        before = kept.get(SnapshotId(row.id), Kept(name=row.name, disks=()))
        kept[SnapshotId(row.id)] = Kept(name=row.name, disks=(*before.disks, content))
    return kept


def record(connection: Connection, merges: Sequence[DiskMerge]) -> None:
    """Let what stood on each merged volume, or had it as content or leaf, have its base instead. Safe to repeat.

    The volume itself stays on record until the SPM has said that it is gone.
    """
    for merge in _committed(merges):
        top, base = merge.top.volume_id, merge.base.volume_id
        connection.execute(update(volumes).where(volumes.c.parent_id == top).values(parent_id=base))
        if merge.leaf:
            inventory.move_leaves(connection, ((merge.disk_id, base),))
        content = update(snapshot_disks).where(snapshot_disks.c.volume_id == top)
        connection.execute(content.values(volume_id=base))


def _committed(merges: Iterable[DiskMerge]) -> list[DiskMerge]:
    return [merge for merge in merges if merge.way is not Way.DISCARD]
