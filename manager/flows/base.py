"""What every flow is made of: events in, a next state with its commands and records out. Pure.

A flow is a function `advance(state, event) -> Next`. It does no I/O and knows no clock; the engine
(manager/conductor.py) loads the state, calls it, and stores everything that it returns in one transaction. A state in
which an event changes nothing returns `Next(state)` (a late or repeated message is ignored by name, not by accident).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Literal, TypeVar

from common.ids import DiskId, HostId, PoolId, SnapshotId, VmId, VolumeId
from common.messaging.merging import DiskMerge
from common.messaging.messages import Answer, Command, DiskSwitch, LeavesObserved, VolumeFound
from common.receipt import Consistency

S = TypeVar("S")

# ---- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The job has been accepted. Always the first event, and the only one of the initial state. `warnings` is what its
    check warned of, for the timeline."""

    warnings: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer to the job's outstanding command. `vm_host` is where the inventory has the vm now, None: nowhere."""

    answer: Answer
    vm_host: HostId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """The time that the state asked for (`wake_after`) has passed. It says nothing about what happened.

    `early`: it has not, but what the state looks at now and then may be over (`Flow.may_look_early`)."""

    early: bool = False
    vm_host: HostId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """Somebody wants the job to end without its effect, if that is still possible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveRequested:
    """An operator asks to go on, and perhaps says that the host was rebooted, whose lock on the storage was then seen
    free. Either permits to ask that host again; neither proves anything or stands for its answer (protocol.md, A9)."""

    vm_host: HostId | None = None
    host_was_rebooted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLost:
    """A host was removed: it will never answer, and what it says is refused. `standing` are those of the job's new
    volumes that exist."""

    host: HostId
    standing: tuple[VolumeId, ...] = ()


JobEvent = Started | Answered | TimedOut | CancelRequested | ResolveRequested
Event = JobEvent | HostLost

# ---- what a step causes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ToSpm:
    """A command for the SPM of a pool, which may begin it within `deadline_after`."""

    pool: PoolId
    command: Command
    deadline_after: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ToHost:
    """A command for a host, which may begin it within `deadline_after`."""

    host: HostId
    command: Command
    deadline_after: timedelta


Send = ToSpm | ToHost


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesMade:
    """Record in the inventory: these volumes exist on storage."""

    volumes: tuple[VolumeFound, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesGone:
    """Record in the inventory: these volumes are deleted."""

    volumes: tuple[VolumeId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTaken:
    """Record in the inventory: the snapshot is complete, and each disk's leaf on record is the new volume.

    `mode` is the quiesce mode that was asked for, `host` the one whose observation this is.
    """

    snapshot: SnapshotId
    vm: VmId
    disks: tuple[DiskSwitch, ...]
    mode: str
    host: HostId
    consistency: Consistency
    reason: str
    observed: LeavesObserved


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDropped:
    """Record in the inventory: there is no such snapshot."""

    snapshot: SnapshotId


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFound:
    """Record in the inventory: a snapshot exists that livesnap has not taken, or that its record had lost.

    It is crash-consistent, for the stated reason; when it was taken is not known.
    """

    snapshot: SnapshotId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettled:
    """Record in the inventory: the vm is where it should be, with these leaves; the next report may say otherwise."""

    vm: VmId
    leaves: tuple[tuple[DiskId, VolumeId], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewBegun:
    """Record in the inventory: the vm shows a snapshot. Each disk's leaf on record is the new volume, `old` the way
    back."""

    vm: VmId
    snapshot: SnapshotId
    disks: tuple[DiskSwitch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSettled:
    """Record in the inventory: the vm shows no snapshot (any more), and these are its disks' leaves."""

    vm: VmId
    leaves: tuple[tuple[DiskId, VolumeId], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMerged:
    """Record in the inventory: there is no such snapshot any more, and each of these merges is done: what stood on
    `top`, or had it as its content or leaf, has `base` instead. Safe to repeat."""

    snapshot: SnapshotId
    merges: tuple[DiskMerge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotsMarked:
    """Record in the inventory: these snapshots, as far as they exist, are in that state."""

    snapshots: tuple[SnapshotId, ...]
    state: Literal["ok", "half_merged"]


Record = (
    VolumesMade
    | VolumesGone
    | SnapshotTaken
    | SnapshotDropped
    | SnapshotFound
    | ChainSettled
    | PreviewBegun
    | BranchSettled
    | SnapshotMerged
    | SnapshotsMarked
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a job did not do what was asked: the code, sentence and hint that the user will see."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Next(Generic[S]):
    """The state after an event and what it causes. `detail` is the timeline's line; '' adds none.

    `send` supersedes every command of this job that is still unanswered: a job has at most one outstanding. A Next that
    changes nothing (same state, nothing sent, no wake) leaves timer and outstanding command alone.
    """

    state: S
    send: Send | None = None
    records: tuple[Record, ...] = ()
    wake_after: timedelta | None = None
    detail: str = ""

    def wake_at(self, now: datetime) -> datetime | None:
        """Return when the timer that it asks for runs out; None if it asks for none."""
        return None if self.wake_after is None else now + self.wake_after
