"""Fence every lower attempt, then say where the vm writes. The Manager deletes and completes on this word alone."""

from dataclasses import replace

from common.messaging.messages import LeavesObserved, Outcome, Probe
from common.messaging.wire import Envelope
from hostagent.operations.deps import Deps, Work, work_on
from hostagent.operations.once import carry_out
from hostagent.operations.settle import conclude


def probe(envelope: Envelope, command: Probe, deps: Deps) -> LeavesObserved:
    """Observe, behind the fence and the barrier; thaw what a dead attempt left frozen. May take 30 s.

    The one thing it may change is a persistent definition that is not where QEMU is. Raises StaleAttempt when a higher
    attempt has begun, NotReady when libvirt or a storage domain is not there. Safe to repeat after a crash.
    """
    work = work_on(envelope, command, deps)
    return carry_out(work, "probe", lambda _: _with_receipt(work, conclude(work)))


def _with_receipt(work: Work, seen: LeavesObserved) -> LeavesObserved:
    """Add what the pivot itself had proven: its answer may be lost, its receipt is not.

    A receipt of a switch after which nothing could be seen counts only for the run of the vm that it was made on.
    """
    earlier = work.deps.journal.previous_answer(work.vm, work.job)
    if seen.outcome is not Outcome.ALL_NEW or earlier is None or earlier.receipt is None:
        return seen
    receipt = earlier.receipt
    if earlier.outcome is not Outcome.ALL_NEW and earlier.runtime_id != seen.runtime_id:
        receipt = replace(receipt, own_switch=False)
    return replace(seen, receipt=receipt, live_xml=earlier.live_xml, persistent_xml=earlier.persistent_xml)
