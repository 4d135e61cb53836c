"""Which hosts were added, and which take no new work: what an operator says, beside what hosts report of themselves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select, update

from common.ids import HostId, VmId
from manager.store import lost_hosts
from manager.store.inventory import current_host
from manager.store.session import upsert
from manager.store.tables import hosts, jobs, memberships, storage_domains, vm_hosts, vms

_DRAINED: Final = select(memberships.c.host_id).where(
    memberships.c.host_id == bindparam("host"), memberships.c.drained_at.is_not(None)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLeft:
    """An unfinished job: of which machine, and its id."""

    vm: str
    job: str


def is_known(connection: Connection, host: HostId) -> bool:
    """Tell whether a host was added, or has ever reported."""
    added = select(memberships.c.host_id).where(memberships.c.host_id == host)
    return bool(connection.execute(added).first()) or has_reported(connection, host)


def has_reported(connection: Connection, host: HostId) -> bool:
    """Tell whether a host has ever reported, and was not removed since."""
    here = select(hosts.c.id).where(hosts.c.id == host, hosts.c.removed_at.is_(None))
    return connection.execute(here).first() is not None


def add(connection: Connection, host: HostId, now: datetime) -> None:
    """Record that a host was added; one that was drained is so no more."""
    upsert(connection, memberships, [{"host_id": host, "added_at": now, "drained_at": None}])


def set_drained(connection: Connection, host: HostId, since: datetime | None) -> None:
    """Record that a host takes no new work from now on, or (None) that it does. The first moment stays."""
    upsert(connection, memberships, [{"host_id": host}], update=())
    change = update(memberships).where(memberships.c.host_id == host)
    if since is not None:
        change = change.where(memberships.c.drained_at.is_(None))
    connection.execute(change.values(drained_at=since))


def is_drained(connection: Connection, host: HostId) -> bool:
    """Tell whether a host takes no new work."""
    return connection.execute(_DRAINED, {"host": host}).first() is not None


def is_off(connection: Connection, vm: VmId) -> bool:
    """Tell whether a machine is where nothing new may begin."""
    host = current_host(connection, vm)
    return host is not None and is_drained(connection, host)


def work_left(connection: Connection, host: HostId | None = None) -> dict[str, list[WorkLeft]]:
    """Return the unfinished jobs by host (of one, or of all): those that name it, and those of the machines there."""
    found: dict[str, list[WorkLeft]] = {}
    wanted = (
        select(jobs.c.id, jobs.c.state_json, vms.c.name, vm_hosts.c.host_id)
        .join(vms, vms.c.id == jobs.c.vm_id)
        .outerjoin(vm_hosts, vm_hosts.c.vm_id == jobs.c.vm_id)
        .where(jobs.c.finished_at.is_(None))
        .order_by(jobs.c.created_at)
    )
    for row in connection.execute(wanted):
        for each in {row.host_id, json.loads(row.state_json).get("host")} - {None}:
            left = WorkLeft(vm=row.name, job=row.id)
            if host in (None, each) and left not in found.setdefault(each, []):
                found[each].append(left)
    return {each: left for each, left in found.items() if left}


def machines_on(connection: Connection, host: HostId) -> list[str]:
    """Return the names of the machines that a host has reported."""
    there = select(vms.c.name).join(vm_hosts, vm_hosts.c.vm_id == vms.c.id).where(vm_hosts.c.host_id == host)
    return list(connection.execute(there.order_by(vms.c.name)).scalars())


def forget(connection: Connection, host: HostId, revoked_keys: str, now: datetime) -> None:
    """Record that a host was removed, and that no machine is there. A Manager that still has its key refuses it too."""
    lost_hosts.remove(connection, host, revoked_keys, now)
    connection.execute(delete(memberships).where(memberships.c.host_id == host))


def roots(connection: Connection) -> Sequence[tuple[str, str]]:
    """Return name and mount point of every storage domain, as its SPM has it."""
    wanted = select(storage_domains.c.name, storage_domains.c.root).order_by(storage_domains.c.name)
    return [(name, root) for name, root in connection.execute(wanted)]
