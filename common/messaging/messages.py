"""Every command and observation that crosses a queue. Pure: what may be said, and what saying it claims.

Commands go out (`spm.*` to the SPM, `host.*` to a host's agents); answers and reports come back to the Manager.
Answers are observations, never "ok": an error is not an outcome (DESIGN, P3).

    Command = CreateVolumes | AdoptVolumes | DeleteVolumes | InspectVolumes | SurveyStorage
            | SurveyHost | Check | Pivot | Probe | Repair
    Answer  = VolumesCreated | VolumesDeleted | VolumesInspected | StorageSurveyed
            | HostSurveyed | Checked | LeavesObserved | Failed | Refused
    Report  = HostReport | SpmReport          (common.messaging.reports; surveys are in common.messaging.surveys)

Which job, step and attempt a message belongs to, its deadline and its signature are the envelope's matter
(`common.messaging.wire`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from common.ids import (
    DiskId,
    SnapshotId,
    StorageDomainId,
    VmId,
    VolumeId,
    require_relative_path,
    require_target,
    require_uuid,
)
from common.messaging.surveys import HostSurveyed, StorageSurveyed, SurveyHost, SurveyStorage
from common.preflight import DEFAULT_LIMITS, Limits, PreflightLine
from common.receipt import Receipt


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
    """One disk of a pivot: from the leaf on record to the new, empty leaf above it."""

    target: str
    disk_id: DiskId
    old: VolumeAt
    new: VolumeAt

    def __post_init__(self) -> None:
        """Refuse a malformed target or disk id."""
        require_target(self.target)
        require_uuid(self.disk_id)


# ---- to the SPM -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolumes:
    """Make one empty volume above each disk's leaf, all or none; safe to repeat. Adopts parents it does not know yet.

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
    volumes whose data a host has committed to their parents: only these may hold data and go all the same. Answered
    by VolumesDeleted, Failed or Refused.
    """

    op: Literal["spm.delete"] = "spm.delete"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]
    committed: tuple[VolumeId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectVolumes:
    """Read metadata and header of volumes; changes nothing. Answered by VolumesInspected, Failed or Refused."""

    op: Literal["spm.inspect"] = "spm.inspect"
    volumes: tuple[VolumeAt, ...]


# ---- to a host --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Say what a Pivot of these disks would be refused with, or warn of, as things are now; change nothing.

    The new volumes need not exist. It belongs to no job and has no attempt: it fences nothing, and may be repeated or
    lost. Answered by Checked, Failed or Refused.
    """

    op: Literal["host.check"] = "host.check"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]
    quiesce: bool
    require_quiesce: bool
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Pivot:
    """Freeze (if `quiesce` and running), put every disk on its new leaf in one call, observe, thaw.

    A stopped vm is redefined, a paused one pivoted without a freeze (`require_quiesce` refuses both of these before
    anything is touched). `freeze_limit_ms` bounds the freeze call, `held_limit_ms` the time the guest stays frozen
    after it. Answered by LeavesObserved, Failed or Refused.
    """

    op: Literal["host.pivot"] = "host.pivot"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]
    quiesce: bool
    require_quiesce: bool
    freeze_limit_ms: int
    held_limit_ms: int
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Fence every lower attempt durably, then observe where the vm writes. Answered by LeavesObserved or Refused.

    Without disks it only fences, and thaws what a dead attempt left frozen.
    """

    op: Literal["host.probe"] = "host.probe"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Bring every disk back to its old leaf by active commit and detach leaked nodes, then observe.

    Nothing is lost by it: a commit carries the new leaf's data down. Where all disks are well on their new leaves
    nothing is done, unless `undo` says that they shall come back all the same. Answered by LeavesObserved or Refused.
    """

    op: Literal["host.repair"] = "host.repair"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]
    undo: bool = False


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
    """It holds guest data that nobody has committed elsewhere."""
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
class Checked:
    """What a host found. A line's subject is the vm's id, a disk's target, or a storage domain's id."""

    op: Literal["host.checked"] = "host.checked"
    lines: tuple[PreflightLine, ...]


class Outcome(StrEnum):
    """Where a vm writes. Each value is a claim with its conditions (`protocol.md`, part A, section 5)."""

    ALL_NEW = "all_new"
    """QEMU, live and persistent definition are all on the new leaves, above the expected parents; not paused by an
    I/O error."""
    NONE = "none"
    """The new leaves are nowhere: no chain, no loose block node, no definition, no call in flight; lower attempts are
    fenced for ever."""
    NONE_NO_AGENT = "none_no_agent"
    """As NONE, given before anything was touched: the guest has no compatible agent."""
    NONE_ROLLED_BACK = "none_rolled_back"
    """As NONE, after an active commit: what was on the new leaves is on the old ones."""
    BAD = "bad"
    """Anything else that was observed: mixed, sources that disagree, a leaked node, paused on a new leaf."""
    NOT_HERE = "not_here"
    """The vm is not active here, no call is in flight, and no definition here names a new leaf."""
    UNKNOWN = "unknown"
    """A call may be in flight, or QEMU does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskObserved:
    """One disk as each source of truth shows it: absolute paths on that host, '' where a source has no answer."""

    target: str
    live: str = ""
    live_chain: tuple[str, ...] = ()
    persistent: str = ""
    qemu: str = ""
    """Asked of QEMU itself only where the others disagree (a monitor query taints the vm)."""
    new_is_locked: bool = False
    first_write_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavesObserved:
    """What a host saw. `code`, `message`, `hint` say why an outcome is not ALL_NEW; empty otherwise."""

    op: Literal["host.observed"] = "host.observed"
    outcome: Outcome
    boot_id: str
    runtime_id: str
    """Identifies this run of the vm (QEMU process and start); '' when it is not active."""
    disks: tuple[DiskObserved, ...] = ()
    receipt: Receipt | None = None
    code: str = ""
    message: str = ""
    hint: str = ""
    live_xml: str = ""
    persistent_xml: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The command could not be carried out; `code` is a stable word of the error tree. It claims nothing about what
    exists: a CreateVolumes that failed may have made some volumes."""

    op: Literal["failed"] = "failed"
    code: str
    message: str
    hint: str = ""


class Refusal(StrEnum):
    """Why a consumer did not even start."""

    STALE = "stale"
    """A higher attempt of this vm is on its record."""
    EXPIRED = "expired"
    """The deadline has passed."""
    BUSY = "busy"
    """The same vm is being worked on by another handler; the answer to that will come."""
    NOT_READY = "not_ready"
    """What it needs is not there now (libvirt, a mounted storage domain). Nothing was touched."""
    VERSION = "version"
    """The message's schema version is newer than this process."""
    MALFORMED = "malformed"
    """The signature is good but the content cannot be understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Not started, and nothing touched. `highest` is the highest attempt on the consumer's record (0: none).

    `code` is the error tree's word for what is missing (`storage_unavailable`, `libvirt_unavailable`, …), '' for none.
    """

    op: Literal["refused"] = "refused"
    why: Refusal
    message: str
    code: str = ""
    highest: int = 0


Command = (
    CreateVolumes
    | AdoptVolumes
    | DeleteVolumes
    | InspectVolumes
    | SurveyStorage
    | SurveyHost
    | Check
    | Pivot
    | Probe
    | Repair
)
Answer = (
    VolumesCreated
    | VolumesDeleted
    | VolumesInspected
    | StorageSurveyed
    | HostSurveyed
    | Checked
    | LeavesObserved
    | Failed
    | Refused
)
