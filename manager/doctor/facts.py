"""What doctor compares: the record, and what hosts and SPMs have seen. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from common.ids import DiskId, HostId, PoolId, SnapshotId, StorageDomainId, VmId, VolumeId, new_id
from common.messaging.messages import VolumeAt
from common.messaging.surveys import BrokenDocument, FileSeen, StrayFile, TrashSeen, VmSeen, VolumeSeen

Key = tuple[StorageDomainId, str]
"""Where a file lies: storage domain and relative path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """A machine on record. `busy_with` is the unfinished job or the lock that holds it, ''; `attempt` its counter of
    commands."""

    name: str
    busy_with: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """A disk on record, and its leaf."""

    vm: VmId
    target: str
    leaf: VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A volume on record that exists. `is_created`: livesnap made it."""

    volume: VolumeAt
    disk: DiskId
    parent: VolumeId | None
    is_created: bool
    is_immutable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """A snapshot that is not dropped: per disk the volume that holds its content, and the leaf that was made."""

    vm: VmId
    name: str
    disks: tuple[tuple[DiskId, VolumeId, VolumeId], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """An unfinished job that waits for something."""

    id: str
    vm_name: str
    waiting_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRecord:
    """A storage domain on record. `problem`: why its SPM cannot use it."""

    name: str
    pool: PoolId
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The database, all of one moment. `dropped` are snapshots that never came to be, `kept` the leaves to which
    machines that show a snapshot come back."""

    vms: Mapping[VmId, VmRecord]
    disks: Mapping[DiskId, DiskRecord]
    volumes: Mapping[VolumeId, VolumeRecord]
    snapshots: Mapping[SnapshotId, SnapshotRecord]
    dropped: frozenset[SnapshotId]
    jobs: tuple[JobRecord, ...]
    storage: Mapping[StorageDomainId, StorageRecord]
    hosts: tuple[HostId, ...]
    kept: frozenset[VolumeId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSeen:
    """One storage domain as its SPM has described it, all pages together."""

    locking_is_proven: bool = False
    volumes: tuple[VolumeSeen, ...] = ()
    strays: tuple[StrayFile, ...] = ()
    broken: tuple[BrokenDocument, ...] = ()
    trash: tuple[TrashSeen, ...] = ()
    named: tuple[FileSeen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was seen, and who (a host's name, a storage domain's) could not be asked, with the reason."""

    hosts: Mapping[HostId, tuple[VmSeen, ...]]
    storage: Mapping[StorageDomainId, StorageSeen]
    silent: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything. `unsettled` are the machines that were held or moved while they were looked at."""

    record: Record
    survey: Survey
    unsettled: frozenset[VmId]
    now: datetime
    make_id: Callable[[], str] = new_id
