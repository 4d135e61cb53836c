"""What every command goes through: one at a time per vm, carried out at most once, answered from the journal after."""

from collections.abc import Callable

from common.crashpoints import reach
from common.messaging.messages import LeavesObserved, Outcome
from hostagent.operations.deps import Work, exclusive
from hostagent.operations.freeze import clear_intents, thaw_orphans


def carry_out(work: Work, verb: str, act: Callable[[bool], LeavesObserved]) -> LeavesObserved:
    """Return the answer to `work`: the one on the journal, or what `act(is_first_time)` says, on the journal by then.

    A guest that a dead handler left frozen is thawed first, whatever the command is: that waits for no job of
    libvirt's. The intent is cleared last, since clearing it does. Raises StaleAttempt when a higher attempt has begun,
    NotReady when another command is at work on the vm or what `act` needs is not there.
    """
    journal = work.deps.journal
    with exclusive(work):
        before = journal.begin(work.vm, work.attempt, work.job, work.step)
        reach(f"host.{verb}.begun")
        if before is not None and before.answer is not None:
            return before.answer
        thawed = thaw_orphans(work)
        seen = act(before is None)
        reach(f"host.{verb}.observed")
        if seen.outcome is not Outcome.UNKNOWN:
            clear_intents(work, thawed)
        journal.done(work.vm, work.attempt, seen)
        reach(f"host.{verb}.done")
        return seen
