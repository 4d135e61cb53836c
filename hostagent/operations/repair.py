"""Bring the disks of a vm back to their old leaves: those on mixed volumes (P10), or all of them where told to."""

from common.messaging.messages import LeavesObserved, Outcome, Repair
from common.messaging.wire import Envelope
from hostagent.operations.deps import Deps, Work, work_on
from hostagent.operations.once import carry_out
from hostagent.operations.rollback import bring_back
from hostagent.operations.settle import conclude


def repair(envelope: Envelope, command: Repair, deps: Deps) -> LeavesObserved:
    """Commit back, detach what is loose, observe. Loses nothing; safe to repeat after a crash, which it goes on from.

    Looks first: where nothing is wrong (any more), nothing is done but an ordered `undo`, and while an earlier call may
    be in flight not even that.
    Raises StaleAttempt when a higher attempt has begun, NotReady when libvirt or a storage domain is not there.
    """
    work = work_on(envelope, command, deps)
    return carry_out(work, "repair", lambda _: _repair(work, command))


def _repair(work: Work, command: Repair) -> LeavesObserved:
    seen = conclude(work)
    wanted = seen.outcome is Outcome.BAD or (command.undo and seen.outcome is Outcome.ALL_NEW)
    return bring_back(work) if wanted else seen
