"""Ask a host something that no job stands behind, and wait a bounded time for the answer.

The question goes out once, over the host's own queue: it is not in the outbox, it is not sent again, and it is safe to
lose. Who asks is an API process, the answer comes to whichever Manager's worker takes it; they meet in one SQL row.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common import logs
from common.clock import Clock
from common.errors import BrokerUnavailable
from common.ids import HostId, StepId, new_id
from common.messaging.keys import SigningKey
from common.messaging.messages import Answer, Check, Command
from common.messaging.queues import host_queue
from common.messaging.shell import Publish
from common.messaging.wire import SCHEMA_VERSION, Envelope, readable, seal, task_of
from manager.settings import ManagerSettings
from manager.store import checks
from manager.store.checks import Said
from manager.store.session import Database
from manager.waiting import consumer

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.1
"""A healthy host answers within some 20 ms."""
KEPT: Final = timedelta(minutes=1)
"""How long a row outlives its asker at least: by then no clock of ours still takes it for waited for."""

_log = logs.get()


class NoAnswer(Exception):
    """The host said nothing in time; the message says what was tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An answer: `said_at` by the host's clock, which lies between the other two, by ours, if both clocks agree."""

    answer: Answer
    asked_at: datetime
    said_at: datetime
    heard_at: datetime

    @property
    def clock_ahead(self) -> timedelta:
        """Return how far the host's clock is ahead of ours at least; negative: behind; zero: they may agree."""
        return max(self.said_at - self.heard_at, timedelta(0)) + min(self.said_at - self.asked_at, timedelta(0))


class HostChecks:
    """Asks, and takes the answers. Safe to share between threads."""

    def __init__(
        self, database: Database, key: SigningKey, publish: Publish, clock: Clock, *, settings: ManagerSettings
    ) -> None:
        """Wait for as long as the settings say."""
        self._database = database
        self._key = key
        self._publish = publish
        self._clock = clock
        self._patience = settings.check_wait

    def ask(self, host: HostId, command: Check) -> Heard:
        """Return what the host answers. Raises NoAnswer. A crash leaves a row, which the timers remove."""
        return self.ask_queue(host_queue(host), command)

    def ask_queue(self, queue: str, command: Command) -> Heard:
        """Return what the consumer of a queue answers, a host or an SPM. Raises NoAnswer."""
        asked_at, step = self._clock.now(), StepId(new_id())
        envelope = self._envelope(queue, command, step, asked_at)
        with self._database.write() as connection:
            checks.add(connection, step, envelope.to, asked_at + self._patience + KEPT)
        try:
            self._publish(envelope.to, task_of(command), seal(envelope, self._key), readable(envelope))
            said = self._await(step)
        except BrokerUnavailable as error:
            raise NoAnswer(f"{consumer(queue)} cannot be asked: {error.message}") from error
        finally:
            with self._database.write() as connection:
                checks.remove(connection, step)
        if said is None:
            raise NoAnswer(f"{consumer(queue)} did not answer within {self._patience.total_seconds():g} s")
        return Heard(answer=said.answer, asked_at=asked_at, said_at=said.said_at, heard_at=self._clock.now())

    def take(self, envelope: Envelope, answer: Answer) -> None:
        """Keep a host's answer for whoever waits for it; any other is logged and forgotten."""
        said = Said(answer=answer, said_at=envelope.issued_at)
        with self._database.write() as connection:
            kept = checks.answer(connection, envelope.step, envelope.sender, said)
        if not kept:
            _log.warning("answer.ignored", reason="nobody waits for it", sender=envelope.sender, step=envelope.step)

    def _envelope(self, queue: str, command: Command, step: StepId, now: datetime) -> Envelope:
        return Envelope(
            v=SCHEMA_VERSION,
            sender=self._key.sender,
            to=queue,
            job=None,
            vm=getattr(command, "vm_id", None),
            step=step,
            attempt=0,
            issued_at=now,
            deadline=now + self._patience,
            body=command,
        )

    def _await(self, step: StepId) -> Said | None:
        give_up, pause_s = time.monotonic() + self._patience.total_seconds(), FIRST_PAUSE_S
        while True:
            with self._database.read() as connection:
                said = checks.read(connection, step)
            if said is not None or time.monotonic() >= give_up:
                return said
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.3, LONGEST_PAUSE_S)
