"""Timers: a state that asked for a time gets its TimedOut when that has passed; questions nobody waits for go.

They lie in SQL and not in the broker: a countdown there is lost, or runs twice, past the visibility timeout. Several
Managers may run them: whoever comes second finds the timer moved.
"""

from datetime import UTC, datetime, timedelta
from threading import Event

from common import logs
from common.clock import Clock
from common.ids import JobId
from manager.conductor import Conductor
from manager.flows.base import TimedOut
from manager.store import checks, jobs
from manager.store.session import Database

_log = logs.get()

BATCH = 100
IDLE = timedelta(milliseconds=500)
"""Longest sleep: a timer that another process sets meanwhile is late by this at most."""
AFTER_FAULT = timedelta(seconds=10)
_NEVER = datetime.max.replace(tzinfo=UTC)


class Timers:
    """Looks for timers that have run out, in a thread of its own."""

    def __init__(self, database: Database, conductor: Conductor, clock: Clock) -> None:
        """Feed `conductor`."""
        self._database = database
        self._conductor = conductor
        self._clock = clock
        self._sooner = Event()
        self._next_look = _NEVER

    @property
    def looks_at(self) -> datetime:
        """Return when the timers are looked at next, if nobody wakes this thread; the end of time during a look."""
        return self._next_look

    def wake(self, at: datetime | None = None) -> None:
        """Look at `at` (now), if nothing is looked for before: a timer of this process runs out then."""
        if at is None or at < self._next_look:
            self._sooner.set()

    def run(self, stop: Event) -> None:
        """Go on until `stop` is set (and `wake` called). A database that is away is asked again a little later."""
        while not stop.is_set():
            self._next_look = _NEVER  # until it is known, every timer that is set meanwhile is looked for once more
            self._sooner.clear()
            try:
                wait = self.sweep()
            except Exception:  # noqa: BLE001  (a main loop: the thread must outlive any fault, or no timeout is seen)
                _log.exception("timers.fault")
                wait = IDLE
            self._next_look = self._clock.now() + wait
            self._sooner.wait(wait.total_seconds())

    def sweep(self) -> timedelta:
        """Apply TimedOut to every job whose timer has run out; return how long there is nothing to do."""
        with self._database.read() as connection:
            due = jobs.due(connection, self._clock.now(), limit=BATCH)
            following = jobs.next_wake(connection)
            left_behind = checks.has_expired(connection, self._clock.now())
        if left_behind:
            with self._database.write() as connection:
                checks.remove_expired(connection, self._clock.now())
        self._conductor.admit()
        for job in due:
            self._time_out(job)
        if due:
            return timedelta(0)
        wait = following - self._clock.now() if following else IDLE
        return min(max(wait, timedelta(milliseconds=1)), IDLE)

    def _time_out(self, job: JobId) -> None:
        """Time one job out. One that cannot even be read must not keep the others waiting: it is put off."""
        try:
            self._conductor.apply(job, TimedOut())
        except ValueError:
            _log.exception("timers.unreadable", job=job)
            with self._database.write() as connection:
                jobs.postpone(connection, job, self._clock.now() + AFTER_FAULT)
