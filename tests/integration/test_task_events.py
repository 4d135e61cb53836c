"""Task events, which Flower lives on: sent by a process, or not, as its own settings say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed.paths import short_dir
from tests.bed.servers import RedisServer
from tests.integration.messaging_kit import Scene, scene
from tests.integration.test_broker_access import FlowerProcess
from tests.wait import eventually

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis-server"), pytest.mark.xdist_group("redis")]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with short_dir() as folder, RedisServer(folder / "b") as redis, scene(redis, tmp_path) as made:
        yield made


def test_a_process_that_sends_no_events_is_not_seen(stage: Scene, tmp_path: Path) -> None:
    stage.worker("manager")
    stage.worker("host.h1", LIVESNAP_TASK_EVENTS="false")
    stage.worker("host.h2")
    with FlowerProcess(tmp_path, stage.broker.url) as flower:

        def workers() -> set[str]:
            """Have one command done by each host, and return which workers Flower has seen at work."""
            for host in ("host.h1", "host.h2"):
                stage.heard(stage.send(stage.command(to=host)))
            found: Any = flower.ask("/api/tasks") or {}
            return {str(task["worker"]).partition("-")[0] for task in found.values() if task.get("worker")}

        eventually(lambda: workers() >= {"manager", "host.h2"}, timeout_s=40, what=f"the others: {flower.log}")
        assert workers() == {"manager", "host.h2"}
