"""Hosts and machines as users see them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, literal_column, or_, select

from common.eligibility import refusal
from common.error_codes import CATALOGUE
from common.ids import VmId
from common.messaging.messages import VolumeAt
from common.messaging.reports import DiskReport
from manager.fleet_views import HostView, PoolView, StorageDomainView
from manager.preflight import Place
from manager.sighting import INACTIVE_RANK, rank
from manager.store import codec, duty, locks, previews, show_tree
from manager.store.facts import leaves_of, place_from, places_of
from manager.store.sightings import NOT_LISTED
from manager.store.snapshots import DROPPED
from manager.store.tables import (
    disks,
    hosts,
    jobs,
    memberships,
    pools,
    snapshots,
    storage_domains,
    vm_hosts,
    vms,
    volumes,
)
from manager.views import DiskView, LayerView, LockView, VmView


def list_hosts(connection: Connection, *, silent_before: datetime) -> list[HostView]:
    """Return the hosts by name: those that have reported, and those that were added and are expected to; not removed
    ones."""
    counts = select(vm_hosts.c.host_id, func.count()).group_by(vm_hosts.c.host_id)
    vm_counts = {host: count for host, count in connection.execute(counts)}
    names = {id_: name for id_, name in connection.execute(select(vms.c.id, vms.c.name))}
    duties = {row.host_id: row.drained_at is not None for row in connection.execute(select(memberships))}
    left = duty.work_left(connection) if any(duties.values()) else {}
    reported = [
        _host(row, vm_counts.get(row.id, 0), names, silent=row.seen_at < silent_before)
        for row in connection.execute(select(hosts).where(hosts.c.removed_at.is_(None)).order_by(hosts.c.id))
    ]
    missing = duties.keys() - {host.id for host in reported} - _left_for_good(connection)
    found = sorted([*reported, *(_expected(host) for host in missing)], key=lambda host: host.id)
    return [
        replace(host, duty="draining" if host.id in left else "drained") if duties.get(host.id) else host
        for host in found
    ]


def _left_for_good(connection: Connection) -> set[str]:
    """Return the hosts that were removed and not added again since."""
    again = hosts.outerjoin(memberships, memberships.c.host_id == hosts.c.id)
    wanted = select(hosts.c.id, hosts.c.removed_at, memberships.c.added_at).select_from(again)
    removed = connection.execute(wanted.where(hosts.c.removed_at.is_not(None)))
    return {row.id for row in removed if row.added_at is None or row.added_at < row.removed_at}


def _expected(host: str) -> HostView:
    return HostView(id=host, state="expected", seen_at=None, vm_count=0, frozen=(), storage_domains=(), problem="")


def list_pools(connection: Connection, *, silent_before: datetime) -> list[PoolView]:
    """Return the pools by name."""
    listed = select(storage_domains.c.pool_id, storage_domains.c.name).order_by(storage_domains.c.name)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for pool, name in connection.execute(listed.where(storage_domains.c.problem != NOT_LISTED)):
        names[pool].append(name)
    return [
        PoolView(
            id=row.id,
            state="silent" if row.seen_at < silent_before else "up",
            epoch=row.epoch,
            seen_at=row.seen_at,
            storage_domains=tuple(names[row.id]),
        )
        for row in connection.execute(select(pools).order_by(pools.c.id))
    ]


def list_storage_domains(connection: Connection) -> list[StorageDomainView]:
    """Return the storage domains by name."""
    return [
        StorageDomainView(
            id=row.id,
            name=row.name,
            pool=row.pool_id,
            root=row.root,
            free_bytes=row.free_bytes,
            total_bytes=row.total_bytes,
            problem=row.problem,
            seen_at=row.seen_at,
        )
        for row in connection.execute(select(storage_domains).order_by(storage_domains.c.name, storage_domains.c.id))
    ]


def pools_seen(connection: Connection) -> dict[str, datetime]:
    """Return when the SPM of each pool reported last."""
    return {id_: seen_at for id_, seen_at in connection.execute(select(pools.c.id, pools.c.seen_at))}


def _host(row: Row[Any], vm_count: int, names: Mapping[str, str], *, silent: bool) -> HostView:
    mounts = codec.MOUNTS.validate_json(row.mounts_json)
    problems = [row.problem, *(f"{mount.name}: {mount.problem}" for mount in mounts if mount.problem)]
    return HostView(
        id=row.id,
        state=_state(libvirt_up=row.libvirt_up, silent=silent),
        seen_at=row.seen_at,
        vm_count=vm_count,
        frozen=tuple(names.get(vm, vm) for vm in codec.NAMES.validate_json(row.frozen_json)),
        storage_domains=tuple(mount.name for mount in mounts if not mount.problem),
        problem="; ".join(problem for problem in problems if problem),
    )


def _state(*, libvirt_up: bool, silent: bool) -> str:
    return "silent" if silent else "up" if libvirt_up else "libvirt_down"


def _states(connection: Connection, silent_before: datetime) -> dict[str, str]:
    rows = connection.execute(select(hosts.c.id, hosts.c.libvirt_up, hosts.c.seen_at))
    return {row.id: _state(libvirt_up=row.libvirt_up, silent=row.seen_at < silent_before) for row in rows}


def list_vms(connection: Connection, now: datetime, *, silent_before: datetime) -> list[VmView]:
    """Return the machines by name, without their disks' chains: those that a host reports or that have snapshots."""
    places: defaultdict[str, list[Place]] = defaultdict(list)
    best_first = select(vm_hosts).order_by(vm_hosts.c.rank, vm_hosts.c.seen_at.desc())
    for row in connection.execute(best_first):
        places[row.vm_id].append(place_from(row))
    kept = select(snapshots.c.id).where(snapshots.c.vm_id == vms.c.id, snapshots.c.state != DROPPED).exists()
    shown = connection.execute(_joined().where(or_(vms.c.id.in_(places), kept)).order_by(vms.c.name, vms.c.id))
    names, held = _storage_domain_names(connection), locks.all_held(connection, now)
    states, shows = _states(connection, silent_before), previews.of_all(connection)
    return [
        replace(
            _vm(row, places[row.id], _disks(places[row.id], names), lock=held.get(row.id), host_states=states),
            preview=shows.get(row.id),
        )
        for row in shown
    ]


def show_vm(connection: Connection, vm: VmId, now: datetime, *, silent_before: datetime) -> VmView:
    """Return one machine, with each disk's chain as it is on record. One that no host reports has its disks from
    there too: it is to be started from these volumes."""
    row = connection.execute(_joined().where(vms.c.id == vm)).one()
    places = places_of(connection, vm)
    leaves, layers, sizes = leaves_of(connection, vm), _layers(connection, vm), _sizes(connection, vm)
    reported = places[0].report.disks if places else _recorded(connection, leaves)
    names = _storage_domain_names(connection)
    shown = tuple(_disk(disk, names, leaves.get(disk.target), layers, sizes) for disk in reported)
    states = _states(connection, silent_before)
    found = _vm(row, places, shown, lock=locks.held(connection, vm, now), host_states=states)
    return replace(found, preview=previews.of_vm(connection, vm), tree=show_tree.tree_of(connection, vm))


def _recorded(connection: Connection, leaves: Mapping[str, VolumeAt]) -> tuple[DiskReport, ...]:
    """Return the disks that a machine has on record, with the paths that its SPM has them under."""
    roots = {id_: root for id_, root in connection.execute(select(storage_domains.c.id, storage_domains.c.root))}
    return tuple(
        DiskReport(
            target=target,
            device="disk",
            source_type="file",
            bus="",
            format=leaf.format.value,
            source=f"{roots.get(leaf.storage_domain_id, '')}/{leaf.path}",
            persistent_source="",
            storage_domain_id=leaf.storage_domain_id,
            path=leaf.path,
        )
        for target, leaf in leaves.items()
    )


def _joined() -> Any:
    holder = select(jobs.c.id).where(jobs.c.vm_id == vms.c.id, jobs.c.finished_at.is_(None)).limit(1)
    return select(vms, holder.scalar_subquery().label("busy_with"))


def _vm(
    row: Row[Any],
    places: Iterable[Place],
    shown: tuple[DiskView, ...],
    *,
    lock: LockView | None,
    host_states: Mapping[str, str],
) -> VmView:
    here = list(places)
    best = here[0] if here else None
    stopped_everywhere = all(rank(place.report.state) == INACTIVE_RANK for place in here)
    problem = "vm_no_host" if best is None else "vm_off_chain" if row.off_chain else ""
    if not problem and len(here) > 1 and stopped_everywhere:
        problem = "vm_ambiguous_host"
    return VmView(
        id=row.id,
        name=row.name,
        host=best.host if best else None,
        host_state=host_states.get(best.host, "") if best else "",
        state=best.report.state.value if best else "unknown",
        agent=best.report.agent.value if best else "unknown",
        problem=problem,
        problem_detail=row.off_chain if problem == "vm_off_chain" else CATALOGUE[problem].cause if problem else "",
        busy_with=row.busy_with,
        lock=lock,
        seen_at=best.seen_at if best else row.created_at,
        disks=shown,
    )


def _disks(places: Iterable[Place], names: Mapping[str, str]) -> tuple[DiskView, ...]:
    best = next(iter(places), None)
    return tuple(_disk(disk, names, None, {}, {}) for disk in best.report.disks) if best else ()


def _disk(
    disk: DiskReport,
    names: Mapping[str, str],
    leaf: VolumeAt | None,
    layers: Mapping[str, Row[Any]],
    sizes: Mapping[str, int | None],
) -> DiskView:
    id_, code = disk.storage_domain_id, refusal(disk)
    if leaf is not None and code == "disk_outside_storage_domain":
        code = ""  # its storage domain is on record, and only not mounted on the host now
    return DiskView(
        target=disk.target,
        device=disk.device,
        bus=disk.bus,
        format=disk.format,
        storage_domain=names.get(id_, id_) if id_ else None,
        path=disk.source or disk.persistent_source,
        size_bytes=sizes.get(disk.target),
        can_snapshot=not code,
        refusal=code,
        refusal_message=CATALOGUE[code].cause if code else "",
        error_policy=disk.error_policy,
        chain=_chain(leaf, layers),
    )


def _storage_domain_names(connection: Connection) -> dict[str, str]:
    rows = connection.execute(select(storage_domains.c.id, storage_domains.c.name))
    return {id_: name for id_, name in rows}


def _sizes(connection: Connection, vm: VmId) -> dict[str, int | None]:
    of_leaf = select(disks.c.target, volumes.c.size_bytes).join(volumes, volumes.c.id == disks.c.leaf_volume_id)
    return {target: size for target, size in connection.execute(of_leaf.where(disks.c.vm_id == vm))}


def _layers(connection: Connection, vm: VmId) -> dict[str, Row[Any]]:
    """Return every volume below the leaves of a vm, by id; the depth is bounded, should the record hold a loop."""
    leaf = (
        select(volumes.c.id, volumes.c.parent_id, literal_column("0").label("depth"))
        .join(disks, disks.c.leaf_volume_id == volumes.c.id)
        .where(disks.c.vm_id == vm)
        .cte("chain", recursive=True)
    )
    below = select(volumes.c.id, volumes.c.parent_id, leaf.c.depth + 1)
    chain = leaf.union_all(below.join(leaf, leaf.c.parent_id == volumes.c.id).where(leaf.c.depth < 1000))
    rows = connection.execute(select(volumes).where(volumes.c.id.in_(select(chain.c.id))))
    return {row.id: row for row in rows}


def _chain(leaf: VolumeAt | None, layers: Mapping[str, Row[Any]]) -> tuple[LayerView, ...]:
    """Return a disk's chain on record, base first."""
    chain: list[LayerView] = []
    seen: set[str] = set()
    volume_id = leaf.volume_id if leaf else None
    while volume_id is not None and volume_id in layers and volume_id not in seen:
        seen.add(volume_id)
        row = layers[volume_id]
        chain.append(LayerView(volume_id=row.id, path=row.path, immutable=row.immutable, origin=row.origin))
        volume_id = row.parent_id
    return tuple(reversed(chain))
