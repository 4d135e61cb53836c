"""The database as doctor compares it: everything that is on record, of one moment."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from common.ids import DiskId, HostId, PoolId, SnapshotId, StorageDomainId, VmId, VolumeId
from common.messaging.messages import Format, VolumeAt
from manager.doctor.facts import (
    DiskRecord,
    JobRecord,
    Record,
    SnapshotRecord,
    StorageRecord,
    VmRecord,
    VolumeRecord,
)
from manager.store import locks, show_jobs
from manager.store.snapshots import DROPPED
from manager.store.tables import disks, hosts, jobs, previews, snapshot_disks, snapshots, storage_domains, vms, volumes

_HOSTS = select(hosts.c.id).where(hosts.c.removed_at.is_(None)).order_by(hosts.c.id)
"""Not those that were removed as lost: nobody there answers, and what is deleted without them is empty (P1)."""


def read(connection: Connection, now: datetime) -> Record:
    """Return the whole record. Bulk statements only; a fleet of a thousand machines has some ten thousand rows."""
    held = select(jobs.c.vm_id, jobs.c.id).where(jobs.c.finished_at.is_(None))
    busy = {vm: f"lock {lock.id}" for vm, lock in locks.all_held(connection, now).items()}
    busy |= {vm: f"job {job}" for vm, job in connection.execute(held)}
    waiting = show_jobs.list_jobs(connection, now, vm=None, active=True)
    dropped = select(snapshots.c.id).where(snapshots.c.state == DROPPED)
    return Record(
        vms={
            VmId(row.id): VmRecord(name=row.name, busy_with=busy.get(row.id, ""), attempt=row.attempt)
            for row in connection.execute(select(vms))
        },
        disks={
            DiskId(row.id): DiskRecord(vm=VmId(row.vm_id), target=row.target, leaf=VolumeId(row.leaf_volume_id))
            for row in connection.execute(select(disks))
        },
        volumes=dict(_volumes(connection.execute(select(volumes).where(volumes.c.state == "exists")))),
        snapshots=_snapshots(connection),
        dropped=frozenset(SnapshotId(id_) for id_ in connection.execute(dropped).scalars()),
        jobs=tuple(
            JobRecord(id=job.id, vm_name=job.vm_name, waiting_for=job.waiting_for) for job in waiting if job.waiting_for
        ),
        storage={
            StorageDomainId(row.id): StorageRecord(name=row.name, pool=PoolId(row.pool_id), problem=row.problem)
            for row in connection.execute(select(storage_domains))
        },
        hosts=tuple(HostId(id_) for id_ in connection.execute(_HOSTS).scalars()),
        kept=frozenset(VolumeId(id_) for id_ in connection.execute(select(previews.c.kept_volume_id)).scalars()),
    )


def seen_at(connection: Connection) -> dict[HostId, datetime]:
    """Return when each host reported last."""
    seen = select(hosts.c.id, hosts.c.seen_at).where(hosts.c.removed_at.is_(None))
    return {HostId(id_): at for id_, at in connection.execute(seen)}


def _volumes(rows: Iterable[Row[Any]]) -> Iterable[tuple[VolumeId, VolumeRecord]]:
    for row in rows:
        volume = VolumeAt(
            volume_id=VolumeId(row.id),
            storage_domain_id=StorageDomainId(row.storage_domain_id),
            path=row.path,
            format=Format(row.format),
        )
        known = VolumeRecord(
            volume=volume,
            disk=DiskId(row.disk_id),
            parent=VolumeId(row.parent_id) if row.parent_id else None,
            is_created=row.origin == "created",
            is_immutable=row.immutable,
        )
        yield volume.volume_id, known


def _snapshots(connection: Connection) -> dict[SnapshotId, SnapshotRecord]:
    of: dict[str, list[tuple[DiskId, VolumeId, VolumeId]]] = {}
    for row in connection.execute(select(snapshot_disks)):
        disk = (DiskId(row.disk_id), VolumeId(row.volume_id), VolumeId(row.new_volume_id))
        of.setdefault(row.snapshot_id, []).append(disk)
    return {
        SnapshotId(row.id): SnapshotRecord(vm=VmId(row.vm_id), name=row.name, disks=tuple(of.get(row.id, ())))
        for row in connection.execute(select(snapshots).where(snapshots.c.state != DROPPED))
    }
