"""What is checked before a snapshot is accepted: one small function per rule, each with its stable code. Pure.

The facts are the inventory's and may be some seconds old; the host checks again before it touches anything. So a rule
refuses here only what a fresh look would very likely refuse too, and only warns of what passes by itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common.eligibility import is_data_disk, refusal
from common.error_codes import CATALOGUE
from common.ids import HostId, JobId, PoolId, StorageDomainId, VmId
from common.messaging.messages import VolumeAt
from common.messaging.reports import AgentState, DiskReport, MountReport, VmReport, VmState
from common.preflight import (
    Limits,
    PreflightLine,
    fine,
    mebibytes,
    of_clock,
    of_depth,
    of_error_policy,
    of_space,
    refused,
    warning,
)
from manager.sighting import INACTIVE_RANK, rank
from manager.views import ExcludedDisk, LockView, PreviewView

QUIESCE_MODES: Final = ("auto", "require", "best-effort", "never")
MAX_NAME: Final = 255
MAX_DESCRIPTION: Final = 4096
MAX_REFERENCE: Final = 1024
MAX_IDEMPOTENCY_KEY: Final = 255

STATE_CODES: Final = {
    VmState.PAUSED_IO_ERROR: "vm_paused_io_error",
    VmState.PAUSED_MIGRATION: "vm_migrating",
    VmState.PMSUSPENDED: "vm_pmsuspended",
    VmState.SAVING: "vm_saving",
    VmState.DUMPING: "vm_dumping",
    VmState.CRASHED: "vm_crashed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """What a user asks for. `vm` is an id or a unique name; no `disks` means all that can be snapshotted."""

    vm: str
    name: str | None = None
    description: str = ""
    disks: tuple[str, ...] = ()
    quiesce: str = "auto"
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A vm as one host reports it."""

    host: HostId
    report: VmReport
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The host where the vm is now. `clock_ahead`: how far its last report came from the future, by our clock."""

    libvirt_up: bool
    silent: bool
    clock_ahead: timedelta
    mounts: tuple[MountReport, ...]
    drained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDomainFacts:
    """A storage domain as its SPM reports it. `min_free_bytes`: with less room it makes no volume."""

    name: str
    pool: PoolId
    problem: str
    free_bytes: int
    min_free_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything on record that a snapshot of one vm depends on, all of one moment. `places`: the best claim first;
    `depths`: by target, the volumes of a chain as far as it is on record; `migrating_to`: the host that reports its
    arrival. There, it is an event; at the source the begin of a migration is none. `preview`: its trial."""

    vm: VmId
    vm_name: str
    off_chain: str
    places: tuple[Place, ...]
    host: HostFacts | None
    leaves: Mapping[str, VolumeAt]
    depths: Mapping[str, int]
    storage_domains: Mapping[StorageDomainId, StorageDomainFacts]
    busy_with: JobId | None
    lock: LockView | None
    name_taken: bool
    migrating_to: HostId | None = None
    preview: PreviewView | None = None

    @property
    def place(self) -> Place | None:
        """Return where the vm is now."""
        return self.places[0] if self.places else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The disks that a snapshot is of, the ones it leaves out and why, and whether those hold a machine's data."""

    disks: tuple[DiskReport, ...]
    excluded: tuple[ExcludedDisk, ...]
    partial: bool


def malformed(request: SnapshotRequest) -> PreflightLine | None:
    """Return what is wrong with the request itself, whatever the inventory says; None if nothing is."""
    if len(request.vm) > MAX_REFERENCE or not _is_storable(request.vm):
        return refused("request_malformed", "vm", "vm: an id or a name")
    if request.name is not None and not is_printable_name(request.name):
        return refused("name_invalid", "name", f"{request.name[:40]!a} is not a printable name of 1 to 255 characters")
    if request.quiesce not in QUIESCE_MODES:
        return refused("quiesce_mode_unknown", "quiesce", f"there is no quiesce mode {request.quiesce[:40]!a}")
    if len(request.description) > MAX_DESCRIPTION or not _is_storable(request.description):
        return refused("request_malformed", "description", f"description: at most {MAX_DESCRIPTION} characters of text")
    key = request.idempotency_key
    if key is not None and not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable()):
        return refused("request_malformed", "idempotency_key", "idempotency_key: 1 to 255 printable characters")
    return None


def is_printable_name(name: str) -> bool:
    """Tell whether a name can be stored, typed and shown on any terminal: 1 to 255 printable characters."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and bool(name.strip())


def findings(request: SnapshotRequest, facts: Facts, choice: Choice, limits: Limits) -> Iterator[PreflightLine]:
    """Yield what stands against the snapshot (refusal), what its owner should know (warning), and what is fine."""
    place = facts.place
    yield from of_record(facts)
    if facts.preview:
        yield previewing(facts.vm_name, facts.preview)
    if place is None:
        return
    yield from _of_vm(request, facts, place)
    yield from _of_disks(request, facts, choice)
    for disk in choice.disks:
        yield from of_error_policy(disk)
        yield from of_depth(disk.target, facts.depths.get(disk.target, 0), limits)
    yield from _of_storage(facts, choice, limits)
    yield from _of_host(facts, place, limits)


def choose(request: SnapshotRequest, facts: Facts) -> Choice:
    """Take the disks that were named, or all that can be snapshotted; list the others with the reason."""
    reported = facts.place.report.disks if facts.place else ()
    named = set(request.disks)
    chosen = tuple(disk for disk in reported if not unable(disk, facts) and (not named or disk.target in named))
    left_out = [disk for disk in reported if disk not in chosen]
    excluded = tuple(ExcludedDisk(target=disk.target, reason=refusal(disk) or "not_requested") for disk in left_out)
    return Choice(disks=chosen, excluded=excluded, partial=any(is_data_disk(disk) for disk in left_out))


def unable(disk: DiskReport, facts: Facts) -> str:
    """Return why a disk can never be part of a snapshot, '' if it can.

    A disk with a leaf on record can, even while its storage domain is not mounted on the host, where it then seems to
    lie outside of all: the request must be refused (storage_unavailable), and never quietly go on without the disk.
    """
    code = refusal(disk)
    return "" if code == "disk_outside_storage_domain" and disk.target in facts.leaves else code


def _is_storable(text: str) -> bool:
    return "\x00" not in text and not any(0xD800 <= ord(char) <= 0xDFFF for char in text)


def previewing(vm_name: str, preview: PreviewView) -> PreflightLine:
    """Return the refusal of what a machine that shows a snapshot for trial cannot have."""
    seen = f"{vm_name} shows snapshot {preview.snapshot_name} since {preview.since:%Y-%m-%d %H:%M:%S} UTC"
    return refused("vm_previewed", vm_name, seen)


def of_record(facts: Facts) -> Iterator[PreflightLine]:
    """What our own record says: names, jobs, chains, places."""
    if facts.name_taken:
        yield refused("name_taken", "name", f"{facts.vm_name} has a snapshot of that name")
    if facts.busy_with:
        yield refused("vm_busy", facts.vm_name, f"job {facts.busy_with} holds {facts.vm_name}")
    if facts.lock:
        yield refused("vm_busy", facts.vm_name, f"{facts.vm_name} is {facts.lock}")
    if facts.off_chain:
        yield refused("vm_off_chain", facts.vm_name, f"{facts.vm_name}: {facts.off_chain}")
    if not facts.places:
        yield refused("vm_no_host", facts.vm_name, f"no host reports {facts.vm_name} now")
        return
    stopped_at = [place.host for place in facts.places if rank(place.report.state) == INACTIVE_RANK]
    if len(stopped_at) == len(facts.places) > 1:
        where = ", ".join(stopped_at)
        yield refused("vm_ambiguous_host", facts.vm_name, f"{facts.vm_name} is stopped and defined on {where}")


def _of_vm(request: SnapshotRequest, facts: Facts, place: Place) -> Iterator[PreflightLine]:
    """What the machine is doing. States that pass by themselves are left to the host, which waits a moment."""
    report, name = place.report, facts.vm_name
    code = "vm_migrating" if report.migrating else STATE_CODES.get(report.state, "")
    if facts.migrating_to:
        yield refused("vm_migrating", name, f"{name} is migrating from {place.host} to {facts.migrating_to}")
    elif code:
        yield refused(code, name, f"{name} is {report.state.value.replace('_', ' ')} on {place.host}")
    else:
        yield fine(name, f"{report.state.value} on host {place.host}")
    if report.managed_save and report.state is VmState.OFF:
        yield refused("vm_managed_save", name, f"{name} is shut off with a managed save image")
    if report.libvirt_snapshots:
        yield refused("vm_has_libvirt_snapshots", name, f"{name} has {report.libvirt_snapshots} libvirt snapshot(s)")
    cannot_freeze = report.state in (VmState.PAUSED, VmState.PMSUSPENDED, VmState.OFF)
    if request.quiesce == "require" and cannot_freeze:
        yield refused(
            "vm_paused_not_quiesced", name, f"{name} is {report.state.value} and cannot freeze its file systems"
        )
    wants_agent = request.quiesce != "never" and not cannot_freeze
    if wants_agent and report.agent is not AgentState.CONNECTED:
        yield warning("guest_agent_missing", name, f"the guest agent of {name} is {report.agent.value}")


def _of_disks(request: SnapshotRequest, facts: Facts, choice: Choice) -> Iterator[PreflightLine]:
    """Named disks must be able; others that are not are left out, and listed."""
    reported = {disk.target: disk for disk in facts.place.report.disks} if facts.place else {}
    for target in dict.fromkeys(request.disks):
        if target not in reported:
            yield refused(
                "disk_unknown", target[:40], f"there is no disk {target[:40]!a}; there are {', '.join(reported)}"
            )
        elif code := unable(reported[target], facts):
            yield refused(code, target, f"disk {target}: {CATALOGUE[code].cause}")
    if not choice.disks and not request.disks:
        yield refused("vm_no_disk", "disks", "none of the machine's disks can be snapshotted")
    for disk in choice.disks:
        yield fine(disk.target, disk.source or disk.persistent_source)
    for left_out in choice.excluded:
        if left_out.reason in CATALOGUE and left_out.target not in request.disks:
            cause = CATALOGUE[left_out.reason].cause
            yield warning(left_out.reason, left_out.target, f"disk {left_out.target} is left out: {cause}")


def _of_storage(facts: Facts, choice: Choice, limits: Limits) -> Iterator[PreflightLine]:
    """The storage domains of the chosen disks: known to one SPM, mounted there and on the host."""
    pools: dict[PoolId, str] = {}
    for disk in choice.disks:
        if disk.target not in facts.leaves:
            yield refused("vm_off_chain", disk.target, f"no volume is on record for disk {disk.target} yet")
    leaves = [facts.leaves[disk.target] for disk in choice.disks if disk.target in facts.leaves]
    for id_ in dict.fromkeys(leaf.storage_domain_id for leaf in leaves):
        known = facts.storage_domains.get(id_)
        if known is None:
            yield refused("storage_unavailable", id_, f"no SPM has reported storage domain {id_}")
        else:
            pools.setdefault(known.pool, known.name)
            yield _of_storage_domain(id_, known, facts.host, limits)
    if len(pools) > 1:
        yield refused("vm_spans_pools", "disks", f"the disks lie in pools {', '.join(sorted(pools))}")


def _of_storage_domain(
    id_: StorageDomainId, known: StorageDomainFacts, host: HostFacts | None, limits: Limits
) -> PreflightLine:
    """Room that is short only warns: the report is some seconds old, and the SPM looks anew before it acts."""
    problem = mount_problem(id_, known.name, host.mounts) if host else ""
    if known.problem:
        return refused(
            "storage_unavailable", known.name, f"the SPM of {known.pool} says of {known.name}: {known.problem}"
        )
    if problem:
        return refused("storage_unavailable", known.name, f"the host says of {known.name}: {problem}")
    if known.free_bytes < known.min_free_bytes:
        seen = f"{mebibytes(known.free_bytes)} free when the SPM of {known.pool} reported last"
        return warning(
            "storage_full", known.name, f"{seen}; below {mebibytes(known.min_free_bytes)} it makes no volume"
        )
    return of_space(known.name, known.free_bytes, limits)


def mount_problem(id_: StorageDomainId, name: str, mounts: tuple[MountReport, ...]) -> str:
    """Return what a host says of a storage domain; one whose identity it cannot read it can only name."""
    known = {mount.storage_domain_id: mount.problem for mount in mounts}
    unread = {mount.name: mount.problem or "no identity" for mount in mounts if mount.storage_domain_id is None}
    return known.get(id_, unread.get(name, "it is not mounted there"))


def _of_host(facts: Facts, place: Place, limits: Limits) -> Iterator[PreflightLine]:
    """A host that is away only makes the job wait; one that was drained takes nothing new."""
    if facts.host is not None and facts.host.drained:
        yield refused("host_drained", place.host, f"host {place.host} was drained: {facts.vm_name} is there")
    if facts.host is None or facts.host.silent:
        yield warning(
            "host_unreachable", place.host, f"host {place.host} has not reported for a while; the job will wait"
        )
    elif not facts.host.libvirt_up:
        yield warning("libvirt_unavailable", place.host, f"libvirt on host {place.host} is down; the job will wait")
    else:
        yield of_clock(place.host, facts.host.clock_ahead, limits)
