"""The states of a repair: what each waits for. Pure; `mend.py` has the decisions and the map."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from common.ids import DiskId, HostId, PoolId, SnapshotId, VmId, VolumeId
from common.messaging.messages import Adoption, DiskSwitch, VolumeFound
from manager.flows.base import Problem

Want = Literal["on_new", "off_new", "answered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A snapshot that somebody else took, or that the record has lost: it exists once the repair has gone well."""

    snapshot: SnapshotId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done, and what must be seen before.

    `hosts` are asked about `disks` one after the other, the machine's own last: by a Probe, or the last by a Repair if
    `commit_back`. `leaves` are the leaves on record afterwards, `lost` volumes go on record as they are.
    """

    vm: VmId
    pool: PoolId
    what: str
    hosts: tuple[HostId, ...] = ()
    disks: tuple[DiskSwitch, ...] = ()
    commit_back: bool = False
    want: Want = "answered"
    adopt: tuple[Adoption, ...] = ()
    delete: tuple[DiskSwitch, ...] = ()
    found: tuple[Found, ...] = ()
    leaves: tuple[tuple[DiskId, VolumeId], ...] = ()
    lost: tuple[VolumeFound, ...] = ()
    replaced: tuple[VolumeId, ...] = ()
    """Volumes on record that are none: another id for the file of one that is."""


# ---- states -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Waits for `host`, the first of `ahead`, to say what is so. `why`: it could not, and is asked again."""

    label: ClassVar[str] = "probing"
    kind: Literal["asking"] = "asking"
    plan: Plan
    host: HostId
    ahead: tuple[HostId, ...]
    tries: int = 0
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopting:
    """Waits for the SPM to make the volumes' metadata say what is so."""

    label: ClassVar[str] = "adopting_volumes"
    kind: Literal["adopting"] = "adopting"
    plan: Plan
    tries: int = 0
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleting:
    """The volumes are proven to be nowhere. Waits for the SPM to move them to the trash."""

    label: ClassVar[str] = "deleting_volumes"
    kind: Literal["deleting"] = "deleting"
    plan: Plan
    committed: bool = False
    tries: int = 0
    why: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """Done as planned."""

    label: ClassVar[str] = "completed"
    kind: Literal["mended"] = "mended"
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """It is not, or no longer, as the plan expected. Nothing is half done; doctor makes a new plan."""

    label: ClassVar[str] = "rolled_back"
    kind: Literal["given_up"] = "given_up"
    plan: Plan
    why: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsOperator:
    """A step may be half done and cannot be found out about. Keeps the machine until somebody says `job resolve`."""

    label: ClassVar[str] = "needs_operator"
    kind: Literal["needs_operator"] = "needs_operator"
    plan: Plan
    host: HostId | None
    why: Problem


State = Asking | Adopting | Deleting | Mended | GivenUp | NeedsOperator


def begin(plan: Plan) -> State:
    """Return the first state of a repair; feed it Started."""
    if plan.hosts:
        return Asking(plan=plan, host=plan.hosts[0], ahead=plan.hosts)
    return Adopting(plan=plan)


def is_over(state: State) -> bool:
    """Tell whether the job has ended: nothing is outstanding and the vm is free."""
    return isinstance(state, Mended | GivenUp)


def problem_of(state: State) -> Problem | None:
    """Return what the user must know of a state that is not simply going well."""
    return None if isinstance(state, Mended) else state.why
