"""The states of going back: preview, commit, undo, revert. What each waits for. Pure; `revert.py` has the decisions."""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal

from common.ids import DiskId, HostId, PoolId, SnapshotId, VmId, VolumeId
from common.messaging.messages import DiskSwitch
from manager.flows.base import Problem

Goal = Literal["preview", "commit", "undo", "revert"]

MOVE_LIMIT = timedelta(seconds=40)
"""How long after its sending a host may still begin to redefine the vm; it takes some milliseconds."""

PROBE_PATIENCE = timedelta(seconds=45)
"""After this a silent host is shown as such. libvirt lets go of its job lock after 30 s at the latest (measured)."""
RETRIES = 20
"""How often a host that cannot look, or an SPM that cannot delete, is asked again: some seven minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for; the same in every state.

    `moves`: where the disks go, from the leaf on record (none for a commit). `drops`: what is given up once the machine
    is where it should be, each as the `new` of a switch whose `old` is what it stands on.
    """

    goal: Goal
    vm: VmId
    pool: PoolId
    snapshot: SnapshotId
    name: str
    """The snapshot's name, for the timeline."""
    moves: tuple[DiskSwitch, ...] = ()
    drops: tuple[DiskSwitch, ...] = ()

    @property
    def makes_volumes(self) -> bool:
        """Tell whether new leaves are made: then they must go again if the machine does not get onto them."""
        return self.goal in ("preview", "revert")

    @property
    def leaves(self) -> tuple[tuple[DiskId, VolumeId], ...]:
        """Return the leaves of the disks once they have moved."""
        return tuple((disk.disk_id, disk.new.volume_id) for disk in self.moves)

    @property
    def given_up(self) -> tuple[VolumeId, ...]:
        """Return the ids of the volumes whose data the user gives up."""
        return tuple(disk.new.volume_id for disk in self.drops)


# ---- states -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatingVolumes:
    """Waits for the SPM to make one empty volume per disk above the snapshot's. No host knows of them yet."""

    label: ClassVar[str] = "creating_volumes"
    kind: Literal["creating_volumes"] = "creating_volumes"
    plan: Plan
    host: HostId
    tries: int = 0
    why: Problem | None = None
    """Why the SPM could not begin: then nothing is outstanding, and the next timeout asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Waits for the host that was told to redefine the vm. From here on only a host can say what is true."""

    label: ClassVar[str] = "redefining"
    kind: Literal["moving"] = "moving"
    plan: Plan
    host: HostId
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """It could not begin (libvirt away, vm elsewhere) and nothing was touched. Waits a moment, then Moving."""

    label: ClassVar[str] = "redefining"
    kind: Literal["holding"] = "holding"
    plan: Plan
    host: HostId
    tries: int
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """The outcome is unknown. Waits for the host to fence older attempts and to say where the vm is."""

    label: ClassVar[str] = "probing"
    kind: Literal["probing"] = "probing"
    plan: Plan
    host: HostId
    why: Problem
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingHost:
    """The host is silent, or cannot look. Every volume is kept; the probe is repeated, without end."""

    label: ClassVar[str] = "awaiting_host"
    kind: Literal["awaiting_host"] = "awaiting_host"
    plan: Plan
    host: HostId
    why: Problem
    tries: int = 0
    elsewhere: bool = False
    """The host has answered that the vm is not there: the next question follows the inventory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletingVolumes:
    """It did not come to it: the new, empty volumes are proven to be nowhere. Waits for the SPM. Then RolledBack."""

    label: ClassVar[str] = "deleting_volumes"
    kind: Literal["deleting_volumes"] = "deleting_volumes"
    plan: Plan
    host: HostId
    why: Problem
    tries: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving:
    """The machine is where it should be. Waits for its host to prove that what is given up is nowhere, and stays so.

    `settled`: so it stands on record too, and there is no way back. A commit is settled by the proof itself.
    """

    label: ClassVar[str] = "proving_unused"
    kind: Literal["proving"] = "proving"
    plan: Plan
    host: HostId
    settled: bool
    tries: int = 0
    kept: int = 0
    """How often the SPM has kept what was proven to be nowhere, because somebody held it."""
    why: Problem | None = None
    """Why the host could not look: then nothing is outstanding, and the next timeout asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropping:
    """What is given up is proven to be nowhere. Waits for the SPM to move it to the trash, data and all."""

    label: ClassVar[str] = "deleting_volumes"
    kind: Literal["dropping"] = "dropping"
    plan: Plan
    host: HostId
    kept: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """Done as asked."""

    label: ClassVar[str] = "completed"
    kind: Literal["completed"] = "completed"
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The machine is where it was, and nothing is lost. `why` is the job's error."""

    label: ClassVar[str] = "rolled_back"
    kind: Literal["rolled_back"] = "rolled_back"
    plan: Plan
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGone:
    """The host that alone could say where the vm is, or that nothing there uses what was given up, was removed as lost.
    Every volume is kept; on record the vm is where it was last proven to be."""

    label: ClassVar[str] = "host_lost"
    kind: Literal["host_lost"] = "host_lost"
    plan: Plan
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsOperator:
    """No step of ours is safe. Every volume is kept and the vm stays locked until somebody says `job resolve`.

    `settled`: the machine is where it should be, and only what is given up could not be deleted: then a cancel ends the
    job and leaves that for later.
    """

    label: ClassVar[str] = "needs_operator"
    kind: Literal["needs_operator"] = "needs_operator"
    plan: Plan
    host: HostId
    why: Problem
    settled: bool = False


Asking = Probing | AwaitingHost
Unsettled = CreatingVolumes | Moving | Holding | Probing | AwaitingHost | DeletingVolumes
State = Unsettled | Proving | Dropping | Completed | RolledBack | HostGone | NeedsOperator


def begin(plan: Plan, host: HostId) -> State:
    """Return the first state of a job about a vm that the inventory has on `host`; feed it Started."""
    match plan.goal:
        case "preview" | "revert":
            return CreatingVolumes(plan=plan, host=host)
        case "undo":
            return Moving(plan=plan, host=host)
        case "commit":
            return Proving(plan=plan, host=host, settled=False)


def is_over(state: State) -> bool:
    """Tell whether the job has ended: nothing is outstanding and the vm is free."""
    return isinstance(state, Completed | RolledBack | HostGone)


def problem_of(state: State) -> Problem | None:
    """Return what the user must know of a state that is not simply going well."""
    return None if isinstance(state, Moving | Dropping | Completed) else state.why
