"""What a host's agents are told to do, and what they answer. Pure; see `common.messaging.messages`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from common.ids import VmId
from common.messaging.volumes import DiskSwitch
from common.preflight import DEFAULT_LIMITS, Limits, PreflightLine
from common.receipt import Receipt


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
class Redefine:
    """Put every disk of a stopped vm on its new leaf, by its persistent definition alone: onto a branch, or back.

    A vm that is not off is refused before anything is touched. Answered by LeavesObserved, Failed or Refused.
    """

    op: Literal["host.redefine"] = "host.redefine"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]


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
    nothing is done, unless `undo` says that they shall come back all the same. Refused for a disk that left its branch:
    what is below its new leaf is a snapshot. Answered by LeavesObserved or Refused.
    """

    op: Literal["host.repair"] = "host.repair"
    vm_id: VmId
    disks: tuple[DiskSwitch, ...]
    undo: bool = False


# ---- answers ----------------------------------------------------------------------------------------------------


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
    """What a host saw. `code`, `message`, `hint` say why an outcome is not ALL_NEW; empty otherwise.

    `commit_begun`: this host has begun to commit new volumes of the job into the previous ones, which may hold newer
    data since. It says so wherever the vm is now, since no other host knows.
    """

    op: Literal["host.observed"] = "host.observed"
    outcome: Outcome
    boot_id: str
    runtime_id: str
    """Identifies this run of the vm (QEMU process and start); '' when it is not active."""
    disks: tuple[DiskObserved, ...] = ()
    commit_begun: bool = False
    receipt: Receipt | None = None
    code: str = ""
    message: str = ""
    hint: str = ""
    live_xml: str = ""
    persistent_xml: str = ""
