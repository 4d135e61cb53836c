"""What RabbitMQ takes out of circulation: seen, and thrown away, by the command line; nothing is lost with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.paths import short_dir
from tests.bed.servers import RabbitServer
from tests.integration.access_kit import Guarded, guarded
from tests.integration.front_kit import front
from tests.integration.messaging_kit import Scene, scene
from tests.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rabbit,
    pytest.mark.needs("rabbitmq"),
    pytest.mark.xdist_group("rabbitmq"),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[Guarded]:
    with short_dir() as folder, guarded("rabbitmq", folder) as made:
        yield made


@pytest.fixture
def stage(broker: Guarded, tmp_path: Path) -> Iterator[Scene]:
    with scene(broker.broker, tmp_path, broker.accounts) as made:
        made.empty_queues()
        yield made


def test_dead_letters_are_listed_and_purged(stage: Scene, broker: Guarded, tmp_path: Path) -> None:
    """With the Manager's own account. Refused by a worker: a message of an unknown kind, among good ones."""
    assert isinstance(broker.broker, RabbitServer)
    stage.worker("manager", url=stage.url_as("manager"))
    stage.worker("host.h1", url=stage.url_as("host.h1"))
    good = stage.command()
    for task in ("host.explode", "host.unheard_of"):
        stage.publisher.publish("host.h1", task, stage.sealed(good), f"{task} vm=web1")
    assert stage.heard(stage.send(good)) == "host.h1 host.observed "
    (tmp_path / "api").mkdir()
    with front(tmp_path / "api", broker_url=broker.url_of("manager")) as served:

        def listed() -> list[tuple[str, str, str, str]]:
            found = served.livesnap("dead-letter", "list", "--json").json
            return [(each["queue"], each["reason"], each["task"], each["about"]) for each in found]

        expected = [("host.h1", "rejected", task, f"{task} vm=web1") for task in ("host.explode", "host.unheard_of")]
        eventually(lambda: listed() == expected, timeout_s=20, what="both dead letters, in their order")
        assert listed() == expected, "looking takes nothing away"
        assert "host.explode vm=web1" in served.livesnap("dead-letter", "list").out
        limited = served.fleet.service.fleet.list_dead_letters(1)
        assert [each.task for each in limited] == ["host.explode"]
        assert limited[0].died_at is not None
        assert served.livesnap("dead-letter", "purge", "--json").json == {"purged": 2}
        assert listed() == []
        broker.broker.stop()
        try:
            ran = served.livesnap("dead-letter", "list", "--json")
            assert (ran.status, ran.json["error"]["code"]) == (3, "broker_unavailable")
        finally:
            broker.broker.start()


def test_redis_has_none(tmp_path: Path) -> None:
    with front(tmp_path, broker_url="redis://127.0.0.1:1/0") as served:
        assert served.livesnap("dead-letter", "list", "--json").json == []
        assert served.livesnap("dead-letter", "purge", "--json").json == {"purged": 0}
