"""Stops, at the end of a session, the servers that its instances shared."""

from collections.abc import Iterator

import pytest

from tests.bed.need import need
from tests.e2e.backends import BACKENDS, PRODUCTION


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On RabbitMQ and PostgreSQL, hold back what is about Redis, or chooses its own backends in any case."""
    for item in items if PRODUCTION else ():
        if item.get_closest_marker("own_backends"):
            item.add_marker(pytest.mark.skip(reason="chooses its own broker and database: a part of `make test`"))


@pytest.fixture(scope="session", autouse=True)
def shared_servers() -> Iterator[None]:
    """Start nothing; stop everything."""
    if PRODUCTION and (missing := need("rabbitmq", "postgres")):
        pytest.fail(missing, pytrace=False)
    yield
    BACKENDS.close()
