"""What several modules share: the servers of a production run, and one scene for all tests that hold processes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from tests.bed.need import need
from tests.bed.servers import PostgresServer, RabbitServer
from tests.e2e.backends import BACKENDS, PRODUCTION
from tests.e2e.kit import place
from tests.e2e.scene import Scene, opened
from tests.e2e.wires import WIRES, RabbitWire, RedisWire, Wire, Wired


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On RabbitMQ and PostgreSQL, hold back what is about Redis, or chooses its own backends in any case."""
    for item in items if PRODUCTION else ():
        if item.get_closest_marker("own_backends"):
            item.add_marker(pytest.mark.skip(reason="chooses its own broker and database: a part of `make test`"))
    # What shares a scene comes together, also where no worker of xdist takes it as a group.
    items.sort(key=lambda item: group if (group := _group(item)) in (("steady",), ("production",)) else ())


@pytest.fixture(scope="session", autouse=True)
def shared_servers() -> Iterator[None]:
    """Start nothing; stop everything."""
    if PRODUCTION and (missing := need("rabbitmq", "postgres")):
        pytest.fail(missing, pytrace=False)
    yield
    BACKENDS.close()


QUICK = {"LIVESNAP_PROBE_PATIENCE_S": "1", "LIVESNAP_REPORT_INTERVAL_S": "2"}
"""A silent host is shown as such after a second."""


class Shared:
    """The scene that is open, for all modules of its group; each test leaves it in order."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._wired: Wired | None = None

    def get(self, opening: Callable[[], AbstractContextManager[Wired]]) -> Wired:
        """Return the scene, opened if it is not."""
        if self._wired is None:
            self._wired = self._open.enter_context(opening())
        return self._wired

    def close(self) -> None:
        """End it, if there is one."""
        self._wired = None
        self._open.close()


SHARED = Shared()
"""At most one at a time: its guest and its processes would go on taking a tenth of a core."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Close the shared scene behind the last test of its group."""
    try:
        return (yield)
    finally:
        if nextitem is None or _group(item) != _group(nextitem):
            SHARED.close()


def _group(item: pytest.Item) -> tuple[object, ...]:
    marker = item.get_closest_marker("xdist_group")
    return marker.args if marker else ()


@contextmanager
def _steady() -> Iterator[Wired]:
    with place() as here, opened(here, environment=QUICK) as scene, _wire(scene) as wire:
        yield Wired(scene=scene, wire=wire)


def _wire(scene: Scene) -> Wire:
    return RabbitWire(BACKENDS.servers()[0]) if PRODUCTION else RedisWire(scene.livesnap)


@contextmanager
def _production() -> Iterator[Wired]:
    with (
        place() as here,
        RabbitServer(here.root / "rabbit") as rabbit,
        PostgresServer(here.root / "postgres") as postgres,
        opened(here, "--broker", rabbit.url, "--database", postgres.url, environment=QUICK) as scene,
        RabbitWire(rabbit) as wire,
    ):
        yield Wired(scene=scene, wire=wire, postgres=postgres)


@pytest.fixture
def steady_wired() -> Wired:
    """The scene on Redis and SQLite that all modules of the group `steady` share."""
    return SHARED.get(_steady)


@pytest.fixture
def production_wired() -> Wired:
    """The same on RabbitMQ and PostgreSQL, for the group `production`."""
    return SHARED.get(_production)


@pytest.fixture
def steady(steady_wired: Wired) -> Scene:
    """The scene on Redis and SQLite (in a production run, on what that has)."""
    return steady_wired.scene


@pytest.fixture
def production(production_wired: Wired) -> Scene:
    """The scene on RabbitMQ and PostgreSQL."""
    return production_wired.scene


@pytest.fixture(params=WIRES)
def wired(request: pytest.FixtureRequest) -> Wired:
    """Either of both."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Wired)
    return found
