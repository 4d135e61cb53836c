"""The states of the snapshot saga: what each waits for and what follows. Pure; `snapshot.py` has the decisions.

`commit_begun`, in every state from Pivoting on: a host has said that it began to commit new volumes into the previous
ones, which may hold newer data since. Once said it stays said: such a job never completes, wherever the vm goes.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from common.ids import HostId, PoolId, SnapshotId, VmId, VolumeId
from common.messaging.messages import DiskSwitch, LeavesObserved
from common.preflight import DEFAULT_LIMITS, Limits
from manager.flows.base import Problem

QuiesceMode = Literal["auto", "require", "best-effort", "never"]

PIVOT_MARGIN = timedelta(seconds=30)
"""Room for the queue and for the preparation before the freeze."""
MAX_TRIES = 8
"""How often one kind of step is tried before an operator is asked (P7)."""
HOLD_TRIES = 60
"""How often a step that could not begin is put off: about ten minutes, the patience of somebody who waits."""
FOLLOW_TRIES = 3
"""How often a vm that is on no host is looked for: a migration's report takes about a second."""
CREATE_LIMIT = timedelta(minutes=10)
"""Creation is cheap and safe to repeat; this bounds how long a snapshot may be late when the SPM is away."""
STANDING = timedelta(days=30)
"""Deadline of commands that are safe whenever they arrive: they observe, or they prove before they act."""
PROBE_PATIENCE_MS = 45_000
"""After this a silent host is shown as such. libvirt lets go of its job lock after 30 s at the latest (measured)."""
ASK_AGAIN = timedelta(seconds=60)
SHORT_PAUSE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for; the same in every state."""

    snapshot: SnapshotId
    vm: VmId
    pool: PoolId
    disks: tuple[DiskSwitch, ...]
    mode: QuiesceMode
    freeze_limit_ms: int
    held_limit_ms: int
    limits: Limits = DEFAULT_LIMITS
    probe_patience_ms: int = PROBE_PATIENCE_MS

    @property
    def new_volumes(self) -> tuple[VolumeId, ...]:
        """Return the ids of the volumes that this snapshot makes."""
        return tuple(disk.new.volume_id for disk in self.disks)

    @property
    def pivot_limit(self) -> timedelta:
        """Return how long after its sending a host may still begin to move the vm."""
        return PIVOT_MARGIN + timedelta(milliseconds=self.freeze_limit_ms + self.held_limit_ms)

    @property
    def probe_patience(self) -> timedelta:
        """Return how long after a probe its host is shown as silent."""
        return timedelta(milliseconds=self.probe_patience_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatingVolumes:
    """Waits for the SPM to make one empty volume per disk. No host knows of them yet. Then Pivoting."""

    label: ClassVar[str] = "creating_volumes"
    kind: Literal["creating_volumes"] = "creating_volumes"
    commit_begun: ClassVar[bool] = False
    plan: Plan
    host: HostId
    tries: int = 0
    why: Problem | None = None
    """Why the SPM could not begin: then nothing is outstanding, and the next timeout asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pivoting:
    """Waits for the host that was told to freeze, pivot and thaw. From here on only a host can say what is true."""

    label: ClassVar[str] = "pivoting"
    kind: Literal["pivoting"] = "pivoting"
    plan: Plan
    host: HostId
    quiesce: bool
    tries: int = 0
    commit_begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The pivot could not begin (libvirt away, vm elsewhere) and nothing was touched. Waits a moment, then Pivoting."""

    label: ClassVar[str] = "pivoting"
    kind: Literal["holding"] = "holding"
    commit_begun: ClassVar[bool] = False
    plan: Plan
    host: HostId
    quiesce: bool
    tries: int
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """The outcome is unknown. Waits for the host to fence older attempts and say where the vm writes."""

    label: ClassVar[str] = "probing"
    kind: Literal["probing"] = "probing"
    plan: Plan
    host: HostId
    why: Problem
    tries: int = 0
    commit_begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingHost:
    """The host is silent, or cannot look. Every volume is kept and the vm stays locked. The probe stays outstanding
    and is repeated, without end: only this host can say what is true."""

    label: ClassVar[str] = "awaiting_host"
    kind: Literal["awaiting_host"] = "awaiting_host"
    plan: Plan
    host: HostId
    why: Problem
    tries: int = 0
    commit_begun: bool = False
    elsewhere: bool = False
    """The host has answered that the vm is not there: the next question follows the inventory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairing:
    """The disks are on mixed volumes. Waits for the host to commit the new ones back. `again`: it has failed once.

    `undo`: all disks are well on their new volumes, and come back because the snapshot is not what was required.
    """

    label: ClassVar[str] = "repairing"
    kind: Literal["repairing"] = "repairing"
    plan: Plan
    host: HostId
    why: Problem
    tries: int = 0
    commit_begun: bool = False
    again: bool = False
    undo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletingVolumes:
    """The new volumes are proven to be nowhere. Waits for the SPM to move them to the trash. Then RolledBack."""

    label: ClassVar[str] = "deleting_volumes"
    kind: Literal["deleting_volumes"] = "deleting_volumes"
    plan: Plan
    host: HostId
    why: Problem
    committed: bool = False
    """A host has committed the new volumes' data to their parents: they may go although they hold data."""
    commit_begun: bool = False
    tries: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The vm writes to its new leaves; the snapshot exists."""

    label: ClassVar[str] = "completed"
    kind: Literal["completed"] = "completed"
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The vm writes to its previous leaves; the new volumes are gone. `why` is the job's error."""

    label: ClassVar[str] = "rolled_back"
    kind: Literal["rolled_back"] = "rolled_back"
    plan: Plan
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsOperator:
    """No step of ours is safe. Every volume is kept and the vm stays locked until somebody says `job resolve`."""

    label: ClassVar[str] = "needs_operator"
    kind: Literal["needs_operator"] = "needs_operator"
    plan: Plan
    host: HostId
    why: Problem
    commit_begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGone:
    """The host that alone could say where the vm wrote was removed as lost. Every volume is kept, and the new ones are
    the leaves on record: an empty one equals its base, and one that holds data holds what the vm wrote last."""

    label: ClassVar[str] = "host_lost"
    kind: Literal["host_lost"] = "host_lost"
    plan: Plan
    why: Problem


Live = CreatingVolumes | Pivoting | Holding | Probing | AwaitingHost | Repairing | DeletingVolumes
State = Live | Completed | RolledBack | NeedsOperator | HostGone


def is_over(state: State) -> bool:
    """Tell whether the job has ended: nothing is outstanding and the vm is free."""
    return isinstance(state, Completed | RolledBack | HostGone)


def problem_of(state: State) -> Problem | None:
    """Return what the user must know of a state that is not simply going well."""
    return None if isinstance(state, Pivoting | Completed) else state.why


def problem_in(seen: LeavesObserved) -> Problem:
    """Return why an observation is not simply "all on new leaves"."""
    message = seen.message or f"the host saw {seen.outcome}"
    return Problem(code=seen.code or "pivot_unknown", message=message, hint=seen.hint)


def cancelled() -> Problem:
    """Return the reason of a job that somebody cancelled."""
    return Problem(code="job_cancelled", message="the job was cancelled")


def silent(host: HostId, what: str) -> Problem:
    """Return the reason of a job whose host did not answer."""
    return Problem(code="host_unreachable", message=f"host {host} did not answer {what} in time")
