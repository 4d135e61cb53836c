"""What a snapshot request depends on, read in one transaction."""

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, literal_column, or_, select

from common.errors import RequestRefused
from common.ids import HostId, PoolId, StorageDomainId, VmId, VolumeId, is_uuid
from common.messaging.messages import Format, VolumeAt
from common.messaging.reports import VmState
from manager.preflight import Facts, HostFacts, Place, StorageDomainFacts
from manager.store import codec, duty, locks, previews
from manager.store.jobs import busy_with
from manager.store.snapshots import DROPPED, name_is_taken
from manager.store.tables import disks, hosts, jobs, pools, snapshots, storage_domains, vm_hosts, vms, volumes

_PLACED: Final = select(vm_hosts.c.vm_id).where(vm_hosts.c.vm_id == vms.c.id).exists()
_KEPT: Final = select(snapshots.c.vm_id).where(snapshots.c.vm_id == vms.c.id, snapshots.c.state != DROPPED).exists()
_HELD: Final = select(jobs.c.vm_id).where(jobs.c.vm_id == vms.c.id, jobs.c.finished_at.is_(None)).exists()
_MEANT: Final = select(vms.c.id, _PLACED.label("placed")).where(or_(_PLACED, _KEPT, _HELD))
_BY_ID: Final = _MEANT.where(vms.c.id == bindparam("reference"))
_BY_NAME: Final = _MEANT.where(vms.c.name == bindparam("reference"))
_LOCK: Final = select(vms).where(vms.c.id == bindparam("vm")).with_for_update()
_PLACES: Final = (
    select(vm_hosts).where(vm_hosts.c.vm_id == bindparam("vm")).order_by(vm_hosts.c.rank, vm_hosts.c.seen_at.desc())
)
_LEAVES: Final = (
    select(disks.c.target, volumes)
    .join(volumes, volumes.c.id == disks.c.leaf_volume_id)
    .where(disks.c.vm_id == bindparam("vm"))
    .order_by(disks.c.target)
)

_MAX_DEPTH: Final = 1000
"""Should the record hold a loop."""
_OF_VM: Final = (
    select(disks.c.target, volumes.c.parent_id, literal_column("1").label("depth"))
    .join(volumes, volumes.c.id == disks.c.leaf_volume_id)
    .where(disks.c.vm_id == bindparam("vm"))
    .cte("chain", recursive=True)
)
_LAYERS: Final = _OF_VM.union_all(
    select(_OF_VM.c.target, volumes.c.parent_id, _OF_VM.c.depth + 1)
    .join(volumes, volumes.c.id == _OF_VM.c.parent_id)
    .where(_OF_VM.c.depth < _MAX_DEPTH)
)
_DEPTHS: Final = select(_LAYERS.c.target, func.max(_LAYERS.c.depth)).group_by(_LAYERS.c.target)


def find_vm(connection: Connection, reference: str) -> VmId:
    """Return the vm of that id, or of that name if only one has it.

    One that no host reports any more is still found while it has snapshots or a job. Raises RequestRefused
    (vm_not_found, vm_ambiguous).
    """
    found = connection.execute(_BY_ID if is_uuid(reference) else _BY_NAME, {"reference": reference}).all()
    best = [row.id for row in found if row.placed] or [row.id for row in found]
    if not best:
        raise RequestRefused("vm_not_found", f"no host reports a machine {reference!a}")
    if len(best) > 1:
        raise RequestRefused("vm_ambiguous", f"{len(best)} machines are named {reference!a}: {', '.join(sorted(best))}")
    return VmId(best[0])


def hold(connection: Connection, vm: VmId) -> Row[Any]:
    """Return a vm's row, which stays locked (PostgreSQL) to the end of the transaction: what begins a job or takes a
    lock for one vm comes one after the other."""
    return connection.execute(_LOCK, {"vm": vm}).one()


def gather(connection: Connection, vm: VmId, *, name: str, now: datetime, silent_before: datetime) -> Facts:
    """Return everything that a snapshot named `name` of `vm` depends on; its row stays locked."""
    row = hold(connection, vm)
    places = places_of(connection, vm)
    return Facts(
        vm=vm,
        vm_name=row.name,
        off_chain=row.off_chain,
        places=places,
        host=_host_facts(connection, places[0].host, silent_before) if places else None,
        leaves=leaves_of(connection, vm),
        depths=_depths(connection, vm),
        storage_domains=_storage_domains(connection),
        busy_with=busy_with(connection, vm),
        lock=locks.held(connection, vm, now),
        name_taken=name_is_taken(connection, vm, name),
        migrating_to=_arriving_at(places[1:], silent_before),
        preview=previews.of_vm(connection, vm),
    )


def _arriving_at(others: tuple[Place, ...], silent_before: datetime) -> HostId | None:
    """Return which of the other hosts is about to receive the vm; one that is silent may have failed to."""
    arriving = (place for place in others if place.report.state is VmState.PAUSED_MIGRATION)
    return next((place.host for place in arriving if place.seen_at >= silent_before), None)


def places_of(connection: Connection, vm: VmId) -> tuple[Place, ...]:
    """Return where a vm is reported, the host where it is now first."""
    return tuple(place_from(row) for row in connection.execute(_PLACES, {"vm": vm}))


def place_from(row: Row[Any]) -> Place:
    """Return a row of vm_hosts as a value."""
    report = codec.VM_REPORT.validate_json(row.report_json)
    return Place(host=HostId(row.host_id), report=report, seen_at=row.seen_at)


def leaves_of(connection: Connection, vm: VmId) -> dict[str, VolumeAt]:
    """Return the leaf on record of each of a vm's disks, by target."""
    return {
        row.target: VolumeAt(
            volume_id=VolumeId(row.id),
            storage_domain_id=StorageDomainId(row.storage_domain_id),
            path=row.path,
            format=Format(row.format),
        )
        for row in connection.execute(_LEAVES, {"vm": vm})
    }


def _host_facts(connection: Connection, host: HostId, silent_before: datetime) -> HostFacts | None:
    row = connection.execute(select(hosts).where(hosts.c.id == host)).first()
    if row is None:
        return None
    return HostFacts(
        libvirt_up=row.libvirt_up,
        silent=row.seen_at < silent_before,
        clock_ahead=max(row.observed_at - row.seen_at, timedelta(0)),
        mounts=codec.MOUNTS.validate_json(row.mounts_json),
        drained=duty.is_drained(connection, host),
    )


def _depths(connection: Connection, vm: VmId) -> dict[str, int]:
    """Return how many volumes of each disk's chain are on record; an image that was only reported counts as one."""
    return {target: depth for target, depth in connection.execute(_DEPTHS, {"vm": vm})}


def _storage_domains(connection: Connection) -> dict[StorageDomainId, StorageDomainFacts]:
    wanted = select(storage_domains, pools.c.min_free_bytes).outerjoin(pools, pools.c.id == storage_domains.c.pool_id)
    return {
        StorageDomainId(row.id): StorageDomainFacts(
            name=row.name,
            pool=PoolId(row.pool_id),
            problem=row.problem,
            free_bytes=row.free_bytes,
            min_free_bytes=row.min_free_bytes or 0,
        )
        for row in connection.execute(wanted)
    }
