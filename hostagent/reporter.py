"""Reports to the Manager: everything at start, after every reconnection and periodically; changed vms at once.

libvirt's events only say that something happened to a vm; what is reported is read anew. Several events of one moment
(a starting vm has five) become one report. A report that is lost is not sent again: the next full one says as much.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta

from common import logs
from common.errors import LivesnapError, NotReady
from common.ids import VmId
from common.messaging.reports import HostReport
from hostagent.connection import Connection, VmEvent
from hostagent.inventory import Inventory

DEBOUNCE_S = 0.05


class Reporter:
    """One thread that looks and sends. Its methods return at once and may be called from anywhere."""

    def __init__(
        self,
        inventory: Inventory,
        send: Callable[[HostReport], object],
        sweep: Callable[[Iterable[VmId]], None],
        every: timedelta,
        *,
        is_busy: Callable[[VmId], bool],
    ) -> None:
        """Send by `send`; `sweep` is told which vms may be frozen by us whenever one was seen.

        A changed vm that `is_busy` is left to the end of the command at work on it, which says `changed` once more: its
        own effects raise events, and a report in the middle would cost time while the guest is frozen.
        """
        self._inventory = inventory
        self._send = send
        self._sweep = sweep
        self._is_busy = is_busy
        self._every_s = every.total_seconds()
        self._lock = threading.Lock()
        self._changed: set[VmId] = set()
        self._merges: set[VmId] = set()
        self._full = True
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._log = logs.get()

    def attach(self, connection: Connection) -> None:
        """Follow the connection: its events, its losses and its returns."""
        connection.on_event(self._happened)
        connection.on_reconnect(self.everything)
        connection.on_lost(self.everything)

    def start(self) -> None:
        """Start the thread; the first report is a full one."""
        threading.Thread(target=self._run, name="reporter", daemon=True).start()

    def stop(self) -> None:
        """End the thread after the report that is being made."""
        self._stopping.set()
        self._woken.set()

    def everything(self) -> None:
        """Send a full report now."""
        with self._lock:
            self._full = True
        self._woken.set()

    def changed(self, vm: VmId) -> None:
        """Send a report on that vm now."""
        with self._lock:
            self._changed.add(vm)
        self._woken.set()

    def _happened(self, event: VmEvent) -> None:
        if event.kind == "block_job":
            with self._lock:
                self._merges.add(event.vm_id)
        self.changed(event.vm_id)

    def _run(self) -> None:
        next_full = time.monotonic() + self._every_s
        while True:
            self._woken.wait(max(0.0, next_full - time.monotonic()))
            self._stopping.wait(DEBOUNCE_S)
            if self._stopping.is_set():
                return
            if time.monotonic() >= next_full:
                self.everything()
            full, changed = self._take()
            if full:
                next_full = time.monotonic() + self._every_s
            try:
                self._report(None if full else {vm for vm in changed if not self._is_busy(vm)})
            except Exception:  # noqa: BLE001  (a main loop: one bad report must not end all later ones)
                self._log.exception("report_fault")

    def _take(self) -> tuple[bool, set[VmId]]:
        self._woken.clear()
        with self._lock:
            full, self._full = self._full, False
            changed, self._changed = self._changed, set()
        return full, changed

    def _report(self, only: set[VmId] | None) -> None:
        if only is not None and not only:
            return
        try:
            report = self._inventory.look(only)
        except NotReady as down:
            report = self._inventory.libvirt_down(down.message)
        except LivesnapError as error:
            self._log.warning("report_failed", seen=str(error))
            return
        if only is None or report.frozen:
            self._sweep(report.frozen)
        report = replace(report, merges=self._take_merges(only))
        self._send(report)
        self._log.info(
            "reported",
            full=report.full,
            vms=len(report.vms),
            libvirt_up=report.libvirt_up,
            merges=len(report.merges),
        )

    def _take_merges(self, only: set[VmId] | None) -> tuple[VmId, ...]:
        """Return those of the vms in the report whose block jobs came to something; a busy one's are told with it."""
        with self._lock:
            told = set(self._merges) if only is None else self._merges & only
            self._merges -= told
        return tuple(sorted(told))
