"""Which cells there are: a story that a job takes, a crash point on its way, and who dies while it is there. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

ITSELF = "itself"
"""Who has reached the point dies by its own hand. Anybody else dies while that one is held right there."""

PROCESSES = {
    "manager": "manager.worker",
    "api": "manager.api",
    "spm": "spm.worker",
    "agent": "hostagent.worker",
    "guard": "hostagent.guard",
    "broker": "redis-server",
}
"""Who may die, and the words of its command line. `libvirtd` is no child of livesnap: the test bed starts it again."""
VICTIMS = (ITSELF, *PROCESSES, "libvirtd")

MANAGER = ("manager.apply.before_commit", "manager.apply.committed", "manager.apply.published")
CREATE = ("spm.create.begun", "spm.create.linked", "spm.create.metadata_written")
SHELL = ("shell.before_answer", "shell.after_answer")
PIVOT = (
    *("host.pivot.begun", "host.pivot.prepared", "host.pivot.defined", "host.pivot.issued"),
    *("host.pivot.switched", "host.pivot.observed", "host.pivot.done"),
)
FREEZE = ("host.pivot.armed", "host.pivot.frozen", "host.pivot.thawed")
DELETE = ("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned")

MARK = ("spm.merge.marked",)
MERGE = ("host.merge.begun", "host.merge.started", "host.merge.ready", "host.merge.pivoted")
COLD = ("spm.merge.begun", "spm.merge.started", "spm.merge.committed", "host.merge.aligned")
LIFT = ("spm.merge.rebased", "spm.merge.recorded")
REDEFINE = (
    *("host.redefine.begun", "host.redefine.prepared", "host.redefine.defined"),
    *("host.redefine.observed", "host.redefine.done"),
)
PROVE = ("host.probe.begun", "host.probe.observed", "host.probe.done")

POINTS = {
    "straight": (*MANAGER, *CREATE, *SHELL, *PIVOT, *FREEZE),
    "again without quiescing": PIVOT,
    "back": DELETE,
    "probed": ("host.probe.begun", "host.probe.done"),
    "repaired": ("host.repair.begun", "host.repair.committed", "host.repair.done"),
    "deleted": (*MANAGER, *MARK, *MERGE, *DELETE),
    "deleted while off": (*COLD, *DELETE),
    "lifted while off": LIFT,
    "previewed": (*CREATE, *REDEFINE),
    "undone": (*REDEFINE, *PROVE, *DELETE),
    "reverted": (*MANAGER, *REDEFINE, *PROVE, *DELETE),
}
"""By story (`stories.py`), the points that it leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell."""

    story: str
    point: str
    victim: str

    def __str__(self) -> str:
        """Name it as `--only` takes it."""
        return f"{self.story}/{self.point}/{self.victim}"


def cells() -> Iterator[Cell]:
    """Return the whole matrix, story by story."""
    for story, points in POINTS.items():
        for point in points:
            for victim in VICTIMS:
                if victim != _owner(point):
                    yield Cell(story=story, point=point, victim=victim)


def _owner(point: str) -> str:
    """Return the only process that reaches a point, '' where several do: it is killed there as `itself`."""
    return {"spm": "spm", "host": "agent"}.get(point.partition(".")[0], "")
