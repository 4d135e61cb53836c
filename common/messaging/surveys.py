"""Surveys: how a storage domain and a host look, for the comparison that `livesnap doctor` makes. Pure.

A survey belongs to no job, has no attempt and fences nothing; it reads, and may be repeated or lost. Its answer is a
page: `after` of the next question is `following` of the answer, '' at the end. Nothing in it is trusted to be still so:
what a repair stands on is looked at anew, under locks and fences, by the commands of its job.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from common.ids import (
    DiskId,
    SnapshotId,
    StorageDomainId,
    VmId,
    VolumeId,
    require_relative_path,
    require_uuid,
)
from common.messaging.reports import VmState

ImageFormat = Literal["qcow2", "raw"]

# ---- a storage domain -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file that a machine's chain or the record names, with the format that they give it (P8)."""

    path: str
    format: ImageFormat

    def __post_init__(self) -> None:
        """Refuse a path that could lead out of the storage domain."""
        require_relative_path(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyStorage:
    """Describe what lies below `images/` and in the trash, or, if there are any, the `named` files alone.

    Answered by StorageSurveyed, Failed or Refused.
    """

    op: Literal["spm.survey"] = "spm.survey"
    storage_domain_id: StorageDomainId
    named: tuple[NamedFile, ...] = ()
    after: str = ""

    def __post_init__(self) -> None:
        """Refuse a malformed id."""
        require_uuid(self.storage_domain_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a file lies: relative to the root of a storage domain, or (None) absolute and outside of all."""

    storage_domain_id: StorageDomainId | None
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSeen:
    """One file as our own parser sees it. `problem`: why its header cannot be believed; then only the rest counts.

    `size_bytes` is the virtual size, `is_empty` says that it provably holds no guest data of its own, `is_locked` that
    somebody holds QEMU's image lock on it, as a backing file too.
    """

    path: str
    stored_bytes: int
    modified_at: datetime
    is_locked: bool
    is_empty: bool = False
    size_bytes: int = 0
    backing: Spot | None = None
    backing_format: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataSeen:
    """A volume's own document; `generation` is the highest attempt that has acted on it."""

    volume_id: VolumeId
    disk_id: DiskId
    vm_id: VmId
    path: str
    format: ImageFormat
    parent_id: VolumeId | None
    snapshot_id: SnapshotId | None
    size_bytes: int
    generation: int
    is_deleted: bool = False
    is_illegal: bool = False
    is_created: bool = True
    is_immutable: bool = False

    def __post_init__(self) -> None:
        """Refuse what could lead astray: a repair makes commands of it."""
        require_uuid(self.volume_id, self.disk_id, self.vm_id)
        require_uuid(*(value for value in (self.parent_id, self.snapshot_id) if value is not None))
        require_relative_path(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSeen:
    """A volume by its metadata, and its file wherever it lies; None if there is none."""

    metadata: MetadataSeen
    file: FileSeen | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayFile:
    """A file below `images/` that has no metadata beside it. `is_temporary`: left by a creation, or part of one."""

    file: FileSeen
    is_temporary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenDocument:
    """A `.json` below `images/` that cannot be read as a volume's metadata."""

    path: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashSeen:
    """A deleted volume that can still be had back."""

    volume_id: VolumeId
    path: str
    deleted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSurveyed:
    """One page of a storage domain, in the order of paths. `locking_is_proven`: a free image lock means something."""

    op: Literal["spm.surveyed"] = "spm.surveyed"
    storage_domain_id: StorageDomainId
    locking_is_proven: bool
    volumes: tuple[VolumeSeen, ...] = ()
    strays: tuple[StrayFile, ...] = ()
    broken: tuple[BrokenDocument, ...] = ()
    trash: tuple[TrashSeen, ...] = ()
    named: tuple[FileSeen, ...] = ()
    following: str = ""


# ---- a host -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyHost:
    """Describe every vm of the host, or, if there are any, those of `ask_qemu` alone, with QEMU's own word on them.

    Asking QEMU taints a vm, so it is for those whose definitions do not explain who holds a lock. Answered by
    HostSurveyed, Failed or Refused.
    """

    op: Literal["host.survey"] = "host.survey"
    ask_qemu: tuple[VmId, ...] = ()
    after: str = ""

    def __post_init__(self) -> None:
        """Refuse malformed ids."""
        require_uuid(*self.ask_qemu)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeen:
    """One layer of a chain: its absolute path on that host, its format, and where that is."""

    path: str
    format: str
    spot: Spot


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSeen:
    """One disk's chains, leaf first, as the live and the persistent definition tell them; () where there is none."""

    target: str
    live: tuple[LayerSeen, ...]
    persistent: tuple[LayerSeen, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A block node of QEMU. `device` is the disk's target, '' for one in no device's chain; `depth` 0 is the leaf."""

    node_name: str
    spot: Spot
    device: str
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSeen:
    """One vm on one host.

    `is_busy`: a command of ours is at work on it. `is_marked`: it carries our intent to freeze, live or on the journal.
    `is_frozen` is the guest agent's word, None where it was not asked or did not answer. `attempt` is the highest on
    the journal. `qemu` is None where QEMU was not asked or did not answer.
    """

    vm_id: VmId
    name: str
    state: VmState
    is_active: bool
    disks: tuple[DiskSeen, ...]
    is_busy: bool = False
    is_marked: bool = False
    is_frozen: bool | None = None
    attempt: int = 0
    is_answered: bool = True
    qemu: tuple[NodeSeen, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a malformed id."""
        require_uuid(self.vm_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSurveyed:
    """One page of a host's vms, in the order of their ids."""

    op: Literal["host.surveyed"] = "host.surveyed"
    vms: tuple[VmSeen, ...]
    following: str = ""
