"""The states of a deletion: what each waits for. Pure; `delete.py` has the decisions and the map."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from common.ids import HostId, PoolId, SnapshotId, VmId, VolumeId
from common.messaging.merging import DiskMerge
from manager.flows.base import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One snapshot, and what its deletion does on each disk; no disk: only its record goes."""

    snapshot: SnapshotId
    name: str
    disks: tuple[DiskMerge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for; the same in every state. `bytes_per_s` 0: as fast as it goes."""

    vm: VmId
    pool: PoolId
    rounds: tuple[Round, ...]
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """How far the plan has come.

    `begun`: a volume of this round's snapshot may hold newer data than the snapshot had. `committed` are the volumes
    whose data QEMU was seen to have committed in this round. `host` is where the machine was last.

    `unheard` are the hosts that were asked in this round and have not answered since, `begun_by_host`: one has said
    that it began. The machine may have left such a host with its commit done; the next one cannot know that by itself,
    so the former is `consulted`: what is asked now, it is asked, for that alone.
    """

    plan: Plan
    host: HostId
    number: int = 0
    begun: bool = False
    committed: tuple[VolumeId, ...] = ()
    unheard: tuple[HostId, ...] = ()
    begun_by_host: bool = False
    consulted: HostId | None = None

    @property
    def round(self) -> Round:
        """Return the snapshot that is being deleted now."""
        return self.plan.rounds[self.number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much of the disks' merges is done, by the jobs' own numbers, which say nothing of the end."""

    done_bytes: int = 0
    total_bytes: int = 0


# ---- states -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """Waits for the SPM to check storage and to mark the volumes that vanish illegal. Nothing else is touched yet."""

    label: ClassVar[str] = "marking_volumes"
    kind: Literal["marking"] = "marking"
    at: At
    tries: int = 0
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """The machine's host merges, as far as the machine runs, and says how far it is. `order`: what it is told next.

    `looks` counts the answers that found it at work, `tries` what did not go; `pausing`: nothing is outstanding.
    """

    label: ClassVar[str] = "merging"
    kind: Literal["merging"] = "merging"
    at: At
    order: Literal["merge", "check"] = "merge"
    progress: Progress = field(default_factory=Progress)
    looks: int = 0
    tries: int = 0
    pausing: bool = False
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingHost:
    """The host is silent, or cannot look. Every volume is kept; it is asked without end: only it can say what is so."""

    label: ClassVar[str] = "awaiting_host"
    kind: Literal["awaiting_host"] = "awaiting_host"
    at: At
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdMerging:
    """No machine has these disks' volumes open: the SPM merges, and says how far it is."""

    label: ClassVar[str] = "merging"
    kind: Literal["cold_merging"] = "cold_merging"
    at: At
    disks: tuple[DiskMerge, ...]
    progress: Progress = field(default_factory=Progress)
    looks: int = 0
    tries: int = 0
    pausing: bool = False
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finishing:
    """The data is where it should be. Waits for the SPM to record that and to move what vanishes to the trash."""

    label: ClassVar[str] = "deleting_volumes"
    kind: Literal["finishing"] = "finishing"
    at: At
    tries: int = 0
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """It was cancelled. First the host ends QEMU's jobs, then the SPM its own, then the marks are taken back."""

    label: ClassVar[str] = "cancelling"
    kind: Literal["stopping"] = "stopping"
    at: At
    part: Literal["host", "spm", "marks"]
    why: Problem
    tries: int = 0
    pausing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsOperator:
    """It cannot go on by itself: the chain is whole and works. `job resolve` goes on, `job cancel` gives it up."""

    label: ClassVar[str] = "needs_operator"
    kind: Literal["needs_operator"] = "needs_operator"
    at: At
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """Every snapshot is gone."""

    label: ClassVar[str] = "completed"
    kind: Literal["deleted"] = "deleted"
    at: At


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """The snapshots of `at.number` and later are not deleted; the chain is whole and works."""

    label: ClassVar[str] = "rolled_back"
    kind: Literal["given_up"] = "given_up"
    at: At
    why: Problem


State = Marking | Merging | AwaitingHost | ColdMerging | Finishing | Stopping | NeedsOperator | Deleted | GivenUp


def is_over(state: State) -> bool:
    """Tell whether the job has ended: nothing is outstanding and the vm is free."""
    return isinstance(state, Deleted | GivenUp)


def problem_of(state: State) -> Problem | None:
    """Return what the user must know of a state that is not simply going well."""
    return None if isinstance(state, Deleted) else state.why


def may_look_early(state: State) -> bool:
    """Tell whether a merge runs, and nothing is waited for but the time to look at it again."""
    return isinstance(state, Merging | ColdMerging) and state.pausing and state.why is None
