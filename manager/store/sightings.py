"""Reports in SQL: bulk statements only, none per vm. What a report means is decided in manager/sighting.py."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Select, bindparam, delete, exists, func, select, update

from common.ids import HostId, PoolId, StorageDomainId, VmId, is_uuid
from common.messaging.reports import HostReport, MountReport, SpmReport, VmReport
from manager.sighting import INACTIVE_RANK, Finding, Known, Leaf, NewDisk, rank
from manager.store import codec
from manager.store.session import upsert
from manager.store.tables import disks, hosts, incarnations, jobs, pools, storage_domains, vm_hosts, vms, volumes

OVERTAKEN: Final = timedelta(minutes=1)
"""Reports of two processes of one host may overtake each other on the queue by this; beyond it, a clock was set."""
FORGET_AFTER: Final = timedelta(days=1)
NOT_LISTED: Final = "its SPM no longer has it in its settings"


# ---- what each report of each host asks and writes: made once, which costs as much as carrying it out ------------


def _asking() -> Select[Any]:
    """Return what is on record of the vms `ids`, a row for each disk, seen from `host`."""
    host: BindParameter[str] = bindparam("host")
    busy = exists().where(jobs.c.vm_id == vms.c.id, jobs.c.finished_at.is_(None))
    here = exists().where(vm_hosts.c.vm_id == vms.c.id, vm_hosts.c.host_id == host)
    others = select(func.min(vm_hosts.c.rank)).where(vm_hosts.c.vm_id == vms.c.id, vm_hosts.c.host_id != host)
    rivals = others.where(vm_hosts.c.host_id == hosts.c.id, hosts.c.seen_at >= bindparam("silent_before"))
    return (
        select(vms, busy.label("busy"), (~here).label("is_new_here"), disks.c.target)
        .add_columns(others.scalar_subquery().label("other_rank"), rivals.scalar_subquery().label("rival_rank"))
        .add_columns(volumes.c.storage_domain_id, volumes.c.path)
        .outerjoin(disks, disks.c.vm_id == vms.c.id)
        .outerjoin(volumes, volumes.c.id == disks.c.leaf_volume_id)
        .where(vms.c.id.in_(_IDS))
    )


_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_OF_SENDER: Final = select(incarnations).where(incarnations.c.sender == bindparam("sender"))
_KNOWN: Final = _asking()
_OF_HOST: Final = vm_hosts.c.host_id == bindparam("host")
_HERE: Final = select(vm_hosts.c.vm_id, vm_hosts.c.report_json).where(_OF_HOST)
_HERE_NAMED: Final = _HERE.where(vm_hosts.c.vm_id.in_(_IDS))
_SEEN: Final = update(vm_hosts).where(_OF_HOST).values(seen_at=bindparam("now"))
_SEEN_NAMED: Final = _SEEN.where(vm_hosts.c.vm_id.in_(_IDS))


def is_news(connection: Connection, sender: str, report: HostReport | SpmReport, now: datetime) -> tuple[bool, bool]:
    """Note a report's incarnation and sequence; return whether it is newer than what is known of its sender, and
    whether its incarnation is a new one (a process has started, and may have lost what it was sent before)."""
    rows = connection.execute(_OF_SENDER, {"sender": sender}).all()
    own = next((row for row in rows if row.incarnation == report.incarnation), None)
    if own is not None and report.sequence <= own.sequence:
        return False, False
    others = [row.observed_at for row in rows if row.incarnation != report.incarnation]
    ahead = max(others, default=report.observed_at) - report.observed_at
    row = {
        "sender": sender,
        "incarnation": report.incarnation,
        "sequence": report.sequence,
        "observed_at": report.observed_at,
        "seen_at": now,
    }
    upsert(connection, incarnations, [row])
    if own is None:
        old = (incarnations.c.sender == sender) & (incarnations.c.seen_at < now - FORGET_AFTER)
        connection.execute(delete(incarnations).where(old))
    return not timedelta(0) < ahead < OVERTAKEN, own is None


def still_news(connection: Connection, report: HostReport) -> HostReport:
    """Return what an overtaken report still says: the vms that its host is not known to have at all.

    A partial report (one vm has changed) that overtakes a full one must not make the rest of it void: the other vms
    would be unknown until the next full report. One that has gone in the meantime is corrected by that one; but what
    another host claims alike has moved there, and must not be brought back.
    """
    wanted = select(vm_hosts.c.vm_id, vm_hosts.c.host_id, vm_hosts.c.rank)
    ids = [vm.vm_id for vm in report.vms]
    claims = connection.execute(wanted.where(vm_hosts.c.vm_id.in_(ids))).all()
    here = {row.vm_id for row in claims if row.host_id == report.host_id}
    elsewhere = {row.vm_id: row.rank for row in claims if row.host_id != report.host_id}
    unknown = tuple(
        vm for vm in report.vms if vm.vm_id not in here and rank(vm.state) < elsewhere.get(vm.vm_id, INACTIVE_RANK + 1)
    )
    return replace(report, full=False, gone=(), vms=unknown)


def known_vms(
    connection: Connection, host: HostId, ids: Sequence[VmId], *, silent_before: datetime
) -> dict[VmId, Known]:
    """Return what is on record of these vms, seen from `host`; one statement, so that all of it is of one moment."""
    if not ids:
        return {}
    rows: dict[VmId, list[Any]] = {}
    for row in connection.execute(_KNOWN, {"ids": list(ids), "host": host, "silent_before": silent_before}):
        rows.setdefault(VmId(row.id), []).append(row)
    return {vm: _known(group) for vm, group in rows.items()}


def _known(rows: list[Any]) -> Known:
    """Fold the rows of one vm, one for each disk, into one value."""
    first = rows[0]
    leaves = {
        row.target: Leaf(storage_domain=StorageDomainId(row.storage_domain_id), path=row.path)
        for row in rows
        if row.target is not None and row.path is not None
    }
    return Known(
        name=first.name,
        off_chain=first.off_chain,
        busy=first.busy,
        attempt=first.attempt,
        host_attempt=first.host_attempt,
        attempt_host=HostId(first.attempt_host) if first.attempt_host else None,
        other_rank=first.other_rank,
        rival_rank=first.rival_rank,
        is_new_here=first.is_new_here,
        leaves=leaves,
    )


def record_host(connection: Connection, report: HostReport, now: datetime) -> None:
    """Record the host itself."""
    row = {
        "id": report.host_id,
        "boot_id": report.boot_id,
        "libvirt_up": report.libvirt_up,
        "problem": report.problem,
        "frozen_json": codec.dump(codec.NAMES, report.frozen),
        "mounts_json": codec.dump(codec.MOUNTS, report.storage_domains),
        "observed_at": report.observed_at,
        "seen_at": now,
    }
    upsert(connection, hosts, [row])


def record_vms(
    connection: Connection, report: HostReport, known: dict[VmId, Known], findings: Sequence[Finding], now: datetime
) -> None:
    """Record the vms of a report, and forget those that are no longer on its host."""
    _record_findings(connection, known, findings, now)
    reported = {vm.vm_id: (vm, codec.dump(codec.VM_REPORT, vm)) for vm in report.vms}
    # A host may have hundreds, of which one has changed.
    named = {} if report.full else {"ids": sorted({*reported, *report.gone})}
    here = connection.execute(_HERE if report.full else _HERE_NAMED, {"host": report.host_id, **named})
    before = {VmId(row.vm_id): row.report_json for row in here}
    changed = [vm_id for vm_id, (_, text) in sorted(reported.items()) if before.get(vm_id) != text]
    rows = [_place(report.host_id, *reported[vm_id], now) for vm_id in changed]
    upsert(connection, vm_hosts, rows)
    gone = (before.keys() - reported.keys()) if report.full else (before.keys() & set(report.gone))
    if gone:
        of_host = vm_hosts.c.host_id == report.host_id
        connection.execute(delete(vm_hosts).where(of_host, vm_hosts.c.vm_id.in_(sorted(gone))))
    unchanged = reported.keys() - set(changed)
    if unchanged:
        named = {} if report.full else {"ids": sorted(unchanged)}
        connection.execute(_SEEN if report.full else _SEEN_NAMED, {"host": report.host_id, "now": now, **named})


def _place(host: HostId, vm: VmReport, text: str, now: datetime) -> dict[str, Any]:
    return {
        "vm_id": vm.vm_id,
        "host_id": host,
        "state": vm.state.value,
        "rank": rank(vm.state),
        "report_json": text,
        "seen_at": now,
    }


def _record_findings(
    connection: Connection, known: dict[VmId, Known], findings: Sequence[Finding], now: datetime
) -> None:
    """Write what differs from the record: vms first, then disks and volumes, each sorted (the order of all locks)."""
    vm_rows = [
        {"id": each.vm, "name": each.name, "off_chain": each.off_chain, "created_at": now}
        for each in sorted(findings, key=lambda each: each.vm)
        if (was := known.get(each.vm)) is None or (was.name, was.off_chain) != (each.name, each.off_chain)
    ]
    upsert(connection, vms, vm_rows, update=("name", "off_chain"))
    new = sorted((disk for each in findings for disk in each.new_disks), key=lambda disk: disk.id)
    replacing = {each.vm for each in findings if each.replaces}
    upsert(connection, disks, [_disk_row(disk) for disk in new if disk.vm not in replacing], update=())
    upsert(connection, disks, [_disk_row(disk) for disk in new if disk.vm in replacing], update=("leaf_volume_id",))
    volume_rows = [
        {
            "id": disk.volume,
            "disk_id": disk.id,
            "storage_domain_id": disk.storage_domain,
            "path": disk.path,
            "format": disk.format,
            "immutable": False,
            "origin": "adopted",
            "state": "exists",
        }
        for disk in new
    ]
    upsert(connection, volumes, sorted(volume_rows, key=lambda row: str(row["id"])), update=())


def _disk_row(disk: NewDisk) -> dict[str, Any]:
    return {"id": disk.id, "vm_id": disk.vm, "target": disk.target, "leaf_volume_id": disk.volume}


def record_pool(connection: Connection, report: SpmReport, now: datetime) -> None:
    """Record a pool and its storage domains. One that another pool still lists is not taken over: an SPM speaks for
    its own pool only (P9)."""
    pool = {"id": report.pool_id, "epoch": report.epoch, "seen_at": now, "min_free_bytes": report.min_free_bytes}
    upsert(connection, pools, [pool])
    held = select(storage_domains.c.id).where(
        storage_domains.c.pool_id != report.pool_id, storage_domains.c.problem != NOT_LISTED
    )
    foreign = set(connection.execute(held).scalars())
    mounts = [mount for mount in report.storage_domains if _is_ours(mount, foreign)]
    rows = [_mounted(report.pool_id, mount, now) for mount in mounts]
    upsert(connection, storage_domains, sorted(rows, key=lambda row: str(row["id"])))
    of_pool = storage_domains.c.pool_id == report.pool_id
    listed = [row["id"] for row in rows]
    unlisted = update(storage_domains).where(of_pool, storage_domains.c.id.not_in(listed))
    connection.execute(unlisted.values(problem=NOT_LISTED))
    for mount in report.storage_domains:
        if mount.storage_domain_id is None:  # no identity could be read, so only the name says which one is meant
            named = update(storage_domains).where(of_pool, storage_domains.c.name == mount.name)
            connection.execute(named.values(problem=mount.problem or "it is not mounted", seen_at=now))


def _is_ours(mount: MountReport, foreign: set[str]) -> bool:
    id_ = mount.storage_domain_id
    return id_ is not None and is_uuid(id_) and id_ not in foreign


def _mounted(pool: PoolId, mount: MountReport, now: datetime) -> dict[str, Any]:
    return {
        "id": mount.storage_domain_id,
        "name": mount.name,
        "pool_id": pool,
        "root": mount.root,
        "free_bytes": mount.free_bytes,
        "total_bytes": mount.total_bytes,
        "problem": mount.problem,
        "seen_at": now,
    }
