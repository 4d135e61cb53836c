"""The relay: sends again what has no answer yet, until it has one.

A published message can still be lost (Redis takes it off the list before the consumer has noted it), so the outbox
waits for the answer and not for the broker. Several Managers may run relays: a row is claimed, by moving its next
sending, before it is sent.
"""

from datetime import datetime, timedelta
from threading import Event

from common import logs
from common.clock import Clock
from common.errors import BrokerUnavailable
from common.ids import StepId
from common.messaging.shell import Publish
from manager.settings import ManagerSettings
from manager.store import outbox
from manager.store.outbox import Outgoing
from manager.store.session import Database

_log = logs.get()

BATCH = 100
IDLE = timedelta(seconds=1)
"""Longest sleep: so late, at most, is seen what another process has stored."""


class Relay:
    """Sweeps the outbox in a thread of its own."""

    def __init__(self, database: Database, publish: Publish, clock: Clock, *, settings: ManagerSettings) -> None:
        """Send with `publish`, after `resend_first` and then at doubling distances up to `resend_max`."""
        self._database = database
        self._publish = publish
        self._clock = clock
        self._first = settings.resend_first
        self._most = settings.resend_max
        self._woken = Event()

    def wake(self) -> None:
        """Sweep now: somebody has made rows due."""
        self._woken.set()

    def run(self, stop: Event) -> None:
        """Sweep until `stop` is set (and `wake` called). A database that is away is asked again a second later."""
        while not stop.is_set():
            try:
                wait = self.sweep()
            except Exception:  # noqa: BLE001  (a main loop: the thread must outlive any fault, or nothing is re-sent)
                _log.exception("relay.fault")
                wait = IDLE
            self._woken.wait(wait.total_seconds())
            self._woken.clear()

    def sweep(self) -> timedelta:
        """Send everything that is due; return how long there is nothing to do. Raises what the database raises."""
        with self._database.read() as connection:
            due = outbox.due(connection, self._clock.now(), limit=BATCH)
            following = outbox.next_due(connection)
        if due:
            self._send(self._claimed(due))
            return timedelta(0)
        wait = following - self._clock.now() if following else IDLE
        return min(max(wait, timedelta(milliseconds=10)), IDLE)

    def _claimed(self, due: list[Outgoing]) -> list[Outgoing]:
        now = self._clock.now()
        with self._database.write() as connection:
            return [
                each for each in due if outbox.claim(connection, each, now=now, next_send_at=now + self._pause(each))
            ]

    def _pause(self, outgoing: Outgoing) -> timedelta:
        """Return the time to the next sending after this one: 4 s after the second, 8 s after the third, ... 60 s."""
        doublings: int = min(outgoing.deliveries - 1, 16)
        return min(self._first * (1 << doublings), self._most)

    def _send(self, claimed: list[Outgoing]) -> None:
        """Publish; where the broker is away, put all of the rest off a little, so that its return is not missed."""
        for position, outgoing in enumerate(claimed):
            try:
                self._publish(outgoing.queue, outgoing.task, outgoing.sealed, outgoing.readable)
            except BrokerUnavailable as error:
                left = [each.step for each in claimed[position:]]
                _log.warning("resend.failed", steps=len(left), reason=error.message)
                self._note(left, error.message, self._clock.now() + self._first)
                return
            _log.info("resend.sent", job=outgoing.job, step=outgoing.step, deliveries=outgoing.deliveries)
            if outgoing.publish_error:
                self._note([outgoing.step], "", None)

    def _note(self, steps: list[StepId], error: str, again: datetime | None) -> None:
        with self._database.write() as connection:
            outbox.note_publishing(connection, steps, error=error, next_send_at=again)
