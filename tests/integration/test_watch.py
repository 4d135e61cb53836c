"""Figures and health: what is counted is so, on both databases, and each thing that breaks is told."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kombu.connection import Connection
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from common.errors import BrokerUnavailable
from common.ids import new_id
from common.messaging.broker import declare_queues, make_app
from common.messaging.messages import Outcome
from common.messaging.queue_lengths import QueueLengths
from common.messaging.reports import VmState
from common.settings import SharedSettings
from manager.api.metrics import WatchCollector
from manager.heartbeat import MISSED_AFTER, Heartbeat
from manager.store import workers
from manager.store.session import Database
from manager.store.tables import snapshots
from manager.watch import Watch
from tests.bed.paths import short_dir
from tests.bed.servers import RabbitServer, RedisServer
from tests.fakes.clock import FakeClock
from tests.integration.front_kit import Front, QueuesOf, front
from tests.integration.manager_kit import H2, Fleet, created, deleted, disk, mount, observed, receipt, vm, vm_id

pytest_plugins = ["tests.databases"]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class World:
    """A fleet on a clock that the test turns, and what is counted of it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.clock = FakeClock(datetime(2026, 11, 26, 12, 0, tzinfo=UTC))
        self.fleet = Fleet(database, folder, self.clock)
        self.watch = Watch(database, QueuesOf(self.fleet), self.clock, settings=self.fleet.settings)
        self.fleet.report_spm(epoch=7)
        self.fleet.report_host(vm("web1", disk("web1.qcow2")), vm("db1", state=VmState.PAUSED))

    def series(self, watch: Watch | None = None) -> Series:
        """Return a scrape, as Prometheus reads it."""
        registry = CollectorRegistry()
        registry.register(WatchCollector(watch or self.watch))
        families = text_string_to_metric_families(generate_latest(registry).decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return one series' value."""
        return self.series()[name, frozenset(labels.items())]

    def snapshot(self, machine: str = "web1", ms: float = 100) -> None:
        """Take a snapshot: each of its two steps lasts `ms`."""
        job = self.fleet.create(machine)
        self.clock.advance(ms / 1000)
        self.fleet.answer(created(self.fleet.last()))
        self.clock.advance(ms / 1000)
        self.fleet.answer(observed(Outcome.ALL_NEW, receipt=frozen_receipt()))
        assert self.fleet.service.show_job(job.id).state == "completed"


def frozen_receipt() -> Any:
    return replace(receipt(), freeze_ms=12.0, held_ms=40.0)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, tmp_path)


def test_jobs_are_counted_by_kind_state_and_outcome(world: World) -> None:
    world.snapshot()
    running = world.fleet.create("web1")
    assert world.value("livesnap_jobs", kind="snapshot", state="creating_volumes", outcome="running") == 1
    done = {"kind": "snapshot", "state": "completed", "outcome": "done", "code": ""}
    assert world.value("livesnap_jobs_finished_total", **done) == 1
    world.fleet.service.cancel_job(running.id)
    world.fleet.answer(deleted_of(world.fleet))
    failed = {"kind": "snapshot", "state": "rolled_back", "outcome": "failed", "code": "job_cancelled"}
    assert world.value("livesnap_jobs_finished_total", **failed) == 1
    assert not [name for name, _ in world.series() if name == "livesnap_jobs"]


def deleted_of(fleet: Fleet) -> Any:
    return deleted(fleet.last())


def test_durations_fall_into_their_buckets(world: World) -> None:
    world.snapshot(ms=100)
    for step in ("creating_volumes", "pivoting"):
        labels = {"kind": "snapshot", "step": step}
        assert world.value("livesnap_step_seconds_bucket", **labels, le="0.05") == 0
        assert world.value("livesnap_step_seconds_bucket", **labels, le="0.1") == 1
        assert math.isclose(world.value("livesnap_step_seconds_sum", **labels), 0.1, abs_tol=0.002)
    whole = {"kind": "snapshot", "outcome": "done"}
    assert world.value("livesnap_job_seconds_bucket", **whole, le="0.1") == 0
    assert world.value("livesnap_job_seconds_bucket", **whole, le="0.25") == 1
    assert math.isclose(world.value("livesnap_job_seconds_sum", **whole), 0.2, abs_tol=0.002)
    assert world.value("livesnap_freeze_seconds_bucket", le="0.01") == 0
    assert world.value("livesnap_freeze_seconds_bucket", le="0.025") == 1
    assert world.value("livesnap_held_seconds_bucket", le="0.05") == 1
    assert world.value("livesnap_held_seconds_count") == 1


def test_what_has_ended_is_counted_once_however_often_one_looks(world: World) -> None:
    labels = {"kind": "snapshot", "state": "completed", "outcome": "done", "code": ""}
    for expected in range(1, 5):
        world.snapshot()
        for _ in range(3):
            assert world.value("livesnap_jobs_finished_total", **labels) == expected
            assert world.value("livesnap_held_seconds_count") == expected
            world.clock.advance(50)
    # Another process, or this one after a restart, counts the same.
    fresh = Watch(world.fleet.database, QueuesOf(world.fleet), world.clock, settings=world.fleet.settings)
    ended = {key: value for key, value in world.series(fresh).items() if "seconds_" in key[0] or "finished" in key[0]}
    seen = world.series()
    assert ended == {key: seen[key] for key in ended}


def test_a_guest_that_was_not_frozen_is_in_no_histogram_of_freezes(world: World) -> None:
    world.fleet.create("web1")
    world.fleet.answer(created(world.fleet.last()))
    world.fleet.answer(observed(Outcome.ALL_NEW))
    assert world.value("livesnap_held_seconds_count") == 0
    with world.fleet.database.read() as connection:
        assert connection.execute(snapshots.select()).one().held_ms is None


def test_the_fleet_is_counted(world: World) -> None:
    world.fleet.report_host(host=H2, libvirt_up=False, full=False, problem="no libvirt")
    world.fleet.report_host(vm("web1", disk("web1.qcow2")), vm("db1"), frozen=(vm_id("db1"),))
    world.clock.advance(60)
    world.fleet.report_host(vm("web1", disk("web1.qcow2")), vm("db1"), frozen=(vm_id("db1"),))
    world.clock.advance(60)
    seen_at = world.clock.now().timestamp()
    assert world.value("livesnap_hosts", state="up") == 1
    assert world.value("livesnap_hosts", state="silent") == 1
    assert world.value("livesnap_guests_frozen", host="h1") == 1
    assert world.value("livesnap_guests_frozen", host=H2) == 0
    assert world.value("livesnap_host_last_seen_timestamp_seconds", host="h1") == seen_at - 60
    assert world.value("livesnap_host_last_seen_timestamp_seconds", host=H2) == seen_at - 120
    assert world.value("livesnap_spm_epoch", pool="default") == 7
    storage = {"pool": "default", "storage_domain": "main", "id": str(mount().storage_domain_id)}
    assert world.value("livesnap_storage_free_bytes", **storage) == 1 << 40
    assert world.value("livesnap_storage_total_bytes", **storage) == 1 << 41
    assert world.value("livesnap_storage_problem", **storage) == 0


def test_what_waits_is_counted_with_its_age(world: World) -> None:
    world.fleet.broker_is_up = False
    world.fleet.create("web1")
    world.clock.advance(30)
    assert world.value("livesnap_outbox_open") == 1
    assert world.value("livesnap_outbox_unpublished") == 1
    assert world.value("livesnap_outbox_oldest_seconds") == 30
    assert world.value("livesnap_broker_up") == 0
    world.fleet.broker_is_up = True
    world.fleet.relay.sweep()
    assert world.value("livesnap_broker_up") == 1
    assert world.value("livesnap_queue_messages", queue="spm.default") == 1
    assert world.value("livesnap_queue_messages", queue="host.h1") == 0


def test_chains_are_counted_by_their_depth(world: World) -> None:
    for _ in range(4):
        world.snapshot()
    # The other machine's disk is one volume; this one's: adopted base, adopted leaf, and one for each snapshot.
    assert world.value("livesnap_chain_depth_bucket", le="1.0") == 1
    assert world.value("livesnap_chain_depth_bucket", le="5.0") == 1
    assert world.value("livesnap_chain_depth_bucket", le="10.0") == 2
    assert world.value("livesnap_chain_depth_gsum") == 7


def test_no_machine_is_named(world: World) -> None:
    world.snapshot()
    registry = CollectorRegistry()
    registry.register(WatchCollector(world.watch))
    page = generate_latest(registry).decode()
    assert not re.search("web1|db1|" + vm_id("web1"), page)


# ---- health ------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Front]:
    """An API with all that it takes to be ready."""
    with front(tmp_path) as served:
        served.fleet.report_spm()
        served.fleet.report_host(vm("web1"))
        Heartbeat(served.fleet.database, served.fleet.clock).beat()
        yield served


def unready(api: Front) -> dict[str, str]:
    """Return what is not well, by its name; the status code must say the same."""
    answer = api.ask("GET", "/readyz", token=None)
    bad = {check["name"]: check["detail"] for check in answer.json["checks"] if not check["ok"]}
    assert (answer.status, answer.json["status"]) == ((503, "not_ready") if bad else (200, "ready"))
    assert all(check["detail"] for check in answer.json["checks"])
    return bad


def execute(api: Front, statement: str) -> None:
    with api.fleet.database.write() as connection:
        connection.execute(text(statement))


def test_a_whole_service_is_ready(api: Front) -> None:
    assert unready(api) == {}
    names = [check["name"] for check in api.ask("GET", "/readyz").json["checks"]]
    assert names == ["database", "schema", "worker", "spm", "hosts", "broker"]


def test_without_its_database_it_is_neither_alive_nor_ready(api: Front) -> None:
    file = Path(str(api.fleet.database.engine.url.database))
    api.fleet.database.close()
    file.rename(file.with_suffix(".away"))
    file.mkdir()
    try:
        assert set(unready(api)) == {"database"}
        health = api.ask("GET", "/healthz", token=None)
        assert (health.status, health.json["code"]) == (503, "database_unavailable")
        assert api.ask("GET", "/metrics", token=None).status == 503
    finally:
        file.rmdir()
        file.with_suffix(".away").rename(file)
    assert unready(api) == {}


@pytest.mark.parametrize("version", ["0003", "9999"], ids=["older", "newer"])
def test_tables_of_another_version_are_told(api: Front, version: str) -> None:
    execute(api, f"UPDATE alembic_version SET version_num = '{version}'")
    assert version in unready(api)["schema"]
    health = api.ask("GET", "/healthz", token=None)
    assert (health.status, health.json["code"]) == (503, "not_ready")


def test_without_a_broker_it_is_alive_but_not_ready(api: Front) -> None:
    api.fleet.broker_is_up = False
    assert set(unready(api)) == {"broker"}
    assert api.ask("GET", "/healthz").status == 200


def test_without_a_manager_worker_it_is_not_ready(api: Front) -> None:
    execute(api, "DELETE FROM manager_workers")
    assert set(unready(api)) == {"worker"}


def test_a_worker_that_was_not_seen_for_long_does_not_count(api: Front) -> None:
    long_ago = api.fleet.clock.now() - MISSED_AFTER
    with api.fleet.database.write() as connection:
        connection.execute(text("DELETE FROM manager_workers"))
        one = workers.WorkerProcess(id=new_id(), node="m1", pid=1, started_at=long_ago)
        workers.beat(connection, one, long_ago)
    assert set(unready(api)) == {"worker"}


def test_a_silent_spm_or_none_is_told(api: Front) -> None:
    execute(api, "UPDATE pools SET seen_at = '2026-01-01 00:00:00.000000'")
    assert unready(api) == {"spm": "silent: default"}
    execute(api, "DELETE FROM pools")
    assert unready(api) == {"spm": "no SPM has ever reported"}


def test_hosts_count_only_if_all_are_silent(api: Front) -> None:
    api.fleet.report_host(host=H2)
    execute(api, "UPDATE hosts SET seen_at = '2026-01-01 00:00:00.000000' WHERE id = 'h1'")
    assert unready(api) == {}
    execute(api, "UPDATE hosts SET seen_at = '2026-01-01 00:00:00.000000'")
    assert set(unready(api)) == {"hosts"}


# ---- the broker itself -------------------------------------------------------------------------------------------


def lengths_at(url: str) -> QueueLengths:
    return QueueLengths(make_app(SharedSettings(broker_url=url, task_events=False), name="watch", queue=None))


def publish_three(server: RedisServer | RabbitServer) -> None:
    where = "to.agents" if isinstance(server, RabbitServer) else ""
    with Connection(server.url) as connection:  # type: ignore[no-untyped-call]
        producer = connection.Producer()
        for _ in range(3):
            producer.publish("{}", exchange=where, routing_key="host.h1", delivery_mode=2)


def see_lengths(server: RedisServer | RabbitServer) -> QueueLengths:
    """Check the lengths of two queues; return who told them."""
    declare_queues(server.url, ["manager", "host.h1"])
    publish_three(server)
    seen = lengths_at(server.url)
    assert seen.look(["manager", "host.h1"]) == {"manager": 0, "host.h1": 3}
    assert seen.look([]) == {}
    return seen


def see_its_end(server: RedisServer | RabbitServer, seen: QueueLengths) -> None:
    server.kill9()
    with pytest.raises(BrokerUnavailable):
        seen.look([])


@pytest.mark.needs("redis-server")
def test_queue_lengths_on_redis() -> None:
    with short_dir() as folder, RedisServer(folder / "redis") as server:
        seen = see_lengths(server)
        see_its_end(server, seen)
        server.start()
        assert seen.look(["host.h1"]) == {"host.h1": 3}
        server.kill9()
        server.start()
        assert seen.look([]) == {}  # over a kept connection that was cut meanwhile
        seen.close()


@pytest.mark.needs("rabbitmq")
@pytest.mark.rabbit
@pytest.mark.slow
def test_queue_lengths_on_rabbitmq() -> None:
    with short_dir() as folder, RabbitServer(folder / "rabbit") as server:
        seen = see_lengths(server)
        assert seen.look(["host.none", "host.h1"]) == {"host.h1": 3}
        see_its_end(server, seen)
        seen.close()
