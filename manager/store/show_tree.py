"""A machine's volumes as a tree: every branch, which snapshot each holds, and what going back or deleting would do."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row, select

from common.ids import VmId
from manager.store.snapshots import DROPPED
from manager.store.tables import disks, previews, snapshot_disks, snapshots, storage_domains, vms, volumes
from manager.views import SnapshotMark, TreeNode

EXISTS = "exists"


def tree_of(connection: Connection, vm: VmId) -> tuple[TreeNode, ...]:
    """Return every volume on record of a machine's disks, by target, each after what it stands on."""
    own = {row.id: row for row in connection.execute(select(disks).where(disks.c.vm_id == vm))}
    found = _volumes(connection, own)
    if not found:
        return ()
    ids = list(found)
    marks, guests = _marks(connection, ids), _guests(connection, ids, own)
    kept = set(connection.execute(select(previews.c.kept_volume_id).where(previews.c.vm_id == vm)).scalars())
    names = {id_: name for id_, name in connection.execute(select(storage_domains.c.id, storage_domains.c.name))}
    nodes: list[TreeNode] = []
    for disk in sorted(own.values(), key=lambda row: row.target):
        ordered = _ordered(_of_disk(found, disk))
        children = _children(ordered)
        for row in ordered:
            role = "leaf" if row.id == disk.leaf_volume_id else "kept" if row.id in kept else ""
            held = tuple(mark for owner, mark in marks.get(row.id, ()) if owner == vm)
            others = guests.get(row.id, ())
            nodes.append(
                TreeNode(
                    target=disk.target,
                    volume_id=row.id,
                    parent_id=row.parent_id,
                    storage_domain=names.get(row.storage_domain_id, row.storage_domain_id),
                    path=row.path,
                    size_bytes=row.size_bytes,
                    immutable=row.immutable,
                    role=role,
                    snapshots=held,
                    used_by=others,
                    revert_gives_up=disk.leaf_volume_id if held and not marks.get(disk.leaf_volume_id) else None,
                    if_deleted=_if_deleted(row, children.get(row.id, 0) + len(others)) if held else "",
                )
            )
    return tuple(nodes)


def _if_deleted(row: Row[Any], above: int) -> str:
    """Return what a delete of the snapshot that a volume holds has to do with it."""
    if row.immutable:
        return "immutable"
    return "shared" if above > 1 else "merge"


def _volumes(connection: Connection, own: Mapping[str, Row[Any]]) -> dict[str, Row[Any]]:
    """Return the volumes of these disks, and everything that they stand on, by id."""
    exist = select(volumes).where(volumes.c.state == EXISTS)
    found = {row.id: row for row in connection.execute(exist.where(volumes.c.disk_id.in_(list(own))))}
    wanted = {disk.leaf_volume_id for disk in own.values()} | {row.parent_id for row in found.values()}
    while missing := {id_ for id_ in wanted if id_} - found.keys():
        more = {row.id: row for row in connection.execute(exist.where(volumes.c.id.in_(sorted(missing))))}
        found |= more
        wanted = {row.parent_id for row in more.values()}
    return found


def _of_disk(found: Mapping[str, Row[Any]], disk: Row[Any]) -> list[Row[Any]]:
    """Return a disk's own volumes with those that they stand on; a loop in the record ends where it closes."""
    line: dict[str, Row[Any]] = {}
    for row in found.values():
        here = row if row.disk_id == disk.id or row.id == disk.leaf_volume_id else None
        while here is not None and here.id not in line:
            line[here.id] = here
            here = found.get(here.parent_id)
    return list(line.values())


def _ordered(rows: Iterable[Row[Any]]) -> list[Row[Any]]:
    """Return volumes so that each comes after its parent, and a branch is told to its end before the next."""
    above: dict[str | None, list[Row[Any]]] = {}
    known = {row.id: row for row in rows}
    for row in known.values():
        above.setdefault(row.parent_id if row.parent_id in known else None, []).append(row)
    ordered: list[Row[Any]] = []
    waiting = sorted(above.get(None, []), key=lambda row: str(row.path), reverse=True)
    while waiting:
        row = waiting.pop()
        ordered.append(row)
        waiting += sorted(above.get(row.id, []), key=lambda each: str(each.path), reverse=True)
    return ordered


def _children(rows: Iterable[Row[Any]]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for row in rows:
        if row.parent_id:
            counted[row.parent_id] = counted.get(row.parent_id, 0) + 1
    return counted


def _marks(connection: Connection, ids: list[str]) -> dict[str, list[tuple[str, SnapshotMark]]]:
    """Return which snapshots each volume holds, with their machine."""
    held = (
        select(snapshot_disks.c.volume_id, snapshots)
        .join(snapshots, snapshots.c.id == snapshot_disks.c.snapshot_id)
        .where(snapshot_disks.c.volume_id.in_(ids), snapshots.c.state != DROPPED)
        .order_by(snapshots.c.created_at)
    )
    marks: dict[str, list[tuple[str, SnapshotMark]]] = {}
    for row in connection.execute(held):
        mark = SnapshotMark(id=row.id, name=row.name, consistency=row.consistency, taken_at=row.taken_at)
        marks.setdefault(row.volume_id, []).append((row.vm_id, mark))
    return marks


def _guests(connection: Connection, ids: list[str], own: Mapping[str, Row[Any]]) -> dict[str, tuple[str, ...]]:
    """Return the names of the other machines whose volumes stand on each volume."""
    above = (
        select(volumes.c.parent_id, vms.c.name)
        .join(disks, disks.c.id == volumes.c.disk_id)
        .join(vms, vms.c.id == disks.c.vm_id)
        .where(volumes.c.parent_id.in_(ids), volumes.c.state == EXISTS, volumes.c.disk_id.not_in(list(own)))
        .order_by(vms.c.name)
    )
    guests: dict[str, tuple[str, ...]] = {}
    for parent, name in connection.execute(above):
        guests[parent] = (*guests.get(parent, ()), name)
    return guests
