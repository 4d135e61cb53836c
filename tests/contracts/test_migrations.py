"""Every migration on a database with data in every table: nothing is lost, and the newest code can use it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import BigInteger, Boolean, Connection, DateTime, Float, Integer, MetaData, Table, insert, select, text

from manager.store import migrations
from manager.store.session import Database, newest_version
from manager.store.tables import metadata
from tests.bed.servers import PostgresServer

pytest_plugins = ["tests.databases"]
SCRIPTS = ScriptDirectory(migrations.__path__[0])
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
KINDS = ("sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres")))
BEFORE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_NUMBERS = count(1)


@pytest.fixture(params=KINDS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables, on either kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/livesnap.sqlite"
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.create_database(f"migrated{next(_NUMBERS)}")
    database = Database(url)
    yield database
    database.close()


def migrate(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0].replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def tables_of(connection: Connection) -> list[Table]:
    """Return what is in the database, what others refer to first."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def sample(column: Any) -> Any:
    """Return a value that a column may hold; the same in every table, so that references hold."""
    kind = column.type
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, BigInteger | Integer):
        return 7
    if isinstance(kind, Float):
        return 1.5
    if isinstance(kind, DateTime):
        return BEFORE
    if column.name.endswith("_json"):
        return "{}"
    return "00000000-0000-4000-8000-000000000001"[: kind.length] if getattr(kind, "length", None) else "text"


def fill(connection: Connection, known: set[str]) -> None:
    """Put one row into each table that has none yet."""
    for table in tables_of(connection):
        if table.name not in known:
            connection.execute(insert(table), [{column.name: sample(column) for column in table.columns}])
            known.add(table.name)


def content(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    return {
        table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
        for table in tables_of(connection)
    }


def test_no_migration_loses_a_row_or_a_value(empty: Database) -> None:
    filled: set[str] = set()
    for revision in REVISIONS:
        with empty.write() as connection:
            before = content(connection)
            migrate(connection, revision)
            after = content(connection)
            for name, rows in before.items():
                kept = [{column: row[column] for column in rows[0] if column in row} for row in after[name]]
                assert kept == rows, f"{revision} changed {name}"
            fill(connection, filled)
    assert filled == set(metadata.tables)
    empty.upgrade()
    with empty.read() as connection:
        for name, table in metadata.tables.items():
            assert len(connection.execute(select(table)).all()) == 1, f"{name} cannot be read by the newest code"


def migrate_half(database: Database) -> None:
    with database.write() as connection:
        migrate(connection, REVISIONS[-1])
        raise RuntimeError("power cut")


def test_a_migration_that_fails_leaves_the_version_before(empty: Database) -> None:
    with empty.write() as connection:
        migrate(connection, REVISIONS[0])
        fill(connection, set())
    with pytest.raises(RuntimeError, match="power cut"):
        migrate_half(empty)
    with empty.write() as connection:
        names = {table.name for table in tables_of(connection)}
        assert names < set(metadata.tables), "nothing of what came later is there"
    empty.upgrade()
    with empty.read() as connection:
        assert {table.name for table in tables_of(connection)} == set(metadata.tables)


def at_version(database: Database, version: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


def test_the_newest_version_is_that_of_the_last_migration() -> None:
    assert newest_version() == SCRIPTS.get_current_head()


def test_versions_are_read_without_alembic(empty: Database) -> None:
    assert empty.versions() == ("", REVISIONS[-1])
    with empty.write() as connection:
        migrate(connection, REVISIONS[0])
    assert empty.versions() == (REVISIONS[0], REVISIONS[-1])
    empty.upgrade()
    assert empty.versions() == (REVISIONS[-1], REVISIONS[-1])


def test_a_version_table_without_a_version_is_no_version(empty: Database) -> None:
    with empty.write() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
    assert empty.versions()[0] == ""
    empty.upgrade()
    assert empty.versions() == (REVISIONS[-1], REVISIONS[-1])


def test_a_database_of_a_newer_version_is_refused_and_stays_as_it_is(empty: Database) -> None:
    empty.upgrade()
    at_version(empty, "9999")
    with pytest.raises(CommandError, match="9999"):
        empty.upgrade()
    assert empty.versions() == ("9999", REVISIONS[-1])


STARTS = """
import sys
from manager.store.session import Database
database = Database(sys.argv[1])
database.upgrade()
assert database.versions()[0] == database.versions()[1]
print("alembic" in sys.modules)
"""


def test_alembic_is_loaded_only_when_there_is_something_to_migrate(empty: Database) -> None:
    url = empty.engine.url.render_as_string(hide_password=False)
    words = [sys.executable, "-c", STARTS, url]
    environment = {**os.environ, "PYTHONPATH": str(Path(migrations.__path__[0]).parents[2])}
    said = [
        subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"], "the first one makes the tables"
