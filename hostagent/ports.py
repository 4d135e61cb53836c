"""What the operations need of the outside world, as protocols: the real ones and the tests' fakes pass the same
contract tests. Pure.

The real ones: `Guest` is hostagent/guest.py, `Guard` hostagent/guard_client.py, `Journal` hostagent/journal.py,
`Storage` hostagent/storage.py.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from common.ids import DiskId, JobId, StepId, StorageDomainId, VmId
from common.images.chain import ChainFile
from common.messaging.messages import LeavesObserved, VolumeAt
from common.messaging.reports import VmState


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a disk's live chain, top first. `allocation_bytes` is the highest written offset of that node."""

    path: str
    allocation_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A volume that QEMU's user may open. `how` says how that was found out; `by_mode`: owner and mode say so too, so
    that it holds for a new file of the same owner and mode."""

    how: str
    by_mode: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNode:
    """A block node that QEMU has open. `device` is '' for a node in no device's chain (leaked by a killed libvirtd)."""

    node_name: str
    path: str
    device: str
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuUser:
    """The user that QEMU runs as. `is_given_files`: libvirt makes it the owner of a volume before QEMU opens that."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    is_given_files: bool = False

    def __str__(self) -> str:
        """Return how sentences name it."""
        return f"user {self.uid}, group {self.gid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmListed:
    """One vm as libvirt lists it; `live_xml` is empty when it is not active, `persistent_xml` when it is transient."""

    vm_id: VmId
    name: str
    state: VmState
    managed_save: bool
    snapshots: int
    live_xml: str
    persistent_xml: str


class Guest(Protocol):
    """One vm on this host. Every method raises NotReady when libvirt is not connected, OutcomeUnknown when a call was
    sent and its result is not known, HypervisorError otherwise. Nothing here retries."""

    @property
    def vm_id(self) -> VmId:
        """Return the libvirt UUID."""
        ...

    def exists(self) -> bool:
        """Tell whether libvirt here knows the vm (active or defined)."""
        ...

    def state(self) -> VmState:
        """Return the state; OFF when defined only."""
        ...

    def runtime_id(self) -> str:
        """Identify this run of QEMU (pid and start time); '' when not active. Unchanged by a restart of libvirtd."""
        ...

    def is_still(self, runtime_id: str) -> bool:
        """Tell whether that run goes on ('': the vm is still not active). Cheap: the guest may be frozen."""
        ...

    def has_managed_save(self) -> bool:
        """Tell whether a managed save image would be used at the next start."""
        ...

    def libvirt_snapshot_count(self) -> int:
        """Return the number of snapshots that libvirt itself manages."""
        ...

    def checkpoint_count(self) -> int:
        """Return the number of libvirt's checkpoints, by which a backup tool takes incremental backups."""
        ...

    def job_running(self) -> str:
        """Return '' or the kind of libvirt job that runs ('migration', 'save', 'dump', ...; 'call': some call holds the
        vm), block jobs excluded. Waits for no job: the guest may be frozen."""
        ...

    def has_moved_away(self) -> bool:
        """Tell whether the vm is off here because it was migrated; False where that is not known any more."""
        ...

    def block_job_targets(self) -> tuple[str, ...]:
        """Return the disk targets with a running block job."""
        ...

    def live_xml(self) -> str:
        """Return the live definition (migratable secrets excluded)."""
        ...

    def persistent_xml(self) -> str:
        """Return the persistent definition."""
        ...

    def define(self, xml: str) -> None:
        """Replace the persistent definition."""
        ...

    def require_agent(self, limit_ms: int) -> None:
        """Raise GuestAgentMissing unless an agent is configured, connected, answers a ping and offers freezing; raise
        HypervisorError(guest_frozen_by_others) when it answers that it is frozen. Touches nothing."""
        ...

    def limit_agent(self, limit_ms: int) -> None:
        """Set the agent's response timeout for this object's next `freeze` or `thaw` with the same limit, which then
        need not do it while the guest waits. Raises HypervisorError; they set it themselves then."""
        ...

    def freeze(self, limit_ms: int) -> int:
        """Set the agent's response timeout, freeze every file system, return how many. After OutcomeUnknown the freeze
        may still complete later: thaw."""
        ...

    def thaw(self, limit_ms: int) -> int:
        """Thaw, return how many file systems were thawed by this call (0: none was frozen)."""
        ...

    def mark_frozen(self, token: str) -> None:
        """Put our intent to freeze into the live libvirt metadata, so that it travels with a migration. While one runs:
        HypervisorError(vm_migrating)."""
        ...

    def clear_frozen_mark(self) -> None:
        """Remove that intent. While a migration runs: HypervisorError(vm_migrating); the mark travels with it."""
        ...

    def frozen_mark(self) -> str:
        """Return the token of an intent of ours in the live metadata, '' if there is none."""
        ...

    def touch_modify_job(self) -> None:
        """Make a harmless call that needs libvirt's job lock (setMetadata): it fails with OutcomeUnknown while an
        earlier call is still in flight (measured: after exactly 30.0 s), at once with HypervisorError(vm_migrating)
        while a migration runs. The barrier of protocol.md."""
        ...

    def switch_leaves(self, snapshot_xml: str) -> None:
        """One snapshotCreateXML (disk-only, reuse-external, no-metadata, atomic) for all disks."""
        ...

    def io_errors(self) -> tuple[str, ...]:
        """Return the targets, each once, of the disks whose I/O errors QEMU told of since `switch_leaves`, whatever
        their error policy made of them. None proves nothing: what is told while libvirt is away is lost."""
        ...

    def layers(self) -> dict[str, tuple[Layer, ...]]:
        """Return per target the live chain with allocations, from libvirt's block statistics (taints nothing)."""
        ...

    def qemu_nodes(self) -> tuple[BlockNode, ...]:
        """Ask QEMU itself for its block nodes. Taints the vm: only where other evidence disagrees."""
        ...

    def drop_node(self, node_name: str) -> None:
        """Detach a leaked block node (QMP blockdev-del)."""
        ...

    def commit_active(self, target: str, base_path: str, limit_ms: int) -> None:
        """Active commit of everything above `base_path` into it and pivot back, by libvirt's block job; returns when
        the live definition names `base_path`."""
        ...

    def commit_by_qemu(self, top_node: str, limit_ms: int) -> None:
        """The same by QMP where libvirt does not know the layer (hypervisor.md H1): block-commit, job-complete,
        blockdev-del."""
        ...

    def resume(self) -> None:
        """Resume a paused vm."""
        ...


class Storage(Protocol):
    """The storage domains as this host has them mounted."""

    def path_of(self, volume: VolumeAt) -> str:
        """Return the absolute path; raises NotReady(storage_unavailable) on a missing or wrong mount,
        StorageError(storage_domain_unknown) when the settings have no such storage domain."""
        ...

    def locate(self, path: str) -> tuple[StorageDomainId, str] | None:
        """Return storage domain and relative path of an absolute path, None when it lies below none. A name with `..`
        in it is taken for the plain one, if both are of one file."""
        ...

    def is_encrypted(self, path: str) -> bool:
        """Tell whether the header of the qcow2 image at that absolute path names a crypt method; False where it cannot
        be read."""
        ...

    def check_new_volume(self, new: VolumeAt, old: VolumeAt) -> int:
        """Return the offset in the file behind which the data of `new` will be written: its tables come first.

        Raise unless it is a fresh, empty qcow2 above exactly `old`, of the same virtual size, with metadata that says
        legal."""
        ...

    def exists(self, volume: VolumeAt) -> bool:
        """Tell whether a file is there, whatever the metadata says, or if there is none."""
        ...

    def check_kept_volume(self, kept: VolumeAt, disk: DiskId) -> None:
        """Raise unless a volume that holds a machine's data may become its leaf again: there, with metadata that says
        legal, its whole chain as every tool may open it."""
        ...

    def require_access(self, volume: VolumeAt, user: QemuUser) -> Access:
        """Return how it was found out that QEMU's user may open the file read-write; raise
        StorageError(volume_permission) if it may not."""
        ...

    def require_way(self, volume: VolumeAt, user: QemuUser) -> None:
        """Raise StorageError(volume_permission) unless QEMU's user may enter the folder of a volume that need not
        exist yet; a folder that is missing will be as the one above it is."""
        ...

    def chain(self, leaf: VolumeAt) -> tuple[ChainFile, ...]:
        """Return every file of the leaf's chain, top first, as the headers name them, read by our own parser; raise
        HeaderRefused for one that no tool may open, StorageError for one that is missing."""
        ...

    def free_bytes(self, storage_domain_id: StorageDomainId) -> int:
        """Return the room that is left for an unprivileged process."""
        ...

    def is_locked(self, volume: VolumeAt) -> bool:
        """Tell whether anybody holds QEMU's image lock on the file, by F_OFD_GETLK, without taking it."""
        ...

    def is_written(self, volume: VolumeAt) -> bool:
        """Tell whether somebody has the file open for writing, as a machine has its leaf. A backing file in use is not,
        nor is the leaf of a machine that was paused when it migrated and has not run since."""
        ...

    def internal_snapshots(self, volume: VolumeAt) -> int:
        """Return how many snapshots the image itself holds, as its header says."""
        ...


class Shutdowns(Protocol):
    """Which stopped vms were left by a clean shutdown that was seen (hostagent/shutdowns.py)."""

    def left_clean(self, vm: VmId, paths: Iterable[str]) -> bool:
        """Tell whether these leaves of a stopped vm are as its clean shutdown left them. Never raises LivesnapError."""
        ...

    def states(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the present state of images by path: a word that changes with every write, '' for one in use."""
        ...

    def moved(self, vm: VmId, empty: Mapping[str, str]) -> None:
        """Let new, empty leaves, given with their states before any definition named them, count as left clean too:
        they show what is below them. Never raises LivesnapError."""
        ...


class Guard(Protocol):
    """The freeze guard: a process of its own that thaws when this one dies, stalls or takes too long."""

    def arm(self, vm: VmId, token: str, limit_ms: int) -> None:
        """Make the guard responsible from now on; raises NotReady(guard_unavailable): then do not freeze."""
        ...

    def disarm(self, vm: VmId, token: str) -> bool:
        """End that, atomically; return True if the guard has fired (thawed) in the meantime, or cannot say."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The journal's row of one vm: the highest attempt ever begun here."""

    vm_id: VmId
    attempt: int
    job_id: JobId
    step_id: StepId
    started_at: datetime
    call_issued_boot_ms: int | None
    """When a libvirt call that can move leaves was issued, in ms of CLOCK_BOOTTIME; None if none was."""
    libvirtd_instance: str
    """libvirtd's pid and start time at that moment: a call does not survive its daemon."""
    boot_id: str
    answer: LeavesObserved | None
    """The answer once it is durable; replayed to a repeated command."""


class Journal(Protocol):
    """The host's durable record, shared by all its agent processes (SQLite, synchronous FULL)."""

    def begin(self, vm: VmId, attempt: int, job: JobId, step: StepId) -> Attempt | None:
        """Record that `attempt` begins and return None; return the row if this very attempt has begun before; raise
        StaleAttempt if a higher one has. The record survives every crash from here on."""
        ...

    def current(self, vm: VmId) -> Attempt | None:
        """Return the vm's row, None if it has none."""
        ...

    def previous_answer(self, vm: VmId, job: JobId) -> LeavesObserved | None:
        """Return the newest durable answer to a Pivot of that job (its receipt outlives a lost message)."""
        ...

    def call_issued(self, vm: VmId, attempt: int, boot_ms: int, libvirtd_instance: str) -> None:
        """Record, before the call, that a libvirt call which can move leaves goes out now."""
        ...

    def maybe_frozen(self, vm: VmId, token: str, runtime_id: str) -> None:
        """Record, before the freeze, that the guest may be frozen by us."""
        ...

    def thawed(self, vm: VmId, token: str) -> None:
        """Clear that record; only after a confirmed thaw."""
        ...

    def frozen_records(self) -> tuple[tuple[VmId, str, str], ...]:
        """Return every (vm, token, runtime id) that may be frozen by us."""
        ...

    def commit_begun(self, vm: VmId, job: JobId) -> None:
        """Record, before an active commit of that job, that the old leaves may hold newer data from now on: the job can
        then never end as ALL_NEW. Repeating it is harmless."""
        ...

    def commit_was_begun(self, vm: VmId, job: JobId) -> bool:
        """Tell whether `commit_begun` was ever called for that vm and job."""
        ...

    def pivot_begun(self, vm: VmId, job: JobId, target: str) -> None:
        """Record, before a merge's pivot, that from now on the upper volume may be the older one. Safe to repeat."""
        ...

    def pivot_was_begun(self, vm: VmId, job: JobId, target: str) -> bool:
        """Tell whether that is on record for that job's disk."""
        ...

    def pivot_settled(self, vm: VmId, target: str) -> None:
        """Clear that record: it was seen which volume the vm writes to."""
        ...

    def done(self, vm: VmId, attempt: int, answer: LeavesObserved) -> None:
        """Store the answer durably, before it is published."""
        ...


VmLocks = Callable[[VmId], AbstractContextManager[bool]]
"""A lock per vm that all agent processes of the host share (a locked file): yields False when another holds it."""
