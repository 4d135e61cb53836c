"""Tell the other processes at once that a job has come to rest, so that whoever follows it need not ask all the time.

PostgreSQL passes it on (NOTIFY). SQLite tells nobody anything, but its processes share a machine: each that listens has
a named pipe in a folder beside the database. A ring can be lost, with a process that dies between its commit and the
ring; so whoever listens looks now and then all the same.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Engine

from common import logs
from common.errors import LivesnapError
from common.ids import new_id

FOLDER_SUFFIX: Final = ".listeners"
CHANNEL: Final = "livesnap_jobs"
_HIDDEN: Final = "."

_log = logs.get()


class Ear(Protocol):
    """What one that listens hears with. For one thread."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when somebody has rung, or the database has gone away."""
        ...

    def hear(self) -> None:
        """Take the rings that have come; returns at once, also if there are none.

        Raises LivesnapError(database_unavailable).
        """
        ...


class PipeBell:
    """Rings by named pipes in a folder. Safe to share between threads and processes."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; it is made by the first that listens."""
        self._folder = folder

    def ring(self) -> None:
        """Ring at everybody who listens. A pipe that nobody reads is that of a process that was killed: it goes.

        Raises OSError.
        """
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return
        for name in names:
            if not name.startswith(_HIDDEN):
                self._ring_at(self._folder / name)

    def _ring_at(self, pipe: Path) -> None:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except FileNotFoundError:  # it has stopped listening in this moment
            return
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            pipe.unlink(missing_ok=True)
            return
        try:
            os.write(descriptor, b"\0")
        except BlockingIOError:
            _log.debug("bell.full", pipe=pipe.name)  # it has not taken thousands of earlier ones, and will look
        finally:
            os.close(descriptor)

    @contextmanager
    def listening(self) -> Iterator[Ear]:
        """Hear every ring from here on. Raises OSError.

        A crash leaves a pipe, which the next ring removes; one that has no name yet stays, and does no harm.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = new_id()
        new, pipe = self._folder / f"{_HIDDEN}{name}", self._folder / name
        os.mkfifo(new, 0o600)
        try:
            # Open before it has its name, or a ring would take it for one left behind; writable too, so that it never
            # ends when a ringer closes it.
            descriptor = os.open(new, os.O_RDWR | os.O_NONBLOCK)
            try:
                new.rename(pipe)
                yield _PipeEar(descriptor)
            finally:
                os.close(descriptor)
        finally:
            new.unlink(missing_ok=True)
            pipe.unlink(missing_ok=True)


class _PipeEar:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def hear(self) -> None:
        try:
            while os.read(self._descriptor, 4096):
                pass
        except BlockingIOError:
            return


class PostgresBell:
    """Rings by NOTIFY, in a transaction of its own: it takes a lock of the whole server, which a job's commit, that
    waits for the disk, must not hold. Safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        """Use connections of `engine`."""
        self._engine = engine

    def ring(self) -> None:
        """Ring at everybody who listens. Raises what the database raises."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"NOTIFY {CHANNEL}")

    @contextmanager
    def listening(self) -> Iterator[Ear]:
        """Hear every ring from here on, on a connection of its own. Raises what the database raises."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            driver = connection.connection.driver_connection
            connection.detach()  # from the pool, which would hand it to others, still listening
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            yield _PostgresEar(driver, connection.dialect.loaded_dbapi.Error)


class _PostgresEar:
    def __init__(self, driver: Any, errors: type[Exception]) -> None:
        self._driver = driver
        self._errors = errors

    def fileno(self) -> int:
        return int(self._driver.fileno())

    def hear(self) -> None:
        try:
            # Not the driver's `notifies(timeout=0)`, which waits for the next one (psycopg 3.3).
            self._driver.pgconn.consume_input()
            while self._driver.pgconn.notifies():
                pass
        except self._errors as error:
            raise LivesnapError("database_unavailable", f"listening to the database: {error}") from error


Bell = PipeBell | PostgresBell
