"""What several modules share: the servers of a production run, and one scene for all tests that hold processes."""

from collections.abc import Iterator

import pytest

from tests.bed.need import need
from tests.bed.servers import PostgresServer, RabbitServer
from tests.e2e.backends import BACKENDS, PRODUCTION
from tests.e2e.kit import place
from tests.e2e.scene import Scene, opened
from tests.e2e.wires import RabbitWire, RedisWire, Wired


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


QUICK = {"LIVESNAP_PROBE_PATIENCE_S": "1", "LIVESNAP_REPORT_INTERVAL_S": "2"}
"""A silent host is shown as such after a second."""


@pytest.fixture(scope="session")
def steady_wired() -> Iterator[Wired]:
    """A scene on Redis and SQLite for all modules of the group `steady`, each of whose tests leaves it in order.

    Its guest writes seldom, since it runs beside all that follows in this process.
    """
    with place() as here, opened(here, environment=QUICK, pace_ms=100) as scene, RedisWire(scene.livesnap) as wire:
        yield Wired(scene=scene, wire=wire)


@pytest.fixture(scope="session")
def production_wired() -> Iterator[Wired]:
    """The same on RabbitMQ and PostgreSQL, for the group `production`."""
    with (
        place() as here,
        RabbitServer(here.root / "rabbit") as rabbit,
        PostgresServer(here.root / "postgres") as postgres,
        opened(here, "--broker", rabbit.url, "--database", postgres.url, environment=QUICK, pace_ms=100) as scene,
        RabbitWire(rabbit) as wire,
    ):
        yield Wired(scene=scene, wire=wire, postgres=postgres)


@pytest.fixture
def steady(steady_wired: Wired) -> Scene:
    """The scene on Redis and SQLite."""
    return steady_wired.scene


@pytest.fixture
def production(production_wired: Wired) -> Scene:
    """The scene on RabbitMQ and PostgreSQL."""
    return production_wired.scene


@pytest.fixture(
    params=[
        pytest.param("steady_wired", id="redis", marks=pytest.mark.xdist_group("steady")),
        pytest.param(
            "production_wired",
            id="rabbitmq",
            marks=[
                pytest.mark.rabbit,
                pytest.mark.needs("rabbitmq", "postgres"),
                pytest.mark.xdist_group("production"),
            ],
        ),
    ]
)
def wired(request: pytest.FixtureRequest) -> Wired:
    """Either of both."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Wired)
    return found
