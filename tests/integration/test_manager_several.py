"""Several Managers and APIs at once, on RabbitMQ and PostgreSQL: one job at a time for each machine, and none lost."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common.ids import new_id
from tests.bed.paths import free_port, short_dir
from tests.bed.process import Daemon
from tests.bed.servers import PostgresServer, RabbitServer
from tests.integration.manager_processes import PROJECT, Scene, scene
from tests.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rabbit,
    pytest.mark.needs("rabbitmq", "postgres"),
    pytest.mark.xdist_group("rabbitmq"),
]
ROUNDS = 4


class Api(Daemon):
    """`python -m manager.api` on a port of its own."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        (folder / "token").write_text("secret\n")
        own = {"LIVESNAP_HTTP_PORT": str(self.port), "LIVESNAP_TOKEN_FILE": str(folder / "token")}
        self._environment = {**environment, **own}
        super().__init__(name, folder / f"{name}.log")

    def start(self) -> None:
        self._spawn([sys.executable, "-m", "manager.api"], env=self._environment, cwd=PROJECT)
        eventually(lambda: self.ask("/v1/jobs")[0] == 200, timeout_s=60, what=f"{self.what}: {self.log}")

    def ask(self, path: str, body: dict[str, Any] | None = None, key: str = "") -> tuple[int, Any]:
        """Return status and document; status 0 where nobody answers."""
        self.require_alive()
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json", "Idempotency-Key": key}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {name: value for name, value in headers.items() if value}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, None


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with (
        short_dir() as folder,
        RabbitServer(folder / "rabbit") as rabbit,
        PostgresServer(folder / "pg") as postgres,
        scene(tmp_path, rabbit.url, postgres.url) as made,
    ):
        yield made


def test_several_managers_and_apis_share_a_database(stage: Scene) -> None:
    """Both APIs are asked at the same moment, again and again; half way a Manager is killed, and goes on elsewhere."""
    twin = stage.another_manager()
    apis = [Api(f"api-{number}", stage.folder, stage.manager.environment) for number in (1, 2)]
    with ExitStack() as running, ThreadPoolExecutor(4) as pool:
        for process in (stage.manager, twin, stage.spm, stage.host):
            process.launch()
        running.callback(twin.close)
        for api in pool.map(running.enter_context, apis):
            assert api.alive  # both brought the tables up to date at once, as did both Managers
        stage.await_inventory()
        for number in range(ROUNDS):
            ask_both_at_once(apis, pool, f"n{number}")
            if number == ROUNDS // 2:
                stage.manager.kill9()
            eventually(lambda: all_ended(apis[1]), timeout_s=90, what="every job's end")
    jobs = stage.service.list_jobs()
    assert {job.state for job in jobs} == {"completed"}
    assert len(jobs) == 2 * ROUNDS
    assert stage.service.figures()["outbox_open"] == 0
    assert len(stage.service.list_snapshots("web1")) == ROUNDS
    assert stage.manager.said().count("job.step") > 0
    assert twin.said().count("job.step") > 0


def ask_both_at_once(apis: list[Api], pool: ThreadPoolExecutor, name: str) -> None:
    """Ask both APIs for the same, with one key; and both for a snapshot of one other machine, with a key each."""
    key = new_id()
    same = list(pool.map(lambda api: api.ask("/v1/vms/web1/snapshots", {"name": name}, key), apis))
    assert [status for status, _ in same] == [202, 202], same
    assert len({job["id"] for _, job in same}) == 1
    rivals = list(
        pool.map(lambda api: api.ask("/v1/vms/web2/snapshots", {"name": f"{name}-{api.port}"}, new_id()), apis)
    )
    assert sorted(status for status, _ in rivals) == [202, 409], rivals
    [refused] = [problem for status, problem in rivals if status == 409]
    assert refused["code"] == "vm_busy"


def all_ended(api: Api) -> bool:
    _, jobs = api.ask("/v1/jobs")
    return bool(jobs) and all(job["finished_at"] for job in jobs)
