"""The sweep: thaw what a dead handler of ours may have left frozen (P2).

It runs at start, at every (re)connection to libvirt, periodically, and when a vm is seen that carries our mark: also
one that migrated here frozen. Ours means an intent of ours, in the journal or in the live metadata, whose vm lock is
free: a handler at work holds the lock, and it dies with its process. A guest that somebody else has frozen carries no
such intent, and a live freeze of a sibling has its lock held; neither is touched.
"""

import threading
from collections.abc import Callable, Iterable

from common import logs
from common.errors import LivesnapError
from common.ids import VmId
from hostagent.ports import Guest, Journal, VmLocks

THAW_LIMIT_MS = 3000


class Sweeper:
    """A thread of its own, since a thaw can take seconds; `wake` it with the vms that were seen with our mark."""

    def __init__(self, guest_of: Callable[[VmId], Guest], journal: Journal, vm_lock: VmLocks) -> None:
        """Take what it needs; nothing runs before `start`."""
        self._guest_of = guest_of
        self._journal = journal
        self._vm_lock = vm_lock
        self._lock = threading.Lock()
        self._marked: set[VmId] = set()
        self._woken = threading.Event()
        self._stopping = False
        self._log = logs.get()

    def start(self) -> None:
        """Start the thread; the first sweep runs with the first `wake`."""
        threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def stop(self) -> None:
        """End the thread after the sweep that runs."""
        self._stopping = True
        self._woken.set()

    def wake(self, marked: Iterable[VmId] = ()) -> None:
        """Have every intent on the journal, and these vms, swept now. Returns at once."""
        with self._lock:
            self._marked.update(marked)
        self._woken.set()

    def sweep(self, marked: Iterable[VmId] = ()) -> None:
        """Sweep once, in this thread. What cannot be thawed now keeps its records. Never raises LivesnapError."""
        try:
            recorded = {vm for vm, _, _ in self._journal.frozen_records()}
        except LivesnapError as error:
            self._log.error("sweep_failed", seen=str(error))
            recorded = set()
        for vm in sorted(recorded | set(marked)):
            try:
                with self._vm_lock(vm) as held:
                    if held:
                        self._thaw_orphans(vm)
            except (LivesnapError, OSError) as error:
                self._log.warning("sweep_postponed", vm=vm, seen=str(error))

    def _thaw_orphans(self, vm: VmId) -> None:
        """Thaw a vm whose lock we hold, if it still carries an intent, and clear that; mark first, record last."""
        guest = self._guest_of(vm)
        records = {token: run for recorded, token, run in self._journal.frozen_records() if recorded == vm}
        run = guest.runtime_id() if guest.exists() else ""
        mark = guest.frozen_mark() if run else ""
        # A record of an earlier run is of a QEMU that is gone, and its freeze with it.
        if run and (mark or run in records.values()):
            count = guest.thaw(THAW_LIMIT_MS)
            self._log.warning("swept", vm=vm, filesystems=count, tokens=sorted({*records, mark} - {""}))
        if mark:
            guest.clear_frozen_mark()
        for token in records:
            self._journal.thawed(vm, token)

    def _run(self) -> None:
        while True:
            self._woken.wait()
            self._woken.clear()
            if self._stopping:
                return
            with self._lock:
                marked, self._marked = self._marked, set()
            try:
                self.sweep(marked)
            except Exception:  # noqa: BLE001  (a main loop: one bad sweep must not end all later ones)
                self._log.exception("sweep_fault")
