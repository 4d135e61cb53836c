"""Fixtures: a Manager on each kind of database, with one pool and one host that have reported."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from manager.store.session import Database
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import Fleet, fleet_on, vm


@pytest.fixture
def clock() -> FakeClock:
    """Time that stands still until told."""
    return FakeClock()


@pytest.fixture
def fleet(database: Database, tmp_path: Path, clock: FakeClock) -> Fleet:
    """A Manager that knows the storage domain `main`, and `web1` on the host `h1`."""
    made = Fleet(database, tmp_path, clock)
    made.report_spm()
    made.report_host(vm())
    return made


@pytest.fixture
def twin(fleet: Fleet, database_url: str, tmp_path: Path, clock: FakeClock) -> Iterator[Fleet]:
    """A second Manager on the same database."""
    with fleet_on(database_url, tmp_path, clock) as made:
        yield made
