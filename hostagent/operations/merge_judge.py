"""From what was seen of a disk to how far its merge has come. Pure: no I/O, one total function.

MERGED leads to a deletion, so every source of truth must say that `top` is nowhere, and it must be known why: QEMU
leaves a leaf or a layer only by a commit, so one that this job has begun is as good as done once the layer is gone from
the chain; otherwise only an empty `top` proves that nothing of it is missing below.
"""

from dataclasses import dataclass
from enum import StrEnum

from common.messaging.merging import MergeState, Way


class Spot(StrEnum):
    """Where a chain has the two volumes."""

    BOTH = "both"
    """`top` directly above `base`."""
    BASE = "base"
    """`base`, and `top` is nowhere in it."""
    NEITHER = "neither"
    ODD = "odd"
    """`top` is there, but not above `base`."""


class Job(StrEnum):
    """The block job of a disk."""

    NONE = "none"
    RUNNING = "running"
    READY = "ready"
    """The mirror's own word: it can be completed now."""
    FOREIGN = "foreign"
    """It is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFacts:
    """One disk of a merge, as everything that was asked shows it.

    `active`: the machine runs here. `begun`: this job has begun a commit of this machine. `empty`: `top` is proven to
    hold nothing, or is not there any more. `lifted`: by the headers, what stood on `top` stands on `base`. `pivoting`:
    the machine was about to go on from `top` to `base`, and it was not seen whether it has. `oddly_named`: the
    persistent definition has `base` as its leaf by the name that libvirt found in a header (`.../images/x/../../y`),
    which holds only as long as the folder that it leads through.
    """

    way: Way
    leaf: bool
    active: bool
    live: Spot
    persistent: Spot
    persistent_on_top: bool
    locked: bool
    job: Job = Job.NONE
    begun: bool = False
    empty: bool = False
    lifted: bool = False
    managed_save: bool = False
    pivoting: bool = False
    oddly_named: bool = False

    @property
    def is_done(self) -> bool:
        """Tell whether `top` holds nothing that would be missed, and no machine that runs here has it."""
        if self.way is Way.DISCARD:
            return self._is_nowhere_live
        if self.way is Way.BRANCH or not self.active:
            return self._is_nowhere_live and (self.empty or (self.begun and self._has_left))
        return self.live is Spot.BASE and (self.begun or self.empty) and self.job is Job.NONE

    @property
    def _is_nowhere_live(self) -> bool:
        return self.live in (Spot.NEITHER, Spot.BASE)

    @property
    def _has_left(self) -> bool:
        """Tell whether a stopped machine's chain has lost `top`: while it ran, QEMU has committed it."""
        if self.way is not Way.CHAIN:
            return False
        return not self.persistent_on_top if self.leaf else self.lifted

    @property
    def is_on_top(self) -> bool:
        """Tell whether the machine runs on `top`: its definition and the lock say so (the one can be wrong, H1)."""
        return self.active and self.way is Way.CHAIN and self.live is Spot.BOTH and self.locked

    @property
    def is_torn(self) -> bool:
        """Tell whether the machine stopped in the midst of its pivot: `top` or `base` has its last writes."""
        return self.pivoting and self.leaf and not self.active and self.persistent_on_top and not self.empty

    @property
    def is_to_redefine(self) -> bool:
        """Tell whether the persistent definition still names what is done with, or its leaf by an odd name."""
        is_due = self.persistent in (Spot.BOTH, Spot.ODD) or self.oddly_named
        return self.is_done and is_due and not self.managed_save


def judge(facts: MergeFacts) -> tuple[MergeState, str]:
    """Return the state that is proven, and why it is not going well, '' if it is."""
    if facts.job is Job.FOREIGN:
        return MergeState.IDLE, "another block job runs on this disk"
    if facts.job is not Job.NONE:
        return MergeState.RUNNING, ""
    if facts.is_torn:
        return MergeState.IDLE, "the machine stopped while it went on to the lower volume: which has its last writes?"
    if facts.managed_save:
        return MergeState.IDLE, "the machine is off with a managed save image, which names its volumes"
    if facts.is_done:
        return _done(facts)
    return _undone(facts)


def _undone(facts: MergeFacts) -> tuple[MergeState, str]:
    if facts.active and facts.way is Way.CHAIN:
        if facts.is_on_top:
            return MergeState.IDLE, "no block job runs"
        if facts.live is Spot.BOTH:
            return MergeState.UNKNOWN, "nobody has the volume open that the live definition names"
        return MergeState.UNKNOWN, f"the chain has {facts.live.value} of the volumes, without a commit of this job"
    if facts.live in (Spot.BOTH, Spot.ODD):
        return MergeState.UNKNOWN, "a volume that should be on a branch is in the machine's chain"
    if facts.way is Way.CHAIN and facts.leaf and not facts.persistent_on_top:
        return MergeState.UNKNOWN, "the machine is defined on another leaf, without a commit of this job"
    return MergeState.COLD, ""


def _done(facts: MergeFacts) -> tuple[MergeState, str]:
    if facts.persistent in (Spot.BOTH, Spot.ODD):
        return MergeState.UNKNOWN, "the persistent definition still names the volume"
    if facts.locked:
        return MergeState.UNKNOWN, "somebody still has the volume open"
    return MergeState.MERGED, ""
