"""What an active SPM does unasked: tell the Manager how its storage domains stand, and purge the trash."""

import threading
from collections.abc import Callable
from datetime import timedelta

from common import logs
from common.clock import Clock
from common.ids import VmId, new_id
from common.messaging.reports import SpmReport
from spm.operations.purge import purge
from spm.pool import Pool
from spm.settings import SpmSettings

_log = logs.get()


class Background:
    """Two periodic threads; `start` them once the lease is held and commands can come in."""

    def __init__(
        self, pool: Pool, clock: Clock, send_report: Callable[[SpmReport], bool], *, min_free_bytes: int
    ) -> None:
        """Report on and purge the storage domains of `pool`; `min_free_bytes` is told with each report."""
        self._pool = pool
        self._clock = clock
        self._send_report = send_report
        self._min_free_bytes = min_free_bytes
        self._incarnation = new_id()
        self._sequence = 0
        self._lock = threading.Lock()
        self._merges: set[VmId] = set()
        self._report_now, self._purge_now = threading.Event(), threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, settings: SpmSettings) -> None:
        """Report now and then periodically; purge periodically."""
        self._run("reports", self.report, settings.report_interval, self._report_now)
        self._run("purge", lambda: self._purge(settings), settings.purge_interval, self._purge_now)

    def _purge(self, settings: SpmSettings) -> None:
        purge(self._pool, self._clock, settings.trash_grace, min_free_bytes=settings.min_free_bytes)

    def report(self) -> None:
        """Send one report; one that is lost is not sent again, the next says as much."""
        self._sequence += 1
        with self._lock:
            merges, self._merges = tuple(sorted(self._merges)), set()
        self._send_report(
            SpmReport(
                pool_id=self._pool.pool_id,
                incarnation=self._incarnation,
                sequence=self._sequence,
                epoch=self._pool.epoch,
                observed_at=self._clock.now(),
                storage_domains=self._pool.mount_reports(),
                min_free_bytes=self._min_free_bytes,
                merges=merges,
            )
        )

    def merge_ended(self, vm: VmId) -> None:
        """Report now that a commit of that vm has ended, well or not. Returns at once."""
        with self._lock:
            self._merges.add(vm)
        self._report_now.set()

    def stop(self) -> None:
        """End both threads; one that is stuck in the kernel (a dead NFS server) is left behind."""
        self._stop.set()
        self._report_now.set()
        self._purge_now.set()
        for thread in self._threads:
            thread.join(timeout=2)

    def _run(self, name: str, act: Callable[[], object], every: timedelta, now: threading.Event) -> None:
        thread = threading.Thread(target=self._loop, args=(name, act, every, now), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _loop(self, name: str, act: Callable[[], object], every: timedelta, now: threading.Event) -> None:
        while True:
            now.clear()  # before the look at `stop`, which is set before `now`: neither is missed
            if self._stop.is_set():
                return
            try:
                act()
            except Exception:  # noqa: BLE001  (a main loop: one bad round must not end all later ones)
                _log.exception("background.fault", loop=name)
            now.wait(every.total_seconds())
