"""What hosts and SPMs tell the Manager unasked: inventory at start, on libvirt events and periodically. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from common.ids import HostId, PoolId, StorageDomainId, VmId, require_name, require_uuid


class VmState(StrEnum):
    """A vm's state in our words; libvirt's virDomainState, with the reasons that change what is allowed."""

    RUNNING = "running"
    PAUSED = "paused"
    PAUSED_IO_ERROR = "paused_io_error"
    PAUSED_MIGRATION = "paused_migration"
    PMSUSPENDED = "pmsuspended"
    SAVING = "saving"
    DUMPING = "dumping"
    STARTING = "starting"
    STOPPING = "stopping"
    OFF = "off"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


class AgentState(StrEnum):
    """The guest agent's channel, as libvirt sees it."""

    NO_CHANNEL = "no_channel"
    DISCONNECTED = "disconnected"
    CONNECTED = "connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReport:
    """One disk of a vm as its definitions show it. Paths are absolute on that host; '' where there is none.

    `storage_domain_id` and `path` are set when the live (or, if stopped, persistent) source lies below a storage
    domain that the host has mounted and checked.
    """

    target: str
    device: str
    """libvirt's device attribute: disk, lun, cdrom, floppy."""
    source_type: str
    """libvirt's type attribute: file, block, network, volume, ..."""
    bus: str
    format: str
    source: str
    persistent_source: str
    storage_domain_id: StorageDomainId | None = None
    path: str = ""
    shareable: bool = False
    readonly: bool = False
    transient: bool = False
    encrypted: bool = False
    """By the definition, or by its image's own header."""
    sliced: bool = False
    """It is a part of its file."""
    error_policy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmReport:
    """One vm on one host. `in_flight`: a command of ours is being carried out, so its sources may be changing.

    `attempt` is the highest on the host's journal, read before the definitions were: a report older than the
    Manager's record says nothing about leaves.
    """

    vm_id: VmId
    name: str
    state: VmState
    persistent: bool
    agent: AgentState
    disks: tuple[DiskReport, ...]
    attempt: int = 0
    in_flight: bool = False
    runtime_id: str = ""
    migrating: bool = False
    managed_save: bool = False
    libvirt_snapshots: int = 0

    def __post_init__(self) -> None:
        """Refuse a malformed id."""
        require_uuid(self.vm_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountReport:
    """A storage domain as a host or an SPM has it mounted."""

    storage_domain_id: StorageDomainId | None
    """None when the mount is missing or wrong; `problem` then says so."""
    name: str
    root: str
    free_bytes: int = 0
    total_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """What a host's agent sees. `full`: vms that are not listed are not on this host.

    `incarnation` changes with every start of an agent process: the Manager then re-sends at once what is unanswered.
    `sequence` grows within one incarnation, so that reports which overtook each other can be told. `merges` are the vms
    of which a block job has ended, or is ready to, since the last report: whoever waits for a merge there can look.
    """

    op: Literal["host.report"] = "host.report"
    host_id: HostId
    boot_id: str
    incarnation: str
    sequence: int
    observed_at: datetime
    libvirt_up: bool
    full: bool
    vms: tuple[VmReport, ...] = ()
    gone: tuple[VmId, ...] = ()
    storage_domains: tuple[MountReport, ...] = ()
    frozen: tuple[VmId, ...] = ()
    merges: tuple[VmId, ...] = ()
    problem: str = ""

    def __post_init__(self) -> None:
        """Refuse a malformed host name."""
        require_name(self.host_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpmReport:
    """What the active SPM of a pool sees; sent when it has taken the lease and periodically. Below `min_free_bytes` of
    room it makes no volume on a storage domain. `merges` are the vms of which a commit has ended since the last one."""

    op: Literal["spm.report"] = "spm.report"
    pool_id: PoolId
    incarnation: str
    sequence: int
    epoch: int
    observed_at: datetime
    storage_domains: tuple[MountReport, ...] = ()
    min_free_bytes: int = 0
    merges: tuple[VmId, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a malformed pool name."""
        require_name(self.pool_id)


Report = HostReport | SpmReport
