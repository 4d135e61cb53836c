"""The database and its transactions; whatever differs between SQLite and PostgreSQL stands here.

SQLite has one writer at a time: a writing transaction begins with BEGIN IMMEDIATE (so it can never fail half-way with
"database is locked"), and the threads of one process queue up at a lock before it, because SQLite's own waiting is by
sleeping. PostgreSQL locks rows (`for_update`), at READ COMMITTED.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection, Engine, Executable, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ResourceClosedError

from common import logs
from common.errors import LivesnapError
from manager.store.bell import FOLDER_SUFFIX, Bell, Ear, PipeBell, PostgresBell

_log = logs.get()

BUSY_TIMEOUT_MS: Final = 20_000
"""How long SQLite waits for another process's write; ours take milliseconds, a first migration some hundred."""
_POSTGRES_LIMITS: Final[dict[str, Any]] = {
    "application_name": "livesnap",
    # A server that is gone must not hold a thread for ever,
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    # nor a Manager that was stopped in a transaction everybody else.
    "options": "-c lock_timeout=15s -c idle_in_transaction_session_timeout=30s",
}
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_MIGRATION_LOCK: Final = 0x6C697665
"""PostgreSQL's advisory lock that one migrating process holds; any number that nobody else uses."""


class Database:
    """One database. Safe to share between threads; `close` it at the end."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        """Connect lazily to a SQLAlchemy URL; for SQLite the folder is made. Raises LivesnapError(settings_invalid)."""
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if not self.is_sqlite and parsed.get_backend_name() != "postgresql":
            raise LivesnapError("settings_invalid", f"database_url is neither SQLite nor PostgreSQL: {parsed!r}")
        if self.is_sqlite:
            if parsed.database in (None, "", ":memory:"):
                raise LivesnapError("settings_invalid", "database_url: SQLite must have a file that processes share")
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        arguments = {} if self.is_sqlite else _POSTGRES_LIMITS
        self._engine = create_engine(
            parsed, pool_size=pool_size, max_overflow=4, pool_pre_ping=not self.is_sqlite, connect_args=arguments
        )
        if self.is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
        self._one_writer = threading.Lock() if self.is_sqlite else nullcontext()
        beside = Path(f"{parsed.database}{FOLDER_SUFFIX}")
        self._bell: Bell = PipeBell(beside) if self.is_sqlite else PostgresBell(self._engine)

    @property
    def shown(self) -> str:
        """Return the URL as it may stand in a log: without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def engine(self) -> Engine:
        """Return the engine, for the migrations and their test."""
        return self._engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that may write; it is committed at the end of the block, rolled back if that raises.

        A crash inside leaves nothing of it. Raises LivesnapError(database_unavailable) where the database is away.
        """
        with self._one_writer, self._begun("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads; in SQLite all of it sees one moment."""
        with self._begun("BEGIN") as connection:
            yield connection

    @contextmanager
    def single_statements(self) -> Iterator[Connection]:
        """Open a connection on which each statement sees what is committed by then, for who looks again and again."""
        with _translated(), self._engine.connect() as connection:
            if not self.is_sqlite:  # where the driver begins nothing by itself (_prepare_sqlite)
                connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    @contextmanager
    def _begun(self, in_sqlite: str) -> Iterator[Connection]:
        with _translated(), self._engine.begin() as connection:
            if self.is_sqlite:  # here, and not by an event of the engine: with one, each statement asks for listeners
                connection.exec_driver_sql(in_sqlite)
            yield connection

    def ring(self) -> None:
        """Tell those who listen, in every process, that a job has come to rest; call it after the commit.

        A ring that fails is told in the log and does no harm: those who follow jobs see it a little later.
        """
        try:
            with _translated():
                self._bell.ring()
        except (LivesnapError, OSError) as error:
            _log.warning("bell.not_rung", reason=str(error))

    @contextmanager
    def listening(self) -> Iterator[Ear]:
        """Hear every ring from here on. Raises LivesnapError(database_unavailable), also where one cannot listen."""
        try:
            with _translated(), self._bell.listening() as ear:
                yield ear
        except OSError as error:
            raise LivesnapError("database_unavailable", f"listening beside the database: {error}") from error

    def upgrade(self) -> None:
        """Bring the tables to the newest version; one process does it, others that start meanwhile wait for it.

        All of it is one transaction on both databases: a crash leaves the old version. Safe to repeat. Tables that are
        of the newest version already, as at nearly every start, are only looked at: Alembic is not even loaded.
        """
        current, newest = self.versions()
        if current == newest:
            return
        from alembic import command
        from alembic.config import Config

        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def versions(self) -> tuple[str, str]:
        """Return the version of the tables ('' if there are none) and the one that this program works with."""
        with self.read() as connection:
            known = inspect(connection).has_table("alembic_version")
            current = connection.scalar(text("SELECT version_num FROM alembic_version")) if known else None
        return current or "", newest_version()

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()


def newest_version() -> str:
    """Return the number of the last migration, which its file is named after (v0001_….py)."""
    return max(file.name for file in (_MIGRATIONS / "versions").glob("v*.py"))[1:].partition("_")[0]


def upsert(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, update: Sequence[str] | None = None
) -> None:
    """Insert `rows`, and where the primary key exists already set the columns `update` (None: all others; (): nothing).

    One statement for all rows. Sort the rows by key where other writers do the same, or they wait for each other in a
    circle. Rows must all have the same columns.
    """
    if not rows:
        return
    statement = _upserting(connection.dialect.name, table, tuple(rows[0]), None if update is None else tuple(update))
    connection.execute(statement, [dict(row) for row in rows])


@cache
def _upserting(dialect: str, table: Table, columns: tuple[str, ...], update: tuple[str, ...] | None) -> Executable:
    """Make the statement, once: making it costs as much as carrying it out (0.2 ms), at each report of each host."""
    keys = [column.name for column in table.primary_key.columns]
    changed = [name for name in columns if name not in keys] if update is None else list(update)
    statement: Any = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)
    if changed:
        new = {name: statement.excluded[name] for name in changed}
        return cast(Executable, statement.on_conflict_do_update(index_elements=keys, set_=new))
    return cast(Executable, statement.on_conflict_do_nothing(index_elements=keys))


def one_at_a_time(connection: Connection, key: str) -> None:
    """Wait until no other transaction that named the same `key` is open. In SQLite that is so of every writer."""
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})


def last_commit(connection: Connection) -> int | None:
    """Return a number that is another one after each commit of another connection; None where nobody counts them.

    SQLite does (PRAGMA data_version), and tells it without a look at a table. Past SQLAlchemy, which would take ten
    times as long as SQLite.
    """
    if connection.dialect.name != "sqlite":
        return None
    driver: Any = connection.connection.driver_connection
    return int(driver.execute("PRAGMA data_version").fetchone()[0])


@contextmanager
def _translated() -> Iterator[None]:
    """Turn "the database is away" into an error of our own tree; anything else is a fault and stays what it is."""
    try:
        yield
    except (OperationalError, InterfaceError, ResourceClosedError) as error:
        raise LivesnapError("database_unavailable", f"the database did not answer: {_reason(error)}") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise LivesnapError("database_unavailable", f"the database went away: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the driver's first line; SQLAlchemy's own text repeats the statement with its values."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return str(origin).partition("\n")[0][:200]


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver shall not begin transactions on its own: `Database` does
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",  # a commit that was answered survives a power cut (P6); costs about 0.3 ms
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
