"""Tell those who wait for a change of a job that it has changed: one thread looks for all of them.

A job changes in another process, and SQLite tells nobody. So somebody has to look, and what a look costs decides how
often that may be: on SQLite a question whether anybody has committed (0.004 ms), and only then one for the versions of
all jobs that are waited for, on a kept connection (0.06 ms). A transaction and a query of its own for each that
waits took 0.3 ms, the way to a pool of threads and back not counted, and on processors that others use meanwhile all of
that takes five times as long.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from common import logs
from common.errors import LivesnapError
from common.ids import JobId
from manager.store import jobs
from manager.store.session import Database, last_commit

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.25
"""A snapshot is over in some 100 ms and is watched at once; one that waits for a host may take hours."""
LATE = 0.02
"""A change is told late by this part, at most, of the time that it was waited for."""
AFTER_ERROR_S = 1.0

_log = logs.get()


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Waiting:
    job: JobId
    version: int
    since: float
    wake: Callable[[], object]


class JobChanges:
    """Looks while somebody waits, in a thread of its own. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        """Look into this database. Setting `stopping` wakes everybody, at most 0.25 s later."""
        self.stopping = threading.Event()
        self._database = database
        self._asleep: set[_Waiting] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, job: JobId, version: int, *, since: float, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` once, in another thread, when the job's version is no longer this one, or the job is gone.

        `since`: the moment (`time.monotonic`) from which this version is waited for, which says how soon to look. After
        the block `wake` is not called any more. A database that is away is looked for again, and wakes nobody.
        """
        waiting = _Waiting(job=job, version=version, since=since, wake=wake)
        with self._changed:
            self._asleep.add(waiting)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="job-changes", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._asleep.discard(waiting)
                self._changed.notify()

    def _run(self) -> None:
        try:
            while self._is_needed():
                self._look_while_asked()
        finally:
            with self._changed:
                if self._thread is threading.current_thread():  # a fault of ours: the next who waits starts anew
                    self._thread = None

    def _is_needed(self) -> bool:
        """Tell whether anybody waits; if not, this thread is not the one that the next will count on."""
        with self._changed:
            if not self._asleep:
                self._thread = None
            return bool(self._asleep)

    def _look_while_asked(self) -> None:
        """Look until nobody waits; no connection is held without need."""
        looked: tuple[int | None, frozenset[_Waiting]] = None, frozenset()
        try:
            with self._database.single_statements() as connection:
                while asked := self._when_due():
                    last = last_commit(connection)  # before the look, so that what comes between them is seen next
                    if last is None or looked != (last, asked) or self.stopping.is_set():
                        self._wake(asked, jobs.versions_of(connection, {waiting.job for waiting in asked}))
                        looked = last, asked
        except LivesnapError as away:
            _log.warning("job_changes.not_seen", error=str(away))
            if self.stopping.wait(AFTER_ERROR_S):
                with self._changed:
                    self._wake(frozenset(self._asleep), {})

    def _when_due(self) -> frozenset[_Waiting]:
        """Wait until it is time to look, and return for whom; for nobody: nobody waits any more."""
        begun = time.monotonic()
        with self._changed:
            while self._asleep:
                waited_s = begun - max(waiting.since for waiting in self._asleep)
                left_s = begun + min(max(waited_s * LATE, FIRST_PAUSE_S), LONGEST_PAUSE_S) - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            return frozenset(self._asleep)

    def _wake(self, asked: frozenset[_Waiting], versions: Mapping[JobId, int]) -> None:
        """Wake whom the job's version concerns, unless they have left; at the end of the process everybody."""
        with self._changed:
            for waiting in asked & self._asleep:
                if versions.get(waiting.job) != waiting.version or self.stopping.is_set():
                    self._asleep.remove(waiting)
                    waiting.wake()
