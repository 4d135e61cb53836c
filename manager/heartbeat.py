"""A Manager worker says in the database that it lives, so that the API can tell whether anybody takes its jobs on."""

import os
import socket
from datetime import timedelta
from threading import Event
from typing import Final

from common import logs
from common.clock import Clock
from common.errors import LivesnapError
from common.ids import new_id
from manager.store import workers
from manager.store.session import Database
from manager.store.workers import WorkerProcess

EVERY: Final = timedelta(seconds=10)
MISSED_AFTER: Final = timedelta(seconds=35)
"""Three beats and a half: a worker that was not seen for so long is dead, stopped, or without its database."""

_log = logs.get()


class Heartbeat:
    """Beats in a thread of its own."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Speak for this process."""
        self._database = database
        self._clock = clock
        self._me = WorkerProcess(id=new_id(), node=socket.gethostname(), pid=os.getpid(), started_at=clock.now())

    def run(self, stop: Event) -> None:
        """Go on until `stop` is set, then take the row away. A kill leaves it: it is old after MISSED_AFTER."""
        while True:
            self.beat()
            if stop.wait(EVERY.total_seconds()):
                break
        try:
            with self._database.write() as connection:
                workers.leave(connection, self._me)
        except LivesnapError as error:
            _log.warning("heartbeat.left_behind", reason=error.message)

    def beat(self) -> None:
        """Say once that this process lives; where the database is away, the next beat says as much."""
        try:
            with self._database.write() as connection:
                workers.beat(connection, self._me, self._clock.now())
        except LivesnapError as error:
            _log.warning("heartbeat.missed", reason=error.message)
        except Exception:  # noqa: BLE001  (a main loop: one fault must not make a living worker look dead for ever)
            _log.exception("heartbeat.fault")
