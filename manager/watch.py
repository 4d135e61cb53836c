"""What those who watch are told: figures for Prometheus, and whether the service can do its work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Final, Protocol

from common import logs
from common.clock import Clock
from common.errors import BrokerUnavailable, LivesnapError
from common.messaging.queues import MANAGER, consumed_by, host_queue, spm_queue
from manager.heartbeat import MISSED_AFTER
from manager.settings import ManagerSettings
from manager.store import figures
from manager.store.figures import Ended, Standing
from manager.store.session import Database

SETTLED: Final = timedelta(minutes=2)
"""A job that says it ended so long ago is committed, or never will be: a transaction does not wait as long."""

_log = logs.get()


class Broker(Protocol):
    """What is asked of the broker."""

    def look(self, queues: Sequence[str]) -> dict[str, int]:
        """Return the queues' lengths; raise BrokerUnavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that there is to count at one moment. `queues` is None where the broker does not answer."""

    now: datetime
    standing: Standing
    ended: Ended
    queues: dict[str, int] | None
    silent_before: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must be well; `detail` says what was seen."""

    name: str
    ok: bool
    detail: str


class Watch:
    """Looks at database and broker. Safe to share between threads."""

    def __init__(self, database: Database, broker: Broker, clock: Clock, *, settings: ManagerSettings) -> None:
        """Look at these; hosts and SPMs count as silent by `settings`."""
        self._database = database
        self._broker = broker
        self._clock = clock
        self._silent_after = settings.host_silent_after
        self._lock = Lock()
        self._settled = Ended()
        self._until = datetime.min.replace(tzinfo=UTC)

    # ---- figures ------------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """Count. What has ended is read once in the life of the process: the first time takes longest.

        Raises LivesnapError(database_unavailable).
        """
        now = self._clock.now()
        with self._lock, self._database.read() as connection:
            if now - SETTLED > self._until:
                self._settled.add(figures.ended(connection, self._until, now - SETTLED))
                self._until = now - SETTLED
            whole = Ended()
            whole.add(self._settled)
            whole.add(figures.ended(connection, self._until, now + SETTLED))
            standing = figures.standing(connection, alive_since=now - MISSED_AFTER)
        names = [spm_queue(row.id) for row in standing.pools] + [host_queue(row.id) for row in standing.hosts]
        return Figures(
            now=now,
            standing=standing,
            ended=whole,
            queues=self._queues([*consumed_by(MANAGER), *names]),
            silent_before=now - self._silent_after,
        )

    def _queues(self, names: Sequence[str]) -> dict[str, int] | None:
        try:
            return self._broker.look(names)
        except BrokerUnavailable as error:
            _log.warning("queues.unknown", reason=error.message)
            return None

    # ---- health -------------------------------------------------------------------------------------------------

    def alive(self) -> tuple[Check, ...]:
        """Return what this process itself needs: the database, with the tables that this version works with."""
        try:
            current, wanted = self._database.versions()
        except LivesnapError as error:
            _log.warning("health.database", reason=error.message)
            return (Check(name="database", ok=False, detail="the database does not answer"),)
        said = f"the tables are of version {current or 'none'}, this program's of {wanted}"
        return (
            Check(name="database", ok=True, detail="it answers"),
            Check(name="schema", ok=current == wanted, detail=said),
        )

    def ready(self) -> tuple[Check, ...]:
        """Return all that a snapshot needs: beside `alive` the broker, a Manager worker, the SPMs, and any host."""
        checks = self.alive()
        if all(check.ok for check in checks):
            checks += tuple(self._guarded(name, look) for name, look in self._lookouts())
        return (*checks, self._guarded("broker", self._broker_answers))

    def _lookouts(self) -> tuple[tuple[str, Callable[[], tuple[bool, str]]], ...]:
        return ("worker", self._worker_beats), ("spm", self._spms_report), ("hosts", self._hosts_report)

    def _guarded(self, name: str, look: Callable[[], tuple[bool, str]]) -> Check:
        try:
            ok, detail = look()
        except LivesnapError as error:
            _log.warning("health.failed", check=name, reason=error.message)
            ok, detail = False, "it cannot be told: the database or the broker went away"
        return Check(name=name, ok=ok, detail=detail)

    def _broker_answers(self) -> tuple[bool, str]:
        try:
            self._broker.look([])
        except BrokerUnavailable as error:
            _log.warning("health.broker", reason=error.message)
            return False, "the message broker does not answer"
        return True, "it answers"

    def _worker_beats(self) -> tuple[bool, str]:
        alive = self._standing().workers
        return alive > 0, f"{alive} Manager workers were seen in the last {MISSED_AFTER.seconds} s"

    def _spms_report(self) -> tuple[bool, str]:
        pools, before = self._standing().pools, self._clock.now() - self._silent_after
        silent = [row.id for row in pools if row.seen_at < before]
        if not pools:
            return False, "no SPM has ever reported"
        return not silent, f"silent: {', '.join(silent)}" if silent else f"{len(pools)} pools are served"

    def _hosts_report(self) -> tuple[bool, str]:
        hosts, before = self._standing().hosts, self._clock.now() - self._silent_after
        heard = sum(row.seen_at >= before for row in hosts)
        return heard > 0, f"{heard} of {len(hosts)} hosts were heard from"

    def _standing(self) -> Standing:
        with self._database.read() as connection:
            return figures.standing(connection, alive_since=self._clock.now() - MISSED_AFTER)
