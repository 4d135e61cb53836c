"""What the operations need of a kind of storage. One storage domain, one backend.

Every method raises StorageError with a stable code; those that change something first make sure of the lease.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from common.ids import DiskId, HostId, VolumeId
from common.images.chain import Backing
from common.images.identity import Identity
from common.images.metadata import VolumeMetadata
from common.images.qemu_img import Commit
from common.messaging.messages import Format, VolumeAt


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Room on a storage domain."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a new volume takes over from its parent, and what the parent itself stands on."""

    size_bytes: int
    cluster_bytes: int
    extended_l2: bool
    backing: Backing | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What a file shows of itself, read without a lock. `problem` says why its header is not believed."""

    stored_bytes: int
    modified_at: datetime
    is_locked: bool
    is_empty: bool = False
    size_bytes: int = 0
    backing: Backing | None = None
    problem: str = ""


class Holds(StrEnum):
    """What a volume in the trash may hold: a word of its name there."""

    NOTHING = "empty"
    COMMITTED = "committed"
    """Data that stands elsewhere too."""
    ABANDONED = "abandoned"
    """Data that the user has given up, and that stands nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trashed:
    """A deleted volume that can still be had back."""

    name: str
    volume_id: VolumeId
    format: Format
    deleted_at: datetime
    holds: Holds


class HeldVolume(Protocol):
    """A volume whose image lock we hold: nobody uses it, as a backing file neither, and nobody can begin to."""

    @property
    def fd(self) -> int:
        """Return the descriptor that holds the lock: a process that is given it holds the lock too."""
        ...

    def is_empty(self) -> bool:
        """Tell whether it is proven to hold no guest data of its own; in doubt it does."""
        ...

    def to_trash(self, deleted_at: datetime, holds: Holds) -> Trashed:
        """Move it to the trash, durably, with the lock held; return it as it lies there."""
        ...

    def remove(self) -> None:
        """Remove it for good, durably, with the lock held."""
        ...


class Backend(Protocol):
    """One storage domain."""

    @property
    def identity(self) -> Identity:
        """Return what the storage domain says it is."""
        ...

    def usage(self) -> Usage:
        """Return its room."""
        ...

    def keep_reserve(self) -> None:
        """Set a little room aside for deletions, as far as there is any; storage_full if there is none."""
        ...

    def release_reserve(self) -> None:
        """Give that room back, because a deletion has found none."""
        ...

    def locking_is_proven(self) -> bool:
        """Tell whether some host's own lock is seen held here; if not, a free image lock proves nothing."""
        ...

    def is_held_by(self, host: HostId) -> bool:
        """Tell whether that host's own lock is seen held here: one of its agents lives."""
        ...

    def load(self, disk: DiskId, volume_id: VolumeId) -> VolumeMetadata | None:
        """Return the metadata of a volume of that disk, tombstones included; None if there is none."""
        ...

    def find(self, volume: VolumeAt, disk: DiskId | None) -> VolumeMetadata | None:
        """Return a volume's metadata wherever it lies: a base that disks share is in one disk's folder only."""
        ...

    def of_disk(self, disk: DiskId) -> tuple[VolumeMetadata, ...]:
        """Return the metadata of every volume of the disk, tombstones included."""
        ...

    def store(self, metadata: VolumeMetadata, *, new: bool = False) -> None:
        """Make the metadata durable; with `new`, volume_exists if there is some already."""
        ...

    def exists(self, volume: VolumeAt) -> bool:
        """Tell whether the volume itself (not its metadata) is there."""
        ...

    def shape(self, volume: VolumeAt) -> Shape:
        """Read a volume's header; HeaderRefused for one that no tool may open."""
        ...

    def make(self, volume: VolumeAt, parent: VolumeAt, shape: Shape) -> bool:
        """Make an empty volume above its parent, durably, never replacing anything; False if one was there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the relative path of everything below a folder of the storage domain, sorted."""
        ...

    def looks(self, path: str, image_format: Format) -> Looks | None:
        """Return what the file at a relative path shows of itself; None if it is not there."""
        ...

    def standing_on(self, path: str) -> str:
        """Return the relative path of a file here whose header names that absolute path as its backing file, '' if none
        does. Reads every header: for the rare deletion of what holds data."""
        ...

    def hold(self, volume: VolumeAt) -> AbstractContextManager[HeldVolume | None]:
        """Hold the volume's image lock; None if somebody uses it. Raises volume_not_found for a missing one."""
        ...

    def begin_commit(
        self, top: VolumeAt, base: VolumeAt, locks: Sequence[int], *, bytes_per_s: int, ended: Callable[[], object]
    ) -> Commit:
        """Begin to commit a volume into the one below, under the locks of both; `ended` is called when it is over."""
        ...

    def change_backing(self, volume: VolumeAt, parent: VolumeAt) -> None:
        """Let a volume whose lock is held stand on another parent that shows the same; durable when it returns."""
        ...

    def path(self, volume: VolumeAt) -> str:
        """Return the absolute path of a volume as it is mounted here."""
        ...

    def name_volume(self, path: str, image_format: Format) -> VolumeAt:
        """Return the volume at a relative path, by the id that it was made with or is adopted under."""
        ...

    def outside(self, path: str, image_format: Format) -> Backing | None:
        """Return what a file outside every storage domain stands on; HeaderRefused unless it lies below a declared
        read-only base and has a header that we let tools open."""
        ...

    def forget(self, metadata: VolumeMetadata) -> None:
        """Remove the metadata of a volume that nobody has been told of."""
        ...

    def locate(self, path: str) -> str | None:
        """Return the relative path of an absolute one, links resolved; None if it lies outside."""
        ...

    def trash(self) -> Iterable[Trashed]:
        """List the trash."""
        ...

    def hold_trashed(self, trashed: Trashed) -> AbstractContextManager[HeldVolume | None]:
        """Hold the image lock of a trashed volume; None if somebody uses it."""
        ...

    def sweep(self, before: datetime) -> int:
        """Remove temporary files that crashed creations left before then; return how many."""
        ...
