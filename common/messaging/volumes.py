"""What commands and answers name: a volume and where it lies, and one disk of a switch. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from common.ids import DiskId, StorageDomainId, VolumeId, require_relative_path, require_target, require_uuid


class Format(StrEnum):
    """An image format. It comes from our records and is always passed on explicitly (P8)."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeAt:
    """A volume and where it lies: `path` is relative to its storage domain's root, which each process mounts itself."""

    volume_id: VolumeId
    storage_domain_id: StorageDomainId
    path: str
    format: Format

    def __post_init__(self) -> None:
        """Refuse ids and paths that could lead out of the storage domain."""
        require_uuid(self.volume_id, self.storage_domain_id)
        require_relative_path(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSwitch:
    """One disk of a switch: from the leaf on record to the new, empty leaf above it; or onto another branch.

    `over` is what `new` stands on where that is not `old`: a snapshot is previewed. `kept`: `new` is no empty volume
    but the leaf that the machine comes back to; its `over` is None where it is not on record.
    """

    target: str
    disk_id: DiskId
    old: VolumeAt
    new: VolumeAt
    over: VolumeAt | None = None
    kept: bool = False

    def __post_init__(self) -> None:
        """Refuse a malformed target or disk id."""
        require_target(self.target)
        require_uuid(self.disk_id)

    @property
    def is_branch(self) -> bool:
        """Tell whether the disk leaves its branch: then nothing may be committed from `new` into what is below it."""
        return self.over is not None or self.kept

    @property
    def parent(self) -> VolumeAt:
        """Return what `new` stands on. Of a kept leaf whose parent is not on record: `old`, which proves nothing."""
        return self.over or self.old
