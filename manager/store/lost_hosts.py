"""Hosts that were removed because they never come back: what they say is refused until they are given a new key."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, or_, select, update

from common.ids import HostId, JobId, PoolId, StorageDomainId
from manager.store import codec
from manager.store.sightings import NOT_LISTED
from manager.store.tables import hosts, jobs, storage_domains, vm_hosts, vms

_ADMISSION: Final = (
    select(hosts.c.removed_at, hosts.c.revoked_keys).where(hosts.c.id == bindparam("host")).with_for_update()
)
_REMOVED: Final = select(hosts.c.id).where(hosts.c.id == bindparam("host"), hosts.c.removed_at.is_not(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A host on record. `removed_at` is None unless it was removed; `pools` has, by pool, the storage domains of its
    settings."""

    removed_at: datetime | None
    revoked_keys: str
    pools: dict[PoolId, tuple[StorageDomainId, ...]]


@dataclass(frozen=True, slots=True)
class Removed:
    """A host that was removed: since when, and with which keys."""

    at: datetime
    revoked_keys: str


def removed(connection: Connection, host: HostId) -> Removed | None:
    """Tell of a host that was removed; None for any other. Its row stays locked, so that a report and a removal come
    one after the other."""
    row = connection.execute(_ADMISSION, {"host": host}).first()
    return None if row is None or row.removed_at is None else Removed(row.removed_at, row.revoked_keys)


def find(connection: Connection, host: HostId) -> Known | None:
    """Return what is on record of a host, removed or not; None if it has never reported. Its row stays locked, so that
    a report and a removal come one after the other."""
    row = connection.execute(select(hosts).where(hosts.c.id == host).with_for_update()).first()
    if row is None:
        return None
    mounts = codec.MOUNTS.validate_json(row.mounts_json)
    ids = [mount.storage_domain_id for mount in mounts if mount.storage_domain_id]
    # It may hold its lock on one that it could not read any more: then only the name tells which one that was.
    names = [mount.name for mount in mounts if not mount.storage_domain_id]
    its_own = or_(storage_domains.c.id.in_(ids), storage_domains.c.name.in_(names))
    listed = select(storage_domains).where(its_own, storage_domains.c.problem != NOT_LISTED)
    pools: dict[PoolId, tuple[StorageDomainId, ...]] = {}
    for each in connection.execute(listed.order_by(storage_domains.c.id)):
        pools[PoolId(each.pool_id)] = (*pools.get(PoolId(each.pool_id), ()), StorageDomainId(each.id))
    return Known(removed_at=row.removed_at, revoked_keys=row.revoked_keys, pools=pools)


def is_removed(connection: Connection, host: HostId) -> bool:
    """Tell whether nothing may be sent to that host any more."""
    return connection.execute(_REMOVED, {"host": host}).first() is not None


def remove(connection: Connection, host: HostId, revoked_keys: str, now: datetime) -> list[str]:
    """Record that a host is lost, and that no machine is there; return the names of those that were."""
    there = select(vms.c.name).join(vm_hosts, vm_hosts.c.vm_id == vms.c.id).where(vm_hosts.c.host_id == host)
    names = list(connection.execute(there.order_by(vms.c.name)).scalars())
    connection.execute(update(hosts).where(hosts.c.id == host).values(removed_at=now, revoked_keys=revoked_keys))
    connection.execute(delete(vm_hosts).where(vm_hosts.c.host_id == host))
    return names


def admit(connection: Connection, host: HostId) -> None:
    """Record that a host is back, under a new key."""
    connection.execute(update(hosts).where(hosts.c.id == host).values(removed_at=None, revoked_keys=""))


def jobs_of(connection: Connection, host: HostId) -> Sequence[JobId]:
    """Return the unfinished jobs whose state names that host."""
    unfinished = select(jobs.c.id, jobs.c.state_json).where(jobs.c.finished_at.is_(None)).order_by(jobs.c.created_at)
    return [JobId(id_) for id_, text in connection.execute(unfinished) if json.loads(text).get("host") == host]
