"""The ways that a job is led to the crash points: each begins one on a scene's guest, and arms the point in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bed.vm_spec import AgentMode
from tests.e2e.scene import Scene

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How to begin, on a guest with or without an agent, and how the job may end."""

    begin: Callable[[Scene, Arm], Any]
    agent: AgentMode = "normal"
    ends: tuple[str, ...] = ("completed", "rolled_back")


STORIES = {
    "straight": Story(begin=straight),
    "again without quiescing": Story(begin=straight, agent="none"),
    "back": Story(begin=back, agent="none", ends=("rolled_back",)),
    "probed": Story(begin=probed, ends=("rolled_back",)),
    "repaired": Story(begin=repaired, ends=("rolled_back",)),
}
