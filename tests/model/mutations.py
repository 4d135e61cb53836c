"""What happens without each rule: the smallest layer that shows it, and the kind of violation that must be found there.

A row turns rules of the model's actors off, or wraps the saga or the judge. `ALONE` is rules that carry weight by
themselves, `TOGETHER` rules that cover each other, `WEIGHTLESS` those whose removal alone breaks nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

from common.messaging.messages import LeavesObserved, Outcome, VolumesDeleted
from hostagent.operations import judge
from hostagent.operations.judge import Facts
from manager.flows import snapshot
from manager.flows.base import Answered, CancelRequested, Event, Next, ResolveRequested, TimedOut
from manager.flows.snapshot_states import (
    AwaitingHost,
    DeletingVolumes,
    Holding,
    Pivoting,
    Probing,
    Repairing,
    State,
    cancelled,
)
from tests.model.invariants import Kind
from tests.model.model import Judge
from tests.model.saga import Advance
from tests.model.world import Budget, Config, Rules

# ---- wrapped sagas --------------------------------------------------------------------------------------------------

NONE = LeavesObserved(outcome=Outcome.NONE, boot_id="b", runtime_id="r")


def pivots_again_on_a_timeout(state: State, event: Event) -> Next[State]:
    """A blind second attempt (P4)."""
    if isinstance(state, Pivoting) and isinstance(event, TimedOut):
        held = Holding(plan=state.plan, host=state.host, quiesce=state.quiesce, tries=1, why=cancelled())
        return snapshot.advance(held, event)
    return snapshot.advance(state, event)


def deletes_on_a_timeout(state: State, event: Event) -> Next[State]:
    """Silence is taken for "nothing happened" (P3)."""
    if isinstance(state, Pivoting) and isinstance(event, TimedOut):
        return snapshot.advance(state, Answered(answer=NONE))
    return snapshot.advance(state, event)


def deletes_when_cancelled(state: State, event: Event) -> Next[State]:
    """A cancelled pivot is not asked about."""
    if isinstance(state, Pivoting) and isinstance(event, CancelRequested):
        return snapshot.advance(state, Answered(answer=NONE))
    return snapshot.advance(state, event)


def deletes_on_unknown(state: State, event: Event) -> Next[State]:
    """UNKNOWN is taken for NONE (P3)."""
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.UNKNOWN) as seen):
            return snapshot.advance(state, replace(event, answer=replace(seen, outcome=Outcome.NONE)))
        case _:
            return snapshot.advance(state, event)


def deletes_on_not_here(state: State, event: Event) -> Next[State]:
    """NOT_HERE is taken for NONE after a probe too."""
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.NOT_HERE) as seen):
            return snapshot.advance(state, replace(event, answer=replace(seen, outcome=Outcome.NONE)))
        case _:
            return snapshot.advance(state, event)


def completes_on_bad(state: State, event: Event) -> Next[State]:
    """A mixed observation is success (P10)."""
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.BAD) as seen):
            return snapshot.advance(state, replace(event, answer=replace(seen, outcome=Outcome.ALL_NEW)))
        case _:
            return snapshot.advance(state, event)


def believes_the_word(state: State, event: Event) -> Next[State]:
    """An operator's "the host was rebooted" stands for the host's own fence (A9)."""
    if isinstance(state, Probing | AwaitingHost) and isinstance(event, ResolveRequested):
        return snapshot.advance(state, Answered(answer=NONE))
    return snapshot.advance(state, event)


def ignores_in_use(state: State, event: Event) -> Next[State]:
    """The SPM's "kept" leads nowhere."""
    match event:
        case Answered(answer=VolumesDeleted(kept=kept)) if kept and isinstance(state, DeletingVolumes):
            return Next(state=state)
        case _:
            return snapshot.advance(state, event)


def repairs_for_ever(state: State, event: Event) -> Next[State]:
    """Attempts are not bounded (A10)."""
    if isinstance(state, Repairing):
        state = replace(state, again=False, tries=0)
    return snapshot.advance(state, event)


def forgets_the_commit(state: State, event: Event) -> Next[State]:
    """The receipt of a commit does not reach the SPM."""
    match event:
        case Answered(answer=LeavesObserved(outcome=Outcome.NONE_ROLLED_BACK) as seen):
            return snapshot.advance(state, replace(event, answer=replace(seen, outcome=Outcome.NONE)))
        case _:
            return snapshot.advance(state, event)


def forgets_who_has_begun(state: State, event: Event) -> Next[State]:
    """That a commit has begun is known only to the host that began it."""
    match event:
        case Answered(answer=LeavesObserved(commit_begun=True) as seen):
            return snapshot.advance(state, replace(event, answer=replace(seen, commit_begun=False)))
        case _:
            return snapshot.advance(state, event)


def quiesces_at_will(state: State, event: Event) -> Next[State]:
    """What was required is done as well as it goes."""
    return snapshot.advance(replace(state, plan=replace(state.plan, mode="auto")), event)


# ---- wrapped judges -------------------------------------------------------------------------------------------------


def forgets_commits(facts: Facts) -> str:
    """A commit that has begun does not rule out ALL_NEW."""
    return judge.judge(replace(facts, commit_begun=False))


def ignores_save_images(facts: Facts) -> str:
    """A save image does not stand in the way."""
    return judge.judge(replace(facts, managed_save=False))


def sees_one_disk(facts: Facts) -> str:
    """The first disk stands for all."""
    return judge.judge(replace(facts, disks=facts.disks[:1]))


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """Rules that are off, or a saga or judge in place of the product's; where that shows, and as what.

    `only`: other kinds show there earlier, and are passed over.
    """

    layer: Config
    kind: Kind
    off: tuple[str, ...] = ()
    advance: Advance = snapshot.advance
    judge: Judge = judge.judge
    only: bool = False

    @property
    def rules(self) -> Rules:
        """Return the rules that are left."""
        return without(*self.off)


def without(*off: str) -> Rules:
    """Return all rules but these."""
    changes: dict[str, Any] = dict.fromkeys(off, False)
    return Rules(**changes)


def layer(*, hosts: int = 1, disks: int = 1, jobs: int = 1, asks_operator: bool = False, **mishaps: int) -> Config:
    """Return a layer without quiescing's own mishaps, for short traces."""
    budget = Budget(**mishaps)
    return Config(hosts=hosts, disks=disks, jobs=jobs, asks_operator=asks_operator, budget=budget)


LOST = layer(connection=1)
LOST_AND_LATE = layer(connection=1, timeout=1)
LYING = layer(libvirtd=1, stop=1, asks_operator=True)
ALONE: dict[str, Mutation] = {
    "P1a fence": Mutation(off=("fence",), layer=layer(timeout=2), kind=Kind.TWO_JOBS),
    "P1a fence (deletes)": Mutation(off=("fence",), layer=layer(timeout=2), kind=Kind.DEFINITION_DELETED, only=True),
    "journal: an attempt is carried out once": Mutation(
        off=("once",), layer=layer(agent=1, timeout=1), kind=Kind.TWO_JOBS
    ),
    "A2 barrier": Mutation(off=("barrier",), layer=LOST, kind=Kind.DEFINITION_DELETED),
    "own call lost is unknown": Mutation(off=("timeout_is_unknown",), layer=LOST, kind=Kind.DEFINITION_DELETED),
    "A3 definitions count": Mutation(off=("definition_counts",), layer=LOST, kind=Kind.DEFINITION_DELETED),
    "A3 parent counts": Mutation(
        off=("parent_counts",), layer=layer(virsh_snapshot=1, asks_operator=True), kind=Kind.FALSE_COMPLETED
    ),
    "P3 ask QEMU": Mutation(off=("ask_qemu",), layer=LYING, kind=Kind.WRITES_LOST),
    "A6 definition first": Mutation(off=("definition_first",), layer=LYING, kind=Kind.WRITES_LOST),
    "A5 empty (definition)": Mutation(off=("empty",), layer=LYING, kind=Kind.WRITES_LOST),
    "A5 empty (deletion)": Mutation(
        off=("empty",),
        layer=layer(libvirtd=1, reboot=1, asks_operator=True),
        kind=Kind.TRASHED_DATA,
        only=True,
    ),
    "left in the middle of a pivot is unknown": Mutation(
        off=("left_is_unknown",),
        layer=Config(hosts=2, mode="never", budget=Budget(migrate=1, timeout=3, stop=1)),
        kind=Kind.DEFINITION_DELETED,
    ),
    "a call may wait for a machine that has left": Mutation(
        off=("left_may_return",),
        layer=Config(hosts=2, mode="never", budget=Budget(migrate=2, connection=1)),
        kind=Kind.COMPLETED_ILLEGAL,
    ),
    "commit is recorded": Mutation(
        off=("commit_is_recorded",),
        layer=layer(io_error=1, commit_fails=1, timeout=1, asks_operator=True),
        kind=Kind.SPOILT,
    ),
    "P2 guard": Mutation(
        off=("guard",), layer=Config(budget=Budget(agent=1), agent_returns=False), kind=Kind.FROZEN_FOR_EVER
    ),
    "P2 sweep": Mutation(
        off=("sweep",),
        layer=layer(hosts=2, migrate=1, death=1, timeout=1, asks_operator=True),
        kind=Kind.FROZEN_FOR_EVER,
    ),
    "A7 the mark travels": Mutation(off=("mark",), layer=layer(hosts=2, migrate=1), kind=Kind.FROZEN_FOR_EVER),
    "P5 thawed are counted": Mutation(off=("count_thawed",), layer=layer(virsh_thaw=1), kind=Kind.WRONG_LABEL),
    "A8 the guard says whether it fired": Mutation(
        off=("guard_tells",), layer=layer(slow=1, virsh_freeze=1), kind=Kind.WRONG_LABEL
    ),
    "A8 own switch": Mutation(off=("own_switch",), layer=LOST, kind=Kind.WRONG_LABEL),
    "A4 tombstone": Mutation(off=("tombstone",), layer=layer(spm_stop=1, timeout=1), kind=Kind.FALSE_ROLLED_BACK),
    "A4 link(2)": Mutation(off=("link",), layer=layer(spm_stop=1), kind=Kind.DEFINITION_DELETED),
    "lease": Mutation(off=("lease",), layer=layer(spm_stop=1), kind=Kind.DEFINITION_DELETED),
    "P6 sent again until answered": Mutation(off=("resend",), layer=layer(loss=1), kind=Kind.NEVER_ENDS),
    "only the current answer": Mutation(
        off=("only_current_answer",),
        layer=layer(io_error=1, commit_fails=1, timeout=1, asks_operator=True),
        kind=Kind.TWO_JOBS,
    ),
    "one job per machine": Mutation(off=("one_job",), layer=layer(jobs=2), kind=Kind.TWO_JOBS),
    "saga: cancelled is asked about": Mutation(
        advance=deletes_when_cancelled, layer=layer(cancel=1), kind=Kind.DEFINITION_DELETED, only=True
    ),
    "saga: silence is asked about": Mutation(
        advance=deletes_on_a_timeout, layer=layer(timeout=1), kind=Kind.DEFINITION_DELETED, only=True
    ),
    "saga: unknown is no outcome": Mutation(advance=deletes_on_unknown, layer=LOST, kind=Kind.DEFINITION_DELETED),
    "saga: not here is not nowhere": Mutation(
        advance=deletes_on_not_here, layer=layer(hosts=2, migrate=1, stop=1), kind=Kind.DEFINITION_DELETED
    ),
    "P10 saga: mixed is no success": Mutation(
        advance=completes_on_bad, layer=layer(disks=2, partial=1), kind=Kind.FALSE_COMPLETED
    ),
    "A9 saga: the word is no fence": Mutation(
        advance=believes_the_word, layer=layer(word=1, timeout=2), kind=Kind.TWO_JOBS
    ),
    "A10 saga: repairs are bounded": Mutation(
        advance=repairs_for_ever, layer=layer(virsh_snapshot=1, asks_operator=True), kind=Kind.NEVER_ENDS
    ),
    "saga: a commit's receipt goes along": Mutation(
        advance=forgets_the_commit, layer=layer(io_error=1), kind=Kind.OPERATOR
    ),
    "saga: a commit that has begun is remembered": Mutation(
        advance=forgets_who_has_begun,
        layer=layer(hosts=2, io_error=1, commit_fails=1, migrate=1, asks_operator=True),
        kind=Kind.SPOILT,
    ),
    "a rollback that libvirtd cuts off is no refusal": Mutation(
        off=("cut_off_is_told",), layer=layer(io_error=1, libvirtd=1), kind=Kind.OPERATOR
    ),
    "saga: what is required is proven": Mutation(
        advance=quiesces_at_will,
        layer=Config(mode="require", budget=Budget(virsh_thaw=1)),
        kind=Kind.NOT_QUIESCED,
    ),
    "judge: a commit rules out success": Mutation(
        judge=forgets_commits,
        layer=layer(io_error=1, commit_fails=1, timeout=1, asks_operator=True),
        kind=Kind.SPOILT,
    ),
    "judge: save images": Mutation(
        judge=ignores_save_images, layer=layer(save=1, asks_operator=True), kind=Kind.FALSE_COMPLETED
    ),
    "judge: every disk": Mutation(judge=sees_one_disk, layer=layer(disks=2, partial=1), kind=Kind.FALSE_COMPLETED),
}
TOGETHER: dict[str, tuple[Mutation, tuple[tuple[str, ...], ...]]] = {
    "P1b image lock covers for the barrier": (
        Mutation(off=("barrier", "image_lock"), layer=LOST, kind=Kind.TRASHED_IN_USE, only=True),
        (("barrier",), ("image_lock",)),
    ),
    "A1 lock held over the rename covers for the barrier": (
        Mutation(off=("barrier", "lock_held"), layer=LOST, kind=Kind.TRASHED_IN_USE, only=True),
        (("barrier",), ("lock_held",)),
    ),
    "whole chain and exclusive lock cover for each other": (
        Mutation(
            off=("whole_chain", "lock_sees_backing"),
            layer=layer(virsh_snapshot=1, timeout=1, asks_operator=True),
            kind=Kind.TRASHED_IN_USE,
        ),
        (("whole_chain",), ("lock_sees_backing",)),
    ),
    "generation and tombstone cover for each other": (
        Mutation(off=("generation", "tombstone"), layer=layer(timeout=1, cancel=1), kind=Kind.FALSE_ROLLED_BACK),
        (("generation",), ("tombstone",)),
    ),
    "record and mark cover for each other on one host": (
        Mutation(off=("record", "mark"), layer=layer(agent=1, guard=1), kind=Kind.FROZEN_FOR_EVER),
        (("record",), ("mark",)),
    ),
    "P4 no blind second pivot, and the barrier": (
        Mutation(
            off=("barrier",),
            advance=pivots_again_on_a_timeout,
            layer=LOST_AND_LATE,
            kind=Kind.TWO_CALLS,
            only=True,
        ),
        (("barrier",),),
    ),
    "in use is answered for, where the barrier fails": (
        Mutation(
            off=("barrier", "unmark"), advance=ignores_in_use, layer=LOST_AND_LATE, kind=Kind.NEVER_ENDS, only=True
        ),
        ((),),
    ),
}
WEIGHTLESS = ("illegal_mark", "unmark", "generation", "image_lock", "lock_held", "precondition", "record")
"""Each alone breaks nothing in any of the suite's layers. Together with others they do (above), or they are what a
person sees (the illegal mark) or a second line (the precondition, behind the fence).
"""
