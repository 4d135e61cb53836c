"""What a round does to trees of snapshots, and its verdict: deletions on running guests, and everything on a shelf.

The shelf is a guest that was written to, has snapshots, and is off for good: it is previewed, undone, committed,
reverted, and its snapshots are deleted by cold merges. Whatever is kept must show the same before and after.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import uuid4

from tests.bed.oracle import content_sha256
from tests.bed.vm import BedVm
from tests.chaos.world import World
from tests.wait import eventually

MOST: Final = 5
"""Of so many snapshots the shelf's next job deletes one: their contents are read twice in every round."""

Shown = dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for: `path` and `body` of the request, what every snapshot and the leaf show before.

    `wanted` is what the leaf must show once the job is completed; `gone` the snapshot that must be gone then.
    """

    kind: str
    path: str
    body: dict[str, Any]
    shown: Shown
    leaf: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    gone: str = ""


def of_running(world: World, guest: BedVm, rng: Random) -> Wish | None:
    """Return the deletion of one of a running guest's snapshots, None if it has none."""
    snapshots = _snapshots(world, guest)
    if not snapshots:
        return None
    chosen = rng.choice(snapshots)["id"]
    shown = {each["id"]: _shows(world, each) for each in snapshots}
    return Wish(kind="delete", path="/v1/snapshots/delete", body={"snapshots": [chosen]}, shown=shown, gone=chosen)


def of_shelf(world: World, rng: Random) -> Wish:
    """Return something that can be done to the shelf as it is now."""
    snapshots, machine = _snapshots(world, world.shelf), _machine(world)
    shown = {each["id"]: _shows(world, each) for each in snapshots}
    leaf = _leaf(machine)
    if machine["preview"]:
        back = tuple(_digest(world, disk["kept_volume_id"]) for disk in machine["preview"]["disks"])
        kind = rng.choice(("undo", "commit"))
        wanted = back if kind == "undo" else leaf
        return Wish(kind=kind, path=f"/v1/vms/shelf/{kind}", body={}, shown=shown, leaf=leaf, wanted=wanted)
    about = rng.choice(snapshots)
    kind = rng.choice(("preview", "revert", "snapshot", "snapshot", "delete"))
    if len(snapshots) >= MOST:
        kind = "delete"
    if kind == "snapshot" or (kind == "delete" and len(snapshots) < 2):
        return Wish(kind="snapshot", path="/v1/vms/shelf/snapshots", body={}, shown=shown, leaf=leaf, wanted=leaf)
    if kind == "delete":
        # What stands at the end of a branch, or has one volume on it; a fork is refused, and the newest never is one.
        newest = snapshots[0]["id"]
        body = {"snapshots": [newest]}
        path = "/v1/snapshots/delete"
        return Wish(kind=kind, path=path, body=body, shown=shown, leaf=leaf, wanted=leaf, gone=newest)
    path = f"/v1/snapshots/{about['id']}/{kind}"
    return Wish(kind=kind, path=path, body={}, shown=shown, leaf=leaf, wanted=shown[about["id"]])


def ask(world: World, wish: Wish) -> Any:
    """Ask, again by the same key until an API that was killed is back; return the job."""
    key = uuid4().hex
    return eventually(
        lambda: world.livesnap.ask(wish.path, wish.body, key=key), timeout_s=60, what=wish.path, interval_s=0.2
    )


def problems(world: World, guest: BedVm, wish: Wish, job: Any) -> Iterator[str]:
    """Yield what is wrong after a job: an end that is none, a snapshot that shows something else, a wrong leaf."""
    done = job["state"] == "completed"
    if job["state"] not in ("completed", "rolled_back"):
        yield f"job {job['id']} ended as {job['state']}: {job['error']}"
    snapshots = _snapshots(world, guest)
    shown = {each["id"]: _shows(world, each) for each in snapshots if each["state"] == "ok"}
    kept = {id_: digests for id_, digests in wish.shown.items() if not (done and id_ == wish.gone)}
    if {id_: shown.get(id_) for id_ in kept} != kept:
        states = {each["id"]: each["state"] for each in snapshots}
        yield f"{wish.kind} of {guest.name}: a kept snapshot shows something else, or is gone: {states}"
    if done and wish.gone in {each["id"] for each in snapshots}:
        yield f"snapshot {wish.gone} of {guest.name} is deleted, and listed"
    if wish.leaf and _leaf(_machine(world)) != (wish.wanted if done else wish.leaf):
        yield f"{wish.kind} of the shelf: its leaf does not show what it should"


def owned(world: World) -> set[Path]:
    """Return the shelf's own leaves and those that an undo comes back to."""
    machine = _machine(world)
    kept = [disk["kept_volume_id"] for disk in (machine["preview"] or {"disks": ()})["disks"]]
    return {Path(disk["path"]) for disk in machine["disks"]} | {_file(world, volume) for volume in kept}


def _machine(world: World) -> Any:
    """Return the shelf once the inventory and its definition agree."""

    def agreed() -> Any:
        seen = world.livesnap.ask("/v1/vms/shelf")
        same = seen and {disk["target"]: disk["path"] for disk in seen["disks"]} == world.shelf.sources(persistent=True)
        return seen if same and not seen["problem"] else None

    return eventually(agreed, timeout_s=60, what="the inventory to agree with the shelf's definition", interval_s=0.2)


def _snapshots(world: World, guest: BedVm) -> Any:
    return world.livesnap.snapshots(guest)


def _shows(world: World, snapshot: Any) -> tuple[str, ...]:
    return tuple(content_sha256(world.place.storage / disk["path"]) for disk in snapshot["disks"])


def _leaf(machine: Any) -> tuple[str, ...]:
    return tuple(content_sha256(Path(disk["path"])) for disk in machine["disks"])


def _file(world: World, volume: str) -> Path:
    found = [*world.place.storage.glob(f"images/*/{volume}.qcow2")]
    return found[0] if found else world.shelf.spec.disks[0].path


def _digest(world: World, volume: str) -> str:
    return content_sha256(_file(world, volume))
