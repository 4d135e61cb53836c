"""What a host's report means for the record: what is new, and which machines are off their chain. Pure.

A vm is off chain when a disk's live or persistent source is not the leaf on record: somebody has changed the chain
behind our back, and a snapshot above it would have the wrong parent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from common.eligibility import refusal
from common.ids import (
    DiskId,
    HostId,
    StorageDomainId,
    VmId,
    VolumeId,
    adopted_volume_id,
    disk_id,
    is_uuid,
    require_relative_path,
    require_target,
)
from common.messaging.reports import DiskReport, VmReport, VmState

_RANKS: Final = {
    VmState.PAUSED_MIGRATION: 1,
    VmState.STARTING: 1,
    VmState.STOPPING: 1,
    VmState.UNKNOWN: 2,
    VmState.OFF: 3,
}
INACTIVE_RANK: Final = 3


def rank(state: VmState) -> int:
    """Return how much a vm's state on one host speaks for the vm being there: 0 (it runs there) to 3 (it is off)."""
    return _RANKS.get(state, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A disk's leaf on record: where it lies, relative to its storage domain's root."""

    storage_domain: StorageDomainId
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A vm on record, all from one moment. `other_rank` is the best claim of any other host to be where it is,
    `rival_rank` that of those which are heard from; `is_new_here`: the reporting host has not claimed it before.

    `attempt` is that of the last command about it, 0 if there was none; `host_attempt` that of the last one to a host,
    `attempt_host` that host.
    """

    name: str
    off_chain: str
    busy: bool
    attempt: int
    host_attempt: int
    attempt_host: HostId | None
    other_rank: int | None
    rival_rank: int | None
    is_new_here: bool
    leaves: Mapping[str, Leaf]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """A disk seen for the first time: its present leaf becomes the one on record, an adopted volume."""

    id: DiskId
    vm: VmId
    target: str
    volume: VolumeId
    storage_domain: StorageDomainId
    path: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one vm's report means. `off_chain` is '' or the sentence that says which disk is where. `replaces`: the new
    disks' leaves become those on record although there are others, taken from a definition that was left behind."""

    vm: VmId
    name: str
    off_chain: str
    new_disks: tuple[NewDisk, ...] = field(default=())
    replaces: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The host that reports, and the storage domains that it has mounted and checked."""

    host: HostId
    mounted: frozenset[StorageDomainId]


def find(report: VmReport, place: Place, known: Known | None) -> Finding:
    """Compare a vm's report with the record; None is a vm that is seen for the first time.

    A report says nothing about leaves while a job or a command of ours is at work on the vm, when it is older than the
    last command that we sent to that host, or when the vm is on another host; then the verdict stays as it was. Nor
    does it about a leaf on a storage domain that the host cannot identify now. Of two hosts that claim it alike one is
    outdated (the vm has just moved), or both definitions are leftovers.
    """
    name = report.name[:255]
    if known is None:
        return Finding(vm=report.vm_id, name=name, off_chain="", new_disks=_first_seen(report, frozenset()))
    outdated = known.attempt_host == place.host and report.attempt < known.host_attempt
    elsewhere = known.other_rank is not None and known.other_rank < rank(report.state)
    if report.in_flight or known.busy or elsewhere or outdated or known.rival_rank == rank(report.state):
        return Finding(vm=report.vm_id, name=known.name if elsewhere else name, off_chain=known.off_chain)
    if known.attempt == 0 and known.is_new_here and known.other_rank is not None:
        # Nothing was ever done on the strength of the record, which another host's leftover has made: it came first.
        new = _first_seen(report, frozenset())
        return Finding(vm=report.vm_id, name=name, off_chain="", new_disks=new, replaces=True)
    judged = {target: leaf for target, leaf in known.leaves.items() if leaf.storage_domain in place.mounted}
    return Finding(
        vm=report.vm_id,
        name=name,
        off_chain=off_chain(report, judged),
        new_disks=_first_seen(report, known.leaves.keys()),
    )


def off_chain(report: VmReport, leaves: Mapping[str, Leaf]) -> str:
    """Return '' if every disk on record has its leaf as live and persistent source, else what is seen instead."""
    problems = (_off_leaf(disk, leaves[disk.target], report) for disk in report.disks if disk.target in leaves)
    return "; ".join(problem for problem in problems if problem)


def _off_leaf(disk: DiskReport, leaf: Leaf, report: VmReport) -> str:
    if (disk.storage_domain_id, disk.path) != (leaf.storage_domain, leaf.path):
        return (
            f"{disk.target} is on {disk.source or disk.persistent_source or 'nothing'}, not on {leaf.path} as recorded"
        )
    both_known = report.persistent and disk.source and disk.persistent_source
    if both_known and disk.persistent_source != disk.source:
        return f"{disk.target} is on {disk.source}, but its definition names {disk.persistent_source}"
    return ""


def _first_seen(report: VmReport, known: Iterable[str]) -> tuple[NewDisk, ...]:
    """Return the disks that lie on a storage domain and are not on record yet."""
    old = set(known)
    found = (_adopted(report.vm_id, disk) for disk in report.disks if disk.target not in old)
    return tuple(disk for disk in found if disk is not None)


def _adopted(vm: VmId, disk: DiskReport) -> NewDisk | None:
    """Return a disk as it goes on record; None for one that cannot be snapshotted, or whose report is malformed.

    On record, a medium that is changed in its drive, or the file that libvirt puts above a transient disk, would look
    like a change of the chain. Ids and paths from a host become file names at the SPM, so what could lead astray is not
    recorded either (P9).
    """
    storage_domain = disk.storage_domain_id
    if storage_domain is None or refusal(disk) or not is_uuid(storage_domain):
        return None
    try:
        require_target(disk.target)
        require_relative_path(disk.path)
    except ValueError:
        return None
    return NewDisk(
        id=disk_id(vm, disk.target),
        vm=vm,
        target=disk.target,
        volume=adopted_volume_id(storage_domain, disk.path),
        storage_domain=storage_domain,
        path=disk.path,
        format=disk.format,
    )
