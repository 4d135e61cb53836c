"""Use cases of limits: how many jobs may be at work at once on one host, storage domain or pool."""

from collections import Counter

from common import logs
from common.clock import Clock
from manager.conductor import Conductor
from manager.fleet_views import LimitView
from manager.loads import Load, Scope
from manager.store import admission
from manager.store.session import Database

_log = logs.get()


class JobLimits:
    """Shows and sets them, for all Managers at once. Safe to share between threads.

    Every method raises LivesnapError(database_unavailable).
    """

    def __init__(self, database: Database, conductor: Conductor, clock: Clock) -> None:
        """Record in `database`; `conductor` begins what a change lets begin."""
        self._database = database
        self._conductor = conductor
        self._clock = clock

    def show(self) -> list[LimitView]:
        """Return the limits that are set, with how much of each is used."""
        with self._database.read() as connection:
            limits, counted = admission.limits(connection), admission.counted(connection)
        at_work: dict[Load, Counter[Load]] = {}
        waiting: Counter[Load] = Counter()
        for job in counted:
            for load in job.loads:
                owner = limits.owner(load)
                if owner is not None and job.is_waiting:
                    waiting[owner] += 1
                elif owner is not None:
                    at_work.setdefault(owner, Counter())[load] += 1
        return [
            LimitView(
                scope=scope,
                name=name,
                max_jobs=max_jobs,
                at_work=max(at_work.get((scope, name), Counter()).values(), default=0),
                waiting=waiting[(scope, name)],
            )
            for (scope, name), max_jobs in sorted(limits.set_for.items())
        ]

    def put(self, scope: Scope, name: str, max_jobs: int | None) -> list[LimitView]:
        """Set a limit (None: remove it) from the next job on, and let begin what may now; return all limits.

        What is at work goes on, also beyond a lower limit. A crash in between: the timers let begin what may.
        """
        with self._database.write() as connection:
            if max_jobs is None:
                admission.remove_limit(connection, (scope, name))
            else:
                admission.set_limit(connection, (scope, name), max_jobs, self._clock.now())
        _log.info("limit.set", scope=scope, name=name, max_jobs=max_jobs)
        self._conductor.admit()
        return self.show()
