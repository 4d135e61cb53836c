"""Put the disks of a stopped vm on their new leaves: the persistent definition is all there is to change.

Rules: every <backingStore> of the old chain goes (else the next boot skips a layer: hypervisor.md H8), a managed save
image would undo the change at the next start, and "off" must hold before and after (H9).
"""

import time
from dataclasses import replace

from common.errors import LivesnapError, RequestRefused
from common.messaging.messages import LeavesObserved, Outcome
from common.receipt import Receipt
from hostagent.operations.deps import Work
from hostagent.operations.prepare import Ready, new_definition, require_unchanged
from hostagent.operations.settle import conclude


def pivot_stopped(work: Work, ready: Ready) -> LeavesObserved:
    """Redefine the vm and observe. A crash in between leaves either definition whole; both are right to boot from."""
    begun = time.monotonic()
    changed = RequestRefused("vm_state_changed", f"vm {work.vm} was started while it was being redefined")
    shutdowns, old = work.deps.shutdowns, [pair.old for pair in work.disks]
    left_clean = shutdowns.left_clean(work.vm, old)
    empty = shutdowns.states(pair.new for pair in work.disks)
    try:
        require_unchanged(work, ready)
        if work.guest.has_managed_save():
            raise RequestRefused("vm_managed_save", f"vm {work.vm} was saved while it was being prepared")
        deps = work.deps
        deps.journal.call_issued(work.vm, work.attempt, deps.boottime_ms(), deps.libvirtd_instance())
        work.guest.define(new_definition(work, ready))
    except LivesnapError as refused:
        return conclude(work, refused)
    receipt = Receipt(
        vm_state=ready.vm_state,
        quiesce=False,
        switched_at=work.deps.clock.now(),
        own_switch=True,
        warnings=ready.warnings,
        switch_ms=round((time.monotonic() - begun) * 1000, 2),
    )
    seen = conclude(work, changed, call_returned=True)
    if seen.outcome is not Outcome.ALL_NEW:
        return seen
    # And asked again: whoever starts the vm from here on writes to its new leaves.
    left_clean = left_clean and shutdowns.left_clean(work.vm, old)
    if left_clean:
        shutdowns.moved(work.vm, empty)
    receipt = replace(receipt, clean_shutdown_seen=left_clean)
    return replace(seen, receipt=receipt, persistent_xml=ready.persistent_xml)
