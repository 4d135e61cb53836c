"""The verdict after a round: what the guests know, what the storage holds, and what livesnap says must agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from common.ids import VmId, disk_id
from tests.bed.oracle import examine
from tests.bed.vm import BedVm
from tests.chaos import trees
from tests.chaos.trees import Wish
from tests.chaos.world import World
from tests.wait import eventually

IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """One job and the newest acknowledged record of each disk right before it was asked for. `wish`: it is no snapshot
    of a running guest."""

    job: str
    guest: BedVm
    acked_before: dict[str, int]
    wish: Wish | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job as it ended, and the newest acknowledged record of each disk right after it was seen to."""

    job: Any
    acked_after: dict[str, int]


def acked(guest: BedVm) -> dict[str, int]:
    """Return the newest acknowledged record of each disk."""
    newest = {disk.target: 0 for disk in guest.spec.disks}
    for ack in guest.acks():
        newest[ack.target] = max(newest[ack.target], ack.n)
    return newest


def resume_paused(world: World) -> None:
    """Do an operator's part: a guest that met a full disk on its own volume is resumed once there is room."""
    for guest in world.guests:
        if guest.state() == IO_ERROR:
            guest.resume()


def problems(world: World, submitted: list[Submitted], ended: dict[str, Ended]) -> Iterator[str]:
    """Yield everything that breaks a promise; nothing, if all is well."""
    for guest in world.guests:
        yield from _of_guest(guest)
    for one in submitted:
        if one.wish is not None:
            yield from trees.problems(world, one.guest, one.wish, ended[one.job].job)
        else:
            yield from _of_job(world, one, ended[one.job])
    yield from _of_storage(world)
    for vm in world.livesnap.ask("/v1/vms") or []:
        if vm["busy_with"] or vm["problem"]:
            yield f"{vm['name']}: busy with {vm['busy_with']}, problem {vm['problem']!r}"
    # Each guest itself was seen thawed above; what its host shows is as old as the last report.
    eventually(lambda: _frozen(world) == {}, timeout_s=45, what=f"no host to see a frozen guest: {_frozen(world)}")


def _frozen(world: World) -> dict[str, Any]:
    """Return the guests that each host sees frozen, for the hosts that see any."""
    return {host["id"]: host["frozen"] for host in world.livesnap.ask("/v1/hosts") or [] if host["frozen"]}


def _of_guest(guest: BedVm) -> Iterator[str]:
    """No lost write, no write error, not frozen, and both definitions on the same leaf."""
    for disk in guest.spec.disks:
        guest.wait_acks(target=disk.target)
    if errors := guest.write_errors():
        yield f"{guest.name}: the guest saw write errors: {errors[:3]}"
    for disk in guest.spec.disks:
        numbers = [ack.n for ack in guest.acks() if ack.target == disk.target]
        if len(set(numbers)) != len(numbers) or sorted(numbers) != list(range(numbers[0], numbers[0] + len(numbers))):
            yield f"{guest.name} {disk.target}: the acknowledged numbers have gaps or repeat"
    if guest.spec.agent:
        # The agent answers once more after a restart of libvirtd; until then it is silent, not frozen.
        eventually(lambda: _is_thawed(guest), timeout_s=30, what=f"{guest.name} thawed")
    if guest.sources() != guest.sources(persistent=True):
        yield f"{guest.name}: live {guest.sources()}, persistent {guest.sources(persistent=True)}"


def _is_thawed(guest: BedVm) -> bool:
    try:
        return guest.freeze_status() == "thawed"
    except libvirt.libvirtError:
        return False


def _of_job(world: World, one: Submitted, end: Ended) -> Iterator[str]:
    """The job has ended, truthfully: a snapshot's content is a prefix of the records that fits its time."""
    job = end.job
    snapshots = world.livesnap.ask(f"/v1/vms/{one.guest.name}/snapshots") or []
    listed = {snapshot["id"]: snapshot for snapshot in snapshots}
    if (job["state"] == "completed") != (job["snapshot_id"] in listed):
        yield f"job {job['id']} is {job['state']}; its snapshot listed: {job['snapshot_id'] in listed}"
    if job["state"] not in ("completed", "rolled_back"):
        yield f"job {job['id']} ended as {job['state']}: {job['error']}"
    if job["state"] != "completed":
        return
    snapshot = listed[job["snapshot_id"]]
    for disk in snapshot["disks"]:
        first, last = one.acked_before[disk["target"]], end.acked_after[disk["target"]]
        volume = world.place.storage / disk["path"]
        for problem in _of_content(volume, first, last, labelled_clean=snapshot["consistency"] == "filesystem"):
            yield f"snapshot {snapshot['id']} of {one.guest.name}, {disk['target']}: {problem}"


def _of_content(volume: Path, first: int, last: int, *, labelled_clean: bool) -> Iterator[str]:
    """A prefix of the records, no shorter than what was acknowledged before the job and no longer than after it."""
    finding = examine(volume)
    found = len(finding.records)
    if finding.records != tuple(range(1, found + 1)):
        yield "its records are no prefix"
    if finding.fsck_rc:
        yield f"e2fsck says {finding.fsck_rc}"
    # One more than acknowledged may be there: written, and its acknowledgement still on the way.
    if not first <= found <= last + 1:
        yield f"it has {found} records; {first} were acknowledged before its job, {last} after"
    if labelled_clean and finding.needs_recovery:
        yield "labelled filesystem, but its journal needs recovery"


def _of_storage(world: World) -> Iterator[str]:
    """Every volume below images/ is somebody's: a leaf, or the content of a snapshot."""
    used, disks = trees.owned(world), set[str]()
    for guest in (*world.guests, world.shelf):
        used |= {Path(path) for path in guest.sources().values()}
        disks |= {disk_id(VmId(guest.uuid), disk.target) for disk in guest.spec.disks}
        for snapshot in world.livesnap.ask(f"/v1/vms/{guest.name}/snapshots") or []:
            used |= {world.place.storage / disk["path"] for disk in snapshot["disks"]}
    for path in world.place.volumes():
        if path.split("/")[1] in disks and world.place.storage / path not in used:
            yield f"volume without an owner: {path}"


def last_words(world: World) -> Iterator[str]:
    """Pull the guests' plugs; yield what is wrong with their disks: every acknowledged record must be there."""
    for guest in world.guests:
        guest.pause()
        newest, leaves = acked(guest), guest.sources()
        guest.destroy()
        for target, path in leaves.items():
            finding = examine(Path(path))
            found = len(finding.records)
            if finding.fsck_rc or finding.records != tuple(range(1, found + 1)):
                yield f"{guest.name} {target}: e2fsck {finding.fsck_rc}, {found} records, not in order"
            if found < newest[target]:
                yield f"{guest.name} {target}: {newest[target]} records acknowledged, {found} on the disk"
