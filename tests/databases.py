"""The `database` fixture: the same tests on SQLite and on PostgreSQL; a module says `pytest_plugins = [this one]`."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from manager.store.session import Database
from tests.bed.paths import short_dir
from tests.bed.servers import PostgresServer

KINDS = ("sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres")))
_NUMBERS = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server for all tests of this process, with one database that has its tables already, to copy from."""
    with short_dir() as folder, PostgresServer(folder / "pg") as server:
        template = Database(server.create_database("template"))
        template.upgrade()
        template.close()
        yield server


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of its own, on either kind; without tables on SQLite."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/livesnap.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"test{next(_NUMBERS)}"
    server.sql(f'CREATE DATABASE "{name}" TEMPLATE "template"')
    return server.url.rpartition("/")[0] + f"/{name}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with its tables, empty."""
    made = Database(database_url)
    made.upgrade()
    yield made
    made.close()
