"""The stories of a machine's tree of snapshots: one is deleted, running or off; one is tried, left, and gone back to.

Before the point is armed, what every snapshot shows is written down; afterwards each that is kept must show the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from common.ids import VmId, disk_id
from tests.bed.oracle import content_sha256, examine
from tests.bed.process import run
from tests.e2e.kit import writer_went_on
from tests.e2e.scene import Scene
from tests.wait import eventually

Arm = Callable[[], object]
TOUCHED = 64 * 1024
REPORT_S = 60
"""A host's report that was lost with the broker is made good by its next full one, after 30 s at most."""


def deleted(scene: Scene, arm: Arm) -> Any:
    """Delete the newest snapshot of a running machine, which writes to what is merged."""
    newest = _with_snapshots(scene, 2)[0]
    return _begin(scene, arm, "/v1/snapshots/delete", {"snapshots": [newest["id"]]}, gone=newest["id"])


def deleted_while_off(scene: Scene, arm: Arm) -> Any:
    """Delete the newest snapshot of a machine that is off: it is defined on another leaf then."""
    _off(scene)
    newest = _with_snapshots(scene, 3)[0]
    return _begin(scene, arm, "/v1/snapshots/delete", {"snapshots": [newest["id"]]}, gone=newest["id"])


def lifted(scene: Scene, arm: Arm) -> Any:
    """Delete the last but one: the leaf stands on another volume then."""
    _off(scene)
    second = _with_snapshots(scene, 3)[1]
    return _begin(scene, arm, "/v1/snapshots/delete", {"snapshots": [second["id"]]}, gone=second["id"])


def previewed(scene: Scene, arm: Arm) -> Any:
    """Try the older of two snapshots."""
    _off(scene)
    _with_snapshots(scene, 2)
    _left(scene)
    return _begin(scene, arm, f"/v1/snapshots/{_oldest(scene)['id']}/preview", {})


def undone(scene: Scene, arm: Arm) -> Any:
    """Come back from there."""
    _off(scene)
    _with_snapshots(scene, 2)
    machine = _machine(scene)
    if machine["preview"] is None:
        scene.notes["kept"] = _leaf_shows(machine)
        _done(scene, f"/v1/snapshots/{_oldest(scene)['id']}/preview")
    return _begin(scene, arm, "/v1/vms/target/undo", {})


def reverted(scene: Scene, arm: Arm) -> Any:
    """Go back to the older of two snapshots for good."""
    _off(scene)
    _with_snapshots(scene, 2)
    return _begin(scene, arm, f"/v1/snapshots/{_oldest(scene)['id']}/revert", {})


def check(scene: Scene, job: Any) -> None:
    """What is kept shows what it did, each a prefix of the guest's records; no volume is without an owner."""
    machine = eventually(
        lambda: _at_rest(scene), timeout_s=REPORT_S, what="the inventory to agree with both definitions"
    )
    before, gone = scene.notes["shown"], scene.notes["gone"] if job["state"] == "completed" else ""
    snapshots = scene.livesnap.snapshots(scene.vm)
    assert {each["id"]: _shows(scene, each) for each in snapshots} == {
        id_: shown for id_, shown in before.items() if id_ != gone
    }
    assert {each["state"] for each in snapshots} == {"ok"}
    for snapshot in snapshots:
        for disk in snapshot["disks"]:
            finding = examine(scene.here.storage / disk["path"])
            assert (finding.fsck_rc, finding.records) == (0, tuple(range(1, len(finding.records) + 1))), finding
    _check_owners(scene, machine, snapshots)
    if scene.vm.qemu_pid is not None:
        writer_went_on(scene.vm)
    elif job["kind"] != "delete" and job["state"] == "completed":
        wanted = scene.notes["kept"] if job["kind"] == "undo" else before[job["snapshot_id"]]
        assert _leaf_shows(machine) == wanted
    else:
        assert _leaf_shows(machine) == scene.notes["leaf"]


def _check_owners(scene: Scene, machine: Any, snapshots: Any) -> None:
    owned = {Path(disk["path"]) for disk in machine["disks"]}
    owned |= {scene.here.storage / disk["path"] for each in snapshots for disk in each["disks"]}
    kept = {disk["kept_volume_id"] for disk in (machine["preview"] or {"disks": []})["disks"]}
    mine = {disk_id(VmId(scene.vm.uuid), disk.target) for disk in scene.vm.spec.disks}
    volumes = {scene.here.storage / path for path in scene.here.volumes() if path.split("/")[1] in mine}
    assert {path for path in volumes - owned if path.stem not in kept} == set()


# ---- the way there ----------------------------------------------------------------------------------------------


def _begin(scene: Scene, arm: Arm, path: str, body: dict[str, Any], *, gone: str = "") -> Any:
    """Write down what is shown now, arm, and ask; return the job."""
    machine = _machine(scene)
    notes = scene.notes
    notes["shown"] = {each["id"]: _shows(scene, each) for each in scene.livesnap.snapshots(scene.vm)}
    notes["gone"] = gone
    if scene.vm.qemu_pid is None:
        notes["leaf"] = _leaf_shows(machine)
    arm()
    return _ask(scene, path, body)


def _ask(scene: Scene, path: str, body: dict[str, Any]) -> Any:
    """Ask, again by the same key until an API that was killed is back."""
    key = uuid4().hex
    return eventually(
        lambda: scene.livesnap.ask(path, body, key=key), timeout_s=60, what=f"a job by {path}", interval_s=0.2
    )


def _done(scene: Scene, path: str) -> None:
    ended = scene.livesnap.wait_for_end(_ask(scene, path, {})["id"])
    assert ended["state"] == "completed", ended
    eventually(lambda: _at_rest(scene), timeout_s=REPORT_S, what="the inventory to agree with both definitions")


def _with_snapshots(scene: Scene, number: int) -> Any:
    """Return the machine's snapshots, newest first; at least so many, each with data of its own above it."""
    while len(found := scene.livesnap.snapshots(scene.vm)) < number:
        _done(scene, "/v1/vms/target/snapshots")
        for disk in scene.vm.spec.disks:
            if scene.vm.qemu_pid is None:
                _touch(scene, Path(scene.vm.sources(persistent=True)[disk.target]))
            else:
                scene.vm.wait_acks(more=2, target=disk.target)
    return found


def _touch(scene: Scene, leaf: Path) -> None:
    """Write to a leaf what it shows anyhow: it holds data then."""
    raw, piece = scene.here.root / "raw", scene.here.root / "piece"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", leaf, raw])
    with raw.open("rb") as whole:
        piece.write_bytes(whole.read(TOUCHED))
    run(["qemu-io", "-f", "qcow2", "-c", f"write -s {piece} 0 {TOUCHED}", leaf])


def _oldest(scene: Scene) -> Any:
    return scene.livesnap.snapshots(scene.vm)[-1]


def _off(scene: Scene) -> None:
    """Pull the plug once; the machine stays off for all further cells."""
    if scene.vm.qemu_pid is not None:
        _with_snapshots(scene, 3)
        scene.vm.destroy()
        scene.livesnap.shows(scene.vm, "off")


def _left(scene: Scene) -> None:
    if _machine(scene)["preview"] is not None:
        _done(scene, "/v1/vms/target/undo")


def _machine(scene: Scene) -> Any:
    return eventually(lambda: scene.livesnap.ask("/v1/vms/target"), timeout_s=30, what="the machine", interval_s=0.1)


def _at_rest(scene: Scene) -> Any:
    """Return the machine once the record and its definitions name the same leaves, None before."""
    machine = _machine(scene)
    sources = scene.vm.sources(persistent=True)
    agree = {
        disk["target"]: str(scene.here.storage / disk["chain"][-1]["path"]) for disk in machine["disks"]
    } == sources
    shown = {disk["target"]: disk["path"] for disk in machine["disks"]} == sources
    live = scene.vm.qemu_pid is None or scene.vm.sources() == sources  # it was never booted from a leaf of ours
    return machine if agree and shown and live and not machine["problem"] and not machine["busy_with"] else None


def _shows(scene: Scene, snapshot: Any) -> tuple[str, ...]:
    return tuple(content_sha256(scene.here.storage / disk["path"]) for disk in snapshot["disks"])


def _leaf_shows(machine: Any) -> tuple[str, ...]:
    return tuple(content_sha256(Path(disk["path"])) for disk in machine["disks"])
