"""What a machine's disks and snapshots must show after any row of steps: the plain model that the product is held to.

It knows nothing of files, jobs or processes: a disk is a tree of points, a point is what it shows. Which volume the
product merges into which is its own matter; that nobody sees it is what is tested.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final

PLACES: Final = 64
"""How many places a disk has that are written as a whole."""

Content = tuple[int, ...]
"""The byte that stands everywhere in each place."""
BLANK: Final[Content] = (0,) * PLACES


class Refused(Exception):
    """The step is not possible, for a reason with this code; nothing has changed."""


@dataclass(slots=True)
class Disk:
    """One disk: its points by number, each with the one that it stands on, and the one that the machine writes to."""

    shows: dict[int, Content] = field(default_factory=lambda: {0: BLANK})
    parents: dict[int, int | None] = field(default_factory=lambda: dict[int, int | None]({0: None}))
    leaf: int = 0
    kept: int | None = None
    """The leaf that an undo comes back to."""
    made: int = 0

    def add(self, parent: int) -> int:
        """Add a point that shows what its parent does."""
        self.made += 1
        self.shows[self.made], self.parents[self.made] = self.shows[parent], parent
        return self.made

    def remove(self, point: int) -> None:
        del self.shows[point], self.parents[point]

    def children(self, point: int) -> list[int]:
        return [child for child, parent in self.parents.items() if parent == point]

    def rename(self, old: int, new: int) -> None:
        """Let whatever is `old` be `new`, which shows the same from now on."""
        self.shows[new] = self.shows[old]
        for child in self.children(old):
            self.parents[child] = new
        self.leaf = new if self.leaf == old else self.leaf
        self.remove(old)


@dataclass(slots=True)
class Model:
    """One machine. `points` are the snapshots' disks; `halves` are the snapshots of which a deletion was given up."""

    disks: dict[str, Disk]
    points: dict[str, dict[str, int]] = field(default_factory=dict)
    halves: set[str] = field(default_factory=set)
    running: bool = False
    previewed: str = ""

    def write(self, target: str, place: int, count: int, byte: int) -> None:
        """Write to the present leaf."""
        disk = self.disks[target]
        shows = list(disk.shows[disk.leaf])
        shows[place : place + count] = [byte] * count
        disk.shows[disk.leaf] = tuple(shows)

    def snapshot(self, name: str) -> None:
        """Keep what every disk shows now."""
        if self.previewed:
            raise Refused("vm_previewed")
        self.points[name] = {target: disk.leaf for target, disk in self.disks.items()}
        for disk in self.disks.values():
            disk.leaf = disk.add(disk.leaf)

    def preview(self, name: str, targets: tuple[str, ...] = ()) -> None:
        """Show a snapshot on its disks, or on some, and keep what they show now."""
        self._require_at_rest(name)
        self.previewed = name
        for target in targets or self.disks:
            disk = self.disks[target]
            disk.kept, disk.leaf = disk.leaf, disk.add(self.points[name][target])

    def undo(self) -> None:
        """Come back."""
        self._require_previewed()
        for disk in self.disks.values():
            if disk.kept is not None:
                given_up, disk.leaf, disk.kept = disk.leaf, disk.kept, None
                disk.remove(given_up)
        self.previewed = ""

    def commit(self) -> None:
        """Stay."""
        self._require_previewed()
        for disk in self.disks.values():
            if disk.kept is not None:
                disk.remove(disk.kept)
                disk.kept = None
        self.previewed = ""

    def revert(self, name: str) -> None:
        """Preview and commit in one."""
        self._require_at_rest(name)
        for target, disk in self.disks.items():
            given_up, disk.leaf = disk.leaf, disk.add(self.points[name][target])
            disk.remove(given_up)

    def delete(self, names: list[str]) -> None:
        """Delete snapshots, one after the other, all or none."""
        if self.previewed:
            raise Refused("vm_previewed")
        after = deepcopy(self)
        for name in names:
            after._delete(name)
        self.disks, self.points, self.halves = after.disks, after.points, after.halves

    def _delete(self, name: str) -> None:
        """A point with one child becomes that child; the end of a branch goes; a fork stays, and so does the root."""
        for target, point in self.points.pop(name).items():
            disk = self.disks[target]
            on_it = disk.children(point)
            if len(on_it) > 1 or (not on_it and disk.parents[point] is None):
                raise Refused("volume_shared")
            if not on_it:
                disk.remove(point)
                continue
            for of in self.points.values():
                of.update({each: point for each, at in of.items() if each == target and at == on_it[0]})
            disk.rename(on_it[0], point)
        self.halves.discard(name)

    def _require_at_rest(self, name: str) -> None:
        if self.previewed:
            raise Refused("vm_previewed")
        if name in self.halves:
            raise Refused("snapshot_unusable")
        if self.running:
            raise Refused("vm_running")

    def _require_previewed(self) -> None:
        if not self.previewed:
            raise Refused("vm_not_previewed")
        if self.running:
            raise Refused("vm_running")
