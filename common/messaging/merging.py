"""What is said while the volumes of a deleted snapshot are merged. Pure; see `common.messaging.messages`.

Deleting a snapshot takes one volume out of each disk's tree: `top` vanishes. Where something stands on the snapshot's
own volume, `top` is the volume above it, whose data goes down into it (`base`); at the end of an abandoned branch it is
the snapshot's own volume, whose data nobody wants any more.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from common.ids import DiskId, VmId, VolumeId, require_uuid
from common.messaging.volumes import DiskSwitch, VolumeAt


class Way(StrEnum):
    """Where the two volumes of a merge stand."""

    CHAIN = "chain"
    """Both in the chain that the machine runs on: QEMU merges them while it runs, the SPM while it is stopped."""
    BRANCH = "branch"
    """On a branch that the machine left: nobody has them open, and only the SPM can merge them."""
    DISCARD = "discard"
    """`top` is the end of such a branch: it goes, with its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMerge:
    """One disk's part of a deletion: `top`, directly above `base`, vanishes. `leaf`: the machine writes to it.

    `above` are the volumes that stand on `top`; afterwards they stand on `base`.
    """

    target: str
    disk_id: DiskId
    base: VolumeAt
    top: VolumeAt
    way: Way
    leaf: bool = False
    above: tuple[VolumeAt, ...] = ()

    def __post_init__(self) -> None:
        """Refuse malformed ids: they become file names."""
        require_uuid(self.disk_id)

    @property
    def switch(self) -> DiskSwitch:
        """Return the same two volumes as those say it that move leaves: `top` is the new one, above the old one."""
        return DiskSwitch(target=self.target, disk_id=self.disk_id, old=self.base, new=self.top)


# ---- commands ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkMerge:
    """Check that storage is as the plan says, and mark every `top` illegal: it is about to vanish. Safe to repeat.

    With `undo` they are legal again, and nothing is checked. Answered by MergeSeen (idle), Failed or Refused.
    """

    op: Literal["spm.merge_mark"] = "spm.merge_mark"
    vm_id: VmId
    disks: tuple[DiskMerge, ...]
    undo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeVolumes:
    """Begin to commit each `top` into its `base`, or say how far that has come; safe to repeat. Nobody may use them.

    It ends with every `top` empty, which proves that its data stands in `base`. With `abort` what runs is ended; what
    was copied by then is not taken back, and what stands on `top` shows the same as before.
    `bytes_per_s` 0: no limit. Answered by MergeSeen, Failed or Refused.
    """

    op: Literal["spm.merge"] = "spm.merge"
    vm_id: VmId
    disks: tuple[DiskMerge, ...]
    bytes_per_s: int = 0
    abort: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishMerge:
    """Let what stands on each `top` stand on its `base`, and move every `top` to the trash with the proofs of P1.

    `committed` are those whose data a host saw QEMU commit; the others must be empty, or to be discarded. Safe to
    repeat. Answered by VolumesDeleted, Failed or Refused.
    """

    op: Literal["spm.merge_finish"] = "spm.merge_finish"
    vm_id: VmId
    disks: tuple[DiskMerge, ...]
    committed: tuple[VolumeId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDisks:
    """Have QEMU commit each `top` into its `base`: start what neither runs nor is done. Returns at once; safe to
    repeat. `begun` and the answer are as CheckMerge's."""

    op: Literal["host.merge"] = "host.merge"
    vm_id: VmId
    disks: tuple[DiskMerge, ...]
    bytes_per_s: int = 0
    begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckMerge:
    """Say how far the merge of each disk has come; complete those that are ready, start none. With `abort` ours are
    ended instead. A machine that is off is redefined where that is all that is missing.

    Fences every lower attempt. `begun`: a host, from which the machine may have come since, has begun a commit of this
    job. Answered by MergeSeen or Refused.
    """

    op: Literal["host.merge_check"] = "host.merge_check"
    vm_id: VmId
    disks: tuple[DiskMerge, ...]
    abort: bool = False
    begun: bool = False


# ---- answer -----------------------------------------------------------------------------------------------------


class MergeState(StrEnum):
    """How far one disk's merge has come; of several disks, the one that is furthest from its end."""

    MERGED = "merged"
    """From a host: `top` is in no chain, no definition, and open nowhere here, lower attempts are fenced, and its data
    is in `base` (or to be discarded). From the SPM: its data is in `base`, and `top` is empty."""
    COLD = "cold"
    """The data is not in `base` yet, and no machine here has the volumes open: the SPM can merge."""
    IDLE = "idle"
    """Nothing runs. From a host: a running machine has both volumes in its chain."""
    IN_USE = "in_use"
    """Somebody has a volume open that the SPM would have to write to."""
    RUNNING = "running"
    UNKNOWN = "unknown"
    """It could not be seen, or a libvirt call may be in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMergeSeen:
    """One disk. `done_bytes` of `total_bytes` are the job's own numbers: they say nothing of its end."""

    target: str
    state: MergeState
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSeen:
    """How far a merge has come. `begun`: the `base` of some disk may hold data of its `top`; a host says so of what it
    has begun even when the machine is not there any more.

    `committed` are the `top`s whose data QEMU was seen to have committed. `code`, `message`, `hint` say why it is not
    going well, if it is not.
    """

    op: Literal["merge.seen"] = "merge.seen"
    state: MergeState
    disks: tuple[DiskMergeSeen, ...] = ()
    begun: bool = False
    committed: tuple[VolumeId, ...] = ()
    code: str = ""
    message: str = ""
    hint: str = ""


_FURTHEST = (
    MergeState.UNKNOWN,
    MergeState.IN_USE,
    MergeState.IDLE,
    MergeState.RUNNING,
    MergeState.COLD,
    MergeState.MERGED,
)


def furthest(states: tuple[MergeState, ...]) -> MergeState:
    """Return the state that a merge of several disks is in: that of the disk which must be seen to first."""
    return next((state for state in _FURTHEST if state in states), MergeState.MERGED)
