"""The Manager's worker as a process, on a real broker, between a host and an SPM that speak the real wire."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import text

from common.ids import new_id
from manager.heartbeat import MISSED_AFTER
from manager.store import workers
from tests.bed.paths import short_dir
from tests.bed.servers import PostgresServer, RabbitServer, RedisServer
from tests.crash import crash_at, sampled
from tests.integration.manager_processes import Scene, scene
from tests.wait import eventually

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.slow]
CRASH_POINTS = ("manager.apply.before_commit", "manager.apply.committed", "manager.apply.published")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with short_dir() as folder, RedisServer(folder / "redis") as server:
        yield server


@pytest.fixture
def stage(redis: RedisServer, tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, redis.url, f"sqlite:///{tmp_path}/livesnap.sqlite") as made:
        yield made


def begin(stage: Scene, **manager: str) -> None:
    """Start everything, and wait for the first inventory."""
    stage.manager.launch(**manager)
    begin_peers(stage)


def begin_peers(stage: Scene) -> None:
    stage.spm.launch()
    stage.host.launch()
    stage.fleet.database.upgrade()
    stage.await_inventory()


def steps_asked(stage: Scene) -> list[str]:
    """Return which operations the peers were asked for, each step once however often it came."""
    return [step.split()[1] for step in dict.fromkeys(line.rpartition(" ")[0] for line in stage.asked())]


def see_one_good_snapshot(stage: Scene) -> None:
    [job] = stage.service.list_jobs()
    [snapshot] = stage.service.list_snapshots("web1")
    assert (job.state, job.error) == ("completed", None)
    assert snapshot.consistency == "filesystem"
    assert steps_asked(stage) == ["spm.create", "host.pivot"]
    assert stage.service.figures()["outbox_open"] == 0


def see_the_whole_way(stage: Scene) -> None:
    begin(stage)
    key = new_id()
    for _ in range(3):
        stage.enqueue(key, vm="web1", name="nightly", quiesce="require")
    stage.enqueue(new_id(), vm="nobody")
    stage.enqueue(new_id(), vm="web1", nonsense=1)
    stage.await_state("completed")
    eventually(lambda: stage.manager.said().count("request.") == 5, timeout_s=20, what="all requests to be taken")
    see_one_good_snapshot(stage)
    assert stage.service.show_snapshot("web1/nightly").vm_name == "web1"
    assert "vm_not_found" in stage.manager.said()
    assert "request_malformed" in stage.manager.said()


def test_a_request_goes_its_whole_way_on_redis_and_sqlite(stage: Scene) -> None:
    see_the_whole_way(stage)


@pytest.mark.matrix
@pytest.mark.rabbit
@pytest.mark.needs("rabbitmq", "postgres")
def test_a_request_goes_its_whole_way_on_rabbitmq_and_postgres(tmp_path: Path) -> None:
    with (
        short_dir() as folder,
        RabbitServer(folder / "rabbit") as rabbit,
        PostgresServer(folder / "pg") as postgres,
        scene(tmp_path, rabbit.url, postgres.url) as stage,
    ):
        see_the_whole_way(stage)


@pytest.mark.parametrize("point", sampled(*CRASH_POINTS, suite=CRASH_POINTS[1:2]))
def test_a_worker_that_dies_in_a_step_loses_nothing(stage: Scene, point: str) -> None:
    environment, marker = crash_at(point, stage.folder)
    begin(stage, **environment)
    stage.fleet.create("web1")
    eventually(lambda: not stage.manager.alive, timeout_s=30, what="the worker to die")
    assert marker.exists()
    stage.manager.launch()
    stage.await_state("completed")
    see_one_good_snapshot(stage)


@pytest.mark.matrix
def test_a_worker_that_dies_before_an_answer_comes_loses_nothing(stage: Scene) -> None:
    begin(stage)
    stage.host.kill9()
    stage.fleet.create("web1")
    stage.await_state("pivoting")
    stage.manager.kill9()
    stage.manager.launch()
    stage.host.launch()
    stage.await_state("completed")
    see_one_good_snapshot(stage)


@pytest.mark.matrix
def test_a_broker_that_dies_on_the_way_loses_nothing(stage: Scene, redis: RedisServer) -> None:
    begin(stage)
    redis.kill9()
    job = stage.fleet.create("web1")
    assert (job.state, job.waiting_for) == ("creating_volumes", "the message broker")
    redis.start()
    stage.await_state("completed")
    see_one_good_snapshot(stage)


def test_two_workers_share_the_work(stage: Scene, tmp_path: Path) -> None:
    begin(stage)
    twin = stage.another_manager()
    with twin:
        names = (f"n{number}" for number in count())
        for name in ("web1", "web2"):
            for _ in range(3):
                stage.fleet.create(name, name=next(names))
                stage.await_state("completed")
        handled = [worker.said().count("job.step") for worker in (stage.manager, twin)]
    assert sum(handled) == 12  # two answers for each of six jobs, none of them twice
    assert stage.service.figures()["outbox_open"] == 0


@pytest.mark.needs("postgres")
def test_a_worker_waits_for_its_database_and_comes_back_with_it(redis: RedisServer, tmp_path: Path) -> None:
    with short_dir() as folder:
        postgres = PostgresServer(folder / "pg")
        with scene(tmp_path, redis.url, postgres.url) as stage:
            stage.manager.launch()
            eventually(lambda: "database.awaited" in stage.manager.said(), timeout_s=30, what="the worker to say so")
            with postgres:
                begin_peers(stage)
                postgres.kill9()
                stage.spm.kill9()
                postgres.start()
                stage.spm.launch()
                eventually(lambda: stage.fleet.create("web1"), timeout_s=30, what="the job to be accepted")
                stage.await_state("completed")
                see_one_good_snapshot(stage)


def test_a_database_of_a_newer_version_is_not_touched(redis: RedisServer, tmp_path: Path) -> None:
    with scene(tmp_path, redis.url, f"sqlite:///{tmp_path}/livesnap.sqlite") as stage:
        stage.fleet.database.upgrade()
        with stage.fleet.database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        stage.manager.launch()
        eventually(lambda: not stage.manager.alive, timeout_s=30, what="the worker to end")
        assert "database.unusable" in stage.manager.said()


def test_a_worker_says_that_it_lives_and_how_it_got_on(stage: Scene) -> None:
    figures = stage.folder / "figures"
    figures.mkdir()
    begin(stage, LIVESNAP_METRICS_DIR=str(figures))
    stage.fleet.create("web1")
    stage.await_state("completed")
    assert living(stage) == 1
    file = figures / "livesnap-manager-0.prom"
    wanted = 'livesnap_messages_total{op="spm.created",outcome="done",process="manager",worker="0"} 1.0'
    eventually(lambda: wanted in file.read_text(), timeout_s=30, what="the worker's figures")
    stage.manager.stop()
    assert living(stage) == 0
    assert not file.exists()


def living(stage: Scene) -> int:
    with stage.fleet.database.read() as connection:
        return workers.alive(connection, stage.fleet.clock.now() - MISSED_AFTER)
