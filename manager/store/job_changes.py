"""Tell those who wait for a change of a job that it has changed: one thread looks for all of them.

A job changes in another process. Its coming to rest is rung (manager/store/bell.py) and looked for at once; what it
does on the way there, and a rest whose ring was lost, is seen by looks now and then. A look costs one question for the
versions of all jobs that are waited for, on a kept connection (0.06 ms), and on SQLite only where anybody has
committed since the last one (0.004 ms to ask).
"""

import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from common import logs
from common.errors import LivesnapError
from common.ids import JobId
from manager.store import jobs
from manager.store.bell import Ear
from manager.store.session import Database, last_commit

LOOK_EVERY_S = 0.25
"""A step on the way is told late by this at most: nobody reads faster, and telling it costs a running snapshot time."""
AFTER_ERROR_S = 1.0

_log = logs.get()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Waiting:
    job: JobId
    version: int
    wake: Callable[[], object]


class JobChanges:
    """Looks while somebody waits, in a thread of its own. Safe to share between threads."""

    def __init__(self, database: Database, *, look_every_s: float = LOOK_EVERY_S) -> None:
        """Look into this database. Setting `stopping` wakes everybody, at most `look_every_s` later."""
        self.stopping = threading.Event()
        self._database = database
        self._look_every_s = look_every_s
        self._asleep: set[_Waiting] = set()
        self._lock = threading.Lock()
        self._stirred = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, job: JobId, version: int, *, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` once, in another thread, when the job's version is no longer this one, or the job is gone.

        After the block `wake` is not called any more. A database that is away is looked for again, and wakes nobody.
        """
        waiting = _Waiting(job=job, version=version, wake=wake)
        with self._lock:
            self._asleep.add(waiting)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="job-changes", daemon=True)
                self._thread.start()
        os.eventfd_write(self._stirred, 1)
        try:
            yield
        finally:
            with self._lock:
                self._asleep.discard(waiting)
            os.eventfd_write(self._stirred, 1)

    def _run(self) -> None:
        try:
            while self._is_needed():
                self._look_while_asked()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():  # a fault of ours: the next who waits starts anew
                    self._thread = None

    def _is_needed(self) -> bool:
        """Tell whether anybody waits; if not, this thread is not the one that the next will count on."""
        with self._lock:
            if not self._asleep:
                self._thread = None
            return bool(self._asleep)

    def _look_while_asked(self) -> None:
        """Look until nobody waits; no connection is held without need."""
        looked: tuple[int | None, frozenset[_Waiting]] = None, frozenset()
        try:
            with self._database.listening() as ear, self._database.single_statements() as connection:
                while asked := self._asking():
                    last = last_commit(connection)  # before the look, so that what comes between them is seen next
                    if last is None or looked != (last, asked) or self.stopping.is_set():
                        self._wake(asked, jobs.versions_of(connection, {waiting.job for waiting in asked}))
                        looked = last, asked
                    self._pause(ear)
        except LivesnapError as away:
            _log.warning("job_changes.not_seen", error=str(away))
            if self.stopping.wait(AFTER_ERROR_S):
                self._wake(self._asking(), {})

    def _asking(self) -> frozenset[_Waiting]:
        with self._lock:
            return frozenset(self._asleep)

    def _pause(self, ear: Ear) -> None:
        """Return when somebody has rung, or has begun or ceased to wait, or when it is time to look all the same."""
        poll = select.poll()
        poll.register(ear, select.POLLIN)
        poll.register(self._stirred, select.POLLIN)
        ready = dict(poll.poll(self._look_every_s * 1000))
        if self._stirred in ready:
            os.eventfd_read(self._stirred)
        if ear.fileno() in ready:
            ear.hear()

    def _wake(self, asked: frozenset[_Waiting], versions: Mapping[JobId, int]) -> None:
        """Wake whom the job's version concerns, unless they have left; at the end of the process everybody."""
        with self._lock:
            for waiting in asked & self._asleep:
                if versions.get(waiting.job) != waiting.version or self.stopping.is_set():
                    self._asleep.remove(waiting)
                    waiting.wake()
