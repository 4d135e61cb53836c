"""What the SPM is told to do, and what it answers. Pure; who may say what when is in `common.messaging.messages`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from common.ids import DiskId, HostId, SnapshotId, StorageDomainId, VmId, VolumeId, require_name, require_uuid
from common.messaging.volumes import DiskSwitch, VolumeAt


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolumes:
    """Make one empty volume above each disk's leaf, or above what it is to be `over`, all or none; safe to repeat.
    Adopts parents it does not know yet.

    Size, cluster size, owner and mode come from the parent's own file. Answered by VolumesCreated, Failed or Refused.
    """

    op: Literal["spm.create"] = "spm.create"
    vm_id: VmId
    snapshot_id: SnapshotId
    disks: tuple[DiskSwitch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A volume in a machine's chain, as its metadata is to be. `snapshot_id` is the snapshot that it ended, if any."""

    volume: VolumeAt
    disk_id: DiskId
    parent: VolumeAt | None
    snapshot_id: SnapshotId | None = None

    def __post_init__(self) -> None:
        """Refuse malformed ids."""
        require_uuid(self.disk_id, *([self.snapshot_id] if self.snapshot_id else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptVolumes:
    """Give volumes that machines use the metadata that they should have: made where there is none, legal where it was
    marked illegal. No file is moved or written to; safe to repeat.

    `volumes` come base first. Each header must name exactly the parent given here. Answered by VolumesInspected, Failed
    or Refused.
    """

    op: Literal["spm.adopt"] = "spm.adopt"
    vm_id: VmId
    volumes: tuple[Adoption, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVolumes:
    """Move the new leaf of each disk to the trash, each only with the proofs of P1; safe to repeat.

    A volume that never existed gets a tombstone, so that a late CreateVolumes cannot make it. `committed` names the
    volumes whose data a host has committed to their parents, `abandoned` those whose data the user gives up: only these
    may hold data and go all the same. Answered by VolumesDeleted, Failed or Refused.
    """

    op: Literal["spm.delete"] = "spm.delete"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]
    committed: tuple[VolumeId, ...] = ()
    abandoned: tuple[VolumeId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectVolumes:
    """Read metadata and header of volumes; changes nothing. Answered by VolumesInspected, Failed or Refused."""

    op: Literal["spm.inspect"] = "spm.inspect"
    volumes: tuple[VolumeAt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectHost:
    """Look whether a host's own lock is held on these storage domains; changes nothing, and belongs to no job.

    Such a lock goes with the last agent process of its host, so one that is held says that the host lives. One that is
    free does not say that it is dead. Answered by HostInspected, Failed or Refused.
    """

    op: Literal["spm.inspect_host"] = "spm.inspect_host"
    host_id: HostId
    storage_domains: tuple[StorageDomainId, ...]

    def __post_init__(self) -> None:
        """Refuse a malformed name: it becomes a file name."""
        require_name(self.host_id)


# ---- answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFound:
    """A volume as it stands on storage. `immutable`: never a merge target (a shared or adopted backing file)."""

    volume: VolumeAt
    disk_id: DiskId
    parent_id: VolumeId | None
    size_bytes: int
    immutable: bool = False
    origin: Literal["created", "adopted"] = "created"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesCreated:
    """Every volume asked for exists, with its metadata; `adopted` are the parents met for the first time."""

    op: Literal["spm.created"] = "spm.created"
    created: tuple[VolumeFound, ...]
    adopted: tuple[VolumeFound, ...] = ()


class Kept(StrEnum):
    """Why the SPM kept a volume that it was told to delete."""

    IN_USE = "in_use"
    """Somebody holds QEMU's image lock on it."""
    NOT_EMPTY = "not_empty"
    """It holds guest data that nobody has committed elsewhere, or given up."""
    LOCKING_UNPROVEN = "locking_unproven"
    """No host's own lock is seen held on this storage domain, so a free image lock proves nothing here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVolume:
    """A volume that was not deleted, and why."""

    volume_id: VolumeId
    why: Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesDeleted:
    """What became of each volume: `gone` is in the trash (or purged, or never was, with a tombstone), `kept` is
    untouched."""

    op: Literal["spm.deleted"] = "spm.deleted"
    gone: tuple[VolumeId, ...]
    kept: tuple[KeptVolume, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesInspected:
    """The volumes that exist, as they stand; a volume that is not listed does not exist (or is deleted)."""

    op: Literal["spm.inspected"] = "spm.inspected"
    found: tuple[VolumeFound, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInspected:
    """On which of the storage domains asked for the host's own lock was seen held, at some moment after the asking."""

    op: Literal["spm.host_inspected"] = "spm.host_inspected"
    held_on: tuple[StorageDomainId, ...]
