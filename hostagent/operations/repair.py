"""Bring the disks of a vm that are on mixed volumes back to their old leaves (P10)."""

from common.messaging.messages import LeavesObserved, Outcome, Repair
from common.messaging.wire import Envelope
from hostagent.operations.deps import Deps, Work, work_on
from hostagent.operations.once import carry_out
from hostagent.operations.rollback import bring_back
from hostagent.operations.settle import conclude


def repair(envelope: Envelope, command: Repair, deps: Deps) -> LeavesObserved:
    """Commit back, detach what is loose, observe. Loses nothing; safe to repeat after a crash, which it goes on from.

    Looks first: where nothing is wrong (any more), nothing is done, and while an earlier call may be in flight neither.
    Raises StaleAttempt when a higher attempt has begun, NotReady when libvirt or a storage domain is not there.
    """
    work = work_on(envelope, command, deps)
    return carry_out(work, "repair", lambda _: _repair(work))


def _repair(work: Work) -> LeavesObserved:
    seen = conclude(work)
    return bring_back(work) if seen.outcome is Outcome.BAD else seen
