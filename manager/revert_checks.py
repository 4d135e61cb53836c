"""What is checked before a machine goes back: one small function per rule, each with its stable code. Pure.

As preflight.py does for a snapshot: the facts may be some seconds old, and the host checks again before it acts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from common.error_codes import CATALOGUE
from common.ids import DiskId, PoolId, SnapshotId, VmId
from common.messaging.messages import VolumeAt
from common.messaging.reports import VmState
from common.preflight import PreflightLine, refused
from manager.flows.revert_states import Goal
from manager.preflight import STATE_CODES, Facts, mount_problem, of_record, previewing, unable

USABLE: Final = "ok"
_AT_REST: Final = (VmState.OFF, VmState.STOPPING)
"""A machine that is shutting down is waited for by its host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDisk:
    """One disk of a snapshot. `content`: the volume that holds it, None if that is not on record any more."""

    target: str
    disk: DiskId
    content: VolumeAt | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """A snapshot on record."""

    id: SnapshotId
    vm: VmId
    name: str
    state: str
    disks: tuple[SnapshotDisk, ...]

    def chosen(self, targets: tuple[str, ...]) -> tuple[SnapshotDisk, ...]:
        """Return the disks of these targets, or all of them."""
        return tuple(disk for disk in self.disks if not targets or disk.target in targets)


def onto(facts: Facts, snapshot: SnapshotFacts, targets: tuple[str, ...]) -> Iterator[PreflightLine]:
    """Yield what stands against putting a machine's disks onto a snapshot."""
    yield from of_record(facts)
    if facts.preview:
        yield previewing(facts.vm_name, facts.preview)
    if snapshot.state != USABLE:
        yield refused("snapshot_unusable", snapshot.name, f"snapshot {snapshot.name} is {snapshot.state}")
    yield from _at_rest(facts)
    yield from _of_disks(facts, snapshot, targets)


def ending(facts: Facts, goal: Goal) -> Iterator[PreflightLine]:
    """Yield what stands against committing or undoing a preview."""
    yield from of_record(facts)
    if facts.preview is None:
        yield refused("vm_not_previewed", facts.vm_name, f"{facts.vm_name} shows no snapshot to {goal}")
        return
    yield from _at_rest(facts)
    missing = [disk.target for disk in facts.preview.disks if disk.target not in facts.leaves]
    if missing:
        yield refused("disk_unknown", facts.vm_name, f"{facts.vm_name} has no disk {', '.join(missing)} any more")
    yield from _of_storage(facts, [facts.leaves[disk.target] for disk in facts.preview.disks if not missing])


def _at_rest(facts: Facts) -> Iterator[PreflightLine]:
    """Whether the machine is off, and would boot from its definition: else a change of that is no change."""
    place, name = facts.place, facts.vm_name
    if place is None:
        return  # of_record has said so
    report = place.report
    code = "vm_migrating" if report.migrating or facts.migrating_to else STATE_CODES.get(report.state, "")
    if code:
        yield refused(code, name, f"{name} is {report.state.value.replace('_', ' ')} on {place.host}")
    elif report.state not in _AT_REST:
        yield refused("vm_running", name, f"{name} is {report.state.value} on {place.host}")
    if report.managed_save and report.state is VmState.OFF:
        yield refused("vm_managed_save", name, f"{name} is shut off with a managed save image")
    if report.libvirt_snapshots:
        yield refused("vm_has_libvirt_snapshots", name, f"{name} has {report.libvirt_snapshots} libvirt snapshot(s)")


def _of_disks(facts: Facts, snapshot: SnapshotFacts, targets: tuple[str, ...]) -> Iterator[PreflightLine]:
    """Every chosen disk must be the machine's still, and its content on record and within reach."""
    known = {disk.target for disk in snapshot.disks}
    for target in dict.fromkeys(targets):
        if target not in known:
            said = f"snapshot {snapshot.name} has no disk {target[:40]!a}; it has {', '.join(sorted(known))}"
            yield refused("disk_unknown", target[:40], said)
    reported = {disk.target: disk for disk in facts.place.report.disks} if facts.place else {}
    contents = []
    for disk in snapshot.chosen(targets):
        if disk.target not in reported or disk.target not in facts.leaves:
            yield refused("disk_unknown", disk.target, f"{facts.vm_name} has no disk {disk.target} any more")
        elif code := unable(reported[disk.target], facts):
            yield refused(code, disk.target, f"disk {disk.target}: {CATALOGUE[code].cause}")
        elif disk.content is None:
            said = f"the volume of snapshot {snapshot.name} for disk {disk.target} is not on record"
            yield refused("snapshot_unusable", disk.target, said)
        else:
            contents += [disk.content, facts.leaves[disk.target]]
    if not snapshot.disks:
        yield refused("snapshot_unusable", snapshot.name, f"snapshot {snapshot.name} has no disk")
    yield from _of_storage(facts, contents)


def _of_storage(facts: Facts, volumes: list[VolumeAt]) -> Iterator[PreflightLine]:
    """The storage domains: known to one SPM, usable there, and mounted on the machine's host."""
    pools: set[PoolId] = set()
    for id_ in dict.fromkeys(volume.storage_domain_id for volume in volumes):
        known = facts.storage_domains.get(id_)
        if known is None:
            yield refused("storage_unavailable", id_, f"no SPM has reported storage domain {id_}")
            continue
        pools.add(known.pool)
        seen = known.problem or (mount_problem(id_, known.name, facts.host.mounts) if facts.host else "")
        if seen:
            yield refused("storage_unavailable", known.name, f"storage domain {known.name}: {seen}")
    if len(pools) > 1:
        yield refused("vm_spans_pools", "disks", f"the disks lie in pools {', '.join(sorted(pools))}")
