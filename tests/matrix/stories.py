"""The ways that a job is led to the crash points: each begins one on a scene's guest, and arms the point in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bed.vm_spec import AgentMode
from tests.e2e.scene import Scene
from tests.matrix import trees

Arm = Callable[[], object]


def straight(scene: Scene, arm: Arm) -> Any:
    """Take a snapshot as everybody does."""
    arm()
    return scene.livesnap.submit(scene.vm)


def back(scene: Scene, arm: Arm) -> Any:
    """Ask for a quiesced snapshot of a guest without an agent: the new volumes are deleted."""
    arm()
    return scene.livesnap.submit(scene.vm, quiesce="require")


def probed(scene: Scene, arm: Arm) -> Any:
    """Let the agent die in its pivot, and cancel the job meanwhile: the outcome has to be found out."""
    with scene.dead_agent("host.pivot.defined") as job:
        scene.cancel(job)
        arm()
    return job


def repaired(scene: Scene, arm: Arm) -> Any:
    """Let the agent die right before its switch, and QEMU have one of two disks on its new volume by then (H1)."""
    with scene.dead_agent("host.pivot.issued") as job:
        scene.vm.switch_behind_libvirt("vda", scene.vm.sources(persistent=True)["vda"])
        arm()
    return job


def check_snapshot(scene: Scene, job: Any) -> None:
    """Nothing is left of a job that came to nothing; a snapshot's label is true and no record is missing."""
    scene.check_nothing_is_left(job)
    if job["state"] != "completed":
        return
    snapshot = scene.livesnap.json("snapshot", "show", job["snapshot_id"])
    finding = scene.here.content_of(snapshot)
    assert finding.fsck_rc == 0, finding
    assert not (snapshot["consistency"] == "filesystem" and finding.needs_recovery), "the label promises too much"
    assert finding.records == tuple(range(finding.records[0], finding.records[-1] + 1)), "a record is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How to begin, on a guest with or without an agent, how the job may end, and what must be so then."""

    begin: Callable[[Scene, Arm], Any]
    agent: AgentMode = "normal"
    ends: tuple[str, ...] = ("completed", "rolled_back")
    check: Callable[[Scene, Any], None] = check_snapshot


STORIES = {
    "straight": Story(begin=straight),
    "again without quiescing": Story(begin=straight, agent="none"),
    "back": Story(begin=back, agent="none", ends=("rolled_back",)),
    "probed": Story(begin=probed, ends=("rolled_back",)),
    "repaired": Story(begin=repaired, ends=("rolled_back",)),
    "deleted": Story(begin=trees.deleted, ends=("completed",), check=trees.check),
    "deleted while off": Story(begin=trees.deleted_while_off, ends=("completed",), check=trees.check),
    "lifted while off": Story(begin=trees.lifted, ends=("completed",), check=trees.check),
    "previewed": Story(begin=trees.previewed, check=trees.check),
    "undone": Story(begin=trees.undone, check=trees.check),
    "reverted": Story(begin=trees.reverted, check=trees.check),
}
