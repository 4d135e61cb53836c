"""The barrier: may a libvirt call of ours still be running? libvirtd goes on with it when its client has died.

Rule (protocol.md part A, V1 and A2): without this, an observation made after a restart can be true and, a moment
later, false, and a volume that QEMU is about to open would be deleted. Measured (hypervisor.md 13): while a call holds
libvirt's job lock, setMetadata on the same vm fails after 30.0 s; a call that waits for that lock fails after 30 s too.
"""

from common import logs
from common.errors import HypervisorError, LivesnapError, OutcomeUnknown
from hostagent.operations.deps import Work

QUEUE_LIMIT_MS = 30_000
"""QEMU_JOB_WAIT_TIME of libvirt's QEMU driver: no call waits longer for the job lock."""
_ROUNDS = 3
_ROUND_PAUSE_S = 0.05

_log = logs.get()


def call_in_flight(work: Work) -> LivesnapError | None:
    """Return what shows that a call that can move the vm's leaves, issued by any attempt on the journal, may still run.

    It cannot if none was issued, if the host has booted since, or if its libvirtd is gone. Otherwise libvirt's job lock
    must be free: one that *runs* holds it, and one that still *waits* for it, younger than 30 s, gets it in a pause
    between several rounds. May block for 30 s (a lock that is held). A migration holds the lock too, and takes along a
    definition that such a call has made (judge.py). Of a vm that has left, nobody can say whether a call that waited
    fails before it comes back: until the 30 s are over it may run. Raises NotReady when libvirt is not connected.
    """
    row = work.deps.journal.current(work.vm)
    if row is None or row.call_issued_boot_ms is None or row.boot_id != work.deps.boot_id:
        return None
    instance = work.deps.libvirtd_instance()
    if instance and row.libvirtd_instance and instance != row.libvirtd_instance:
        return None
    may_wait = work.deps.boottime_ms() - row.call_issued_boot_ms < QUEUE_LIMIT_MS
    if not work.guest.exists():
        return _left(work) if may_wait else None
    try:
        for _ in range(_ROUNDS if may_wait else 1):
            work.guest.touch_modify_job()
            if may_wait:
                work.deps.pause(_ROUND_PAUSE_S)
    except HypervisorError as held:
        _log.warning("barrier.held", vm=work.vm, error=str(held))
        return held
    return None


def _left(work: Work) -> OutcomeUnknown:
    message = f"vm {work.vm} has left this host, and a call that was issued less than 30 s ago may still wait for it"
    _log.warning("barrier.held", vm=work.vm, error=message)
    return OutcomeUnknown("vm_migrating", message)
