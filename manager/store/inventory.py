"""What the Manager knows of machines and volumes, as the engine needs it: attempts, places, leaves on record."""

from typing import Final

from sqlalchemy import Connection, bindparam, case, select, update

from common.ids import DiskId, HostId, VmId, VolumeId
from common.messaging.messages import VolumeFound
from manager.store.session import upsert
from manager.store.tables import disks, snapshot_disks, vm_hosts, vms, volumes

MAX_CATCH_UP: Final = 1_000_000
"""How far a consumer's record of attempts may be ahead of ours and still be believed. A Manager restored from a backup
is behind by some thousands at most; more is a fault or an attack that would use the counter up (P9)."""

_SET_SIZE: Final = update(snapshot_disks).where(snapshot_disks.c.new_volume_id == bindparam("made"))
_CURRENT_HOST: Final = (
    select(vm_hosts.c.host_id)
    .where(vm_hosts.c.vm_id == bindparam("vm"))
    .order_by(vm_hosts.c.rank, vm_hosts.c.seen_at.desc())
    .limit(1)
)
_RAISE: Final = update(vms).where(vms.c.id == bindparam("vm")).returning(vms.c.attempt)
_RAISE_TO_SPM: Final = _RAISE.values(attempt=vms.c.attempt + 1)
_RAISE_TO_HOST: Final = _RAISE_TO_SPM.values(host_attempt=vms.c.attempt + 1, attempt_host=bindparam("host"))


def current_host(connection: Connection, vm: VmId) -> HostId | None:
    """Return the host where a vm is now: where it is active, else where it is defined; None if it is nowhere.

    A vm that several hosts report goes to the one that reported it last: the other one has died, or lost it.
    """
    host = connection.execute(_CURRENT_HOST, {"vm": vm}).scalar()
    return HostId(host) if host else None


def raise_attempt(connection: Connection, vm: VmId, host: HostId | None) -> int:
    """Count a new command about a vm (to `host`, None: to an SPM) and return its attempt; locks the vm's row."""
    if host is None:
        attempt: int = connection.execute(_RAISE_TO_SPM, {"vm": vm}).scalar_one()
    else:
        attempt = connection.execute(_RAISE_TO_HOST, {"vm": vm, "host": host}).scalar_one()
    return attempt


def catch_up(connection: Connection, vm: VmId, highest: int) -> bool:
    """Raise a vm's attempt to what a consumer has on record; False if ours is as high, or theirs beyond belief.

    Otherwise a Manager restored from a backup would be refused as stale for ever.
    """
    behind = (vms.c.id == vm) & (vms.c.attempt < highest) & (vms.c.attempt >= highest - MAX_CATCH_UP)
    return connection.execute(update(vms).where(behind).values(attempt=highest)).rowcount == 1


def record_volumes(connection: Connection, found: tuple[VolumeFound, ...]) -> None:
    """Record that these volumes exist; what storage says replaces what was adopted from a host's report."""
    rows = [
        {
            "id": each.volume.volume_id,
            "disk_id": each.disk_id,
            "storage_domain_id": each.volume.storage_domain_id,
            "path": each.volume.path,
            "format": each.volume.format.value,
            "parent_id": each.parent_id,
            "size_bytes": each.size_bytes,
            "immutable": each.immutable,
            "origin": each.origin,
            "state": "exists",
        }
        for each in found
    ]
    upsert(connection, volumes, sorted(rows, key=lambda row: str(row["id"])))
    # A new volume has its parent's virtual size, so that the snapshot's size is known without asking again.
    sizes = [{"made": each.volume.volume_id, "size_bytes": each.size_bytes} for each in found if each.parent_id]
    if sizes:
        connection.execute(_SET_SIZE, sizes)


def forget_volumes(connection: Connection, gone: tuple[VolumeId, ...]) -> None:
    """Record that these volumes are deleted; a deleted id is never used again."""
    connection.execute(update(volumes).where(volumes.c.id.in_(gone)).values(state="deleted"))


def move_leaves(connection: Connection, leaves: tuple[tuple[DiskId, VolumeId], ...]) -> None:
    """Set the leaf on record of each disk."""
    moved = case(dict(leaves), value=disks.c.id)
    connection.execute(update(disks).where(disks.c.id.in_([disk for disk, _ in leaves])).values(leaf_volume_id=moved))


def settle_chain(connection: Connection, vm: VmId, leaves: tuple[tuple[DiskId, VolumeId], ...]) -> None:
    """Set leaves on record, and take back that the vm is off its chain: what a later report sees counts again."""
    connection.execute(update(vms).where(vms.c.id == vm).values(off_chain=""))
    if leaves:
        move_leaves(connection, leaves)
