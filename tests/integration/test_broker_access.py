"""The accounts that are generated: the product works with them, and a stolen one gives away its own process only."""

import json
import stat
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import amqp
import pytest

from common.ids import new_id
from common.messaging.accounts import password_in
from common.messaging.broker import make_app
from common.messaging.messages import Pivot
from common.messaging.queue_lengths import QueueLengths
from common.settings import SharedSettings
from tests.bed.paths import free_port, short_dir
from tests.bed.process import CLEAN_ENV, Daemon
from tests.bed.servers import RabbitServer, RedisServer
from tests.brokers import BROKERS, always_on
from tests.integration.access_kit import (
    ACCOUNTS,
    Guarded,
    RabbitThief,
    RedisThief,
    celery_message,
    guarded,
    provision,
)
from tests.integration.manager_processes import scene as manager_scene
from tests.integration.messaging_kit import ROOT, Scene, raw_item, scene
from tests.wait import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with short_dir() as folder, guarded(request.param, folder) as made:
        yield made


@pytest.fixture
def stage(broker: Guarded, tmp_path: Path) -> Iterator[Scene]:
    with scene(broker.broker, tmp_path, broker.accounts) as made:
        made.empty_queues()
        broker.forget_denials()
        yield made


def test_the_files_are_their_owners_only(broker: Guarded) -> None:
    files = sorted(broker.accounts.iterdir())
    assert {file.name for file in files} >= {f"{account}.url" for account in ACCOUNTS}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(broker.accounts.stat().st_mode) == 0o700
    loaded = next(file for file in files if not file.name.endswith(".url")).read_text()
    secrets = [password_in(broker.url_of(account)) for account in ACCOUNTS]
    assert len(set(secrets)) == len(ACCOUNTS)
    assert [secret for secret in secrets if secret in loaded] == [], "the broker's file holds hashes only"
    before = broker.url_of("host.h1")
    said = provision(broker.broker.url, broker.accounts.with_name("again"), "host.h1")
    assert password_in(before) not in said
    assert "@" not in said


def test_the_whole_way_of_a_job(broker: Guarded, tmp_path: Path) -> None:
    """Manager, SPM, host and a client that enqueues, each with its own account; task events are on."""
    broker.forget_denials()
    url = f"sqlite:///{tmp_path}/livesnap.sqlite"
    with manager_scene(tmp_path, broker.broker.url, url, url_of=broker.url_of) as stage:
        for process in (stage.manager, stage.spm, stage.host):
            process.launch()
        stage.fleet.database.upgrade()
        stage.await_inventory()
        stage.enqueue(new_id(), vm="web1", name="nightly", quiesce="require")
        stage.await_state("completed")
        assert broker.denials() == []
        steal_a_job(broker)
        eventually(lambda: "request.refused" in stage.manager.said(), timeout_s=20, what="the Manager to refuse it")
        assert [job.snapshot_name for job in stage.service.list_jobs()] == ["nightly"]
        said = "".join(process.said() for process in (stage.manager, stage.spm, stage.host))
    secrets = [password_in(broker.url_of(account)) for account in ACCOUNTS]
    assert [secret for secret in secrets if secret in said] == []


def steal_a_job(broker: Guarded) -> None:
    """With a host's account, put a request for a snapshot where the host may write: among the answers."""
    body, headers = celery_message("manager.create_snapshot", vm="web1", name="stolen")
    if isinstance(broker.broker, RedisServer):
        thief = RedisThief(broker.url_of("host.h1"))
        assert thief.may("LPUSH", "manager.answers", raw_item(body, headers, queue="manager.answers"))
        return
    content = amqp.Message(body, content_type="application/json", content_encoding="utf-8", application_headers=headers)
    thief_there = RabbitThief(broker.url_of("host.h1"))
    assert thief_there.may(lambda channel: channel.basic_publish_confirm(content, "to.answers", "manager.answers"))


def test_a_killed_worker_finds_what_it_had(stage: Scene, broker: Guarded) -> None:
    manager = stage.worker("manager", url=stage.url_as("manager"))
    host = stage.worker("host.h1", url=stage.url_as("host.h1"), MESSAGING_VISIBILITY_S="3")
    step = stage.send(stage.command(Pivot))
    eventually(lambda: stage.about("begun", step), timeout_s=10, what="the command's begin")
    host.kill9()
    (stage.folder / "go").touch()
    host.start()
    assert stage.heard(step, timeout_s=30) == "host.h1 host.observed "
    assert manager.alive
    assert broker.denials() == []


def test_the_manager_sees_how_long_queues_are(stage: Scene, broker: Guarded) -> None:
    """Its metrics show them; it may take nothing out of them."""
    stage.send(stage.command())
    settings = SharedSettings(broker_url=stage.url_as("manager"), task_events=False)
    lengths = QueueLengths(make_app(settings, name="watch", queue=None))
    try:
        assert lengths.look(["manager", "manager.answers", "host.h1", "spm.default"])["host.h1"] == 1
    finally:
        lengths.close()
    assert broker.denials() == []


# ---- a stolen account of host h1 -------------------------------------------------------------------------------------

OF_OTHERS = ("host.h2", "spm.default", "manager", "manager.answers")
HELD = tuple(f"u:{name}:{part}" for name in ("host.h2", "spm.default", "manager") for part in ("unacked", "index"))

REDIS_TRIED: dict[str, list[tuple[object, ...]]] = {
    "read the queue of another": [
        (command, queue, *more)
        for queue in OF_OTHERS
        for command, *more in (("LRANGE", 0, -1), ("RPOP",), ("BRPOP", 0.01), ("LLEN",), ("LINDEX", 0), ("DEL",))
    ]
    + [
        ("LMOVE", "host.h2", "host.h1", "LEFT", "LEFT"),
        ("COPY", "host.h2", "host.h1"),
        ("RENAME", "host.h2", "host.h1"),
    ]
    + [("SORT", "host.h2"), ("DUMP", "host.h2"), ("EXISTS", "host.h2"), ("TYPE", "host.h2")],
    "read what another has in hand": [
        (command, key, *more)
        for key in HELD
        for command, *more in (("HGETALL",), ("HGET", "x"), ("HDEL", "x"), ("ZRANGE", 0, -1), ("DEL",), ("GET",))
    ],
    "give orders to an SPM or a host": [
        (command, queue, "{}") for queue in ("spm.default", "host.h2") for command in ("LPUSH", "RPUSH", "SET")
    ],
    "enqueue jobs": [("LPUSH", "manager", "{}"), ("RPUSH", "manager", "{}"), ("RPUSH", "manager.answers", "{}")],
    "run scripts": [
        ("EVAL", "return 1", 0),
        ("EVAL_RO", "return 1", 0),
        ("EVALSHA", "0" * 40, 0),
        ("SCRIPT", "LOAD", "return 1"),
        ("FUNCTION", "LOAD", "#!lua name=x"),
        ("FCALL", "x", 0),
    ],
    "list keys and clients": [
        ("KEYS", "*"),
        ("SCAN", 0),
        ("RANDOMKEY",),
        ("DBSIZE",),
        ("CLIENT", "LIST"),
        ("MONITOR",),
        ("INFO",),
        ("ACL", "LIST"),
        ("ACL", "WHOAMI"),
        ("PUBSUB", "CHANNELS"),
    ],
    "rule the server": [
        ("CONFIG", "GET", "*"),
        ("ACL", "SETUSER", "host.h1", "+@all"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("FLUSHALL",),
        ("SWAPDB", 0, 1),
        ("SHUTDOWN",),
        ("LATENCY", "RESET"),
        ("REPLICAOF", "NO", "ONE"),
        ("MODULE", "LIST"),
        ("MIGRATE", "h", 1, "host.h2", 0, 1),
    ],
    "hear or steer others": [
        ("SUBSCRIBE", "/0.celeryev/task.sent"),
        ("PSUBSCRIBE", "*"),
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("PUBLISH", "other", "{}"),
    ],
}


def test_what_a_stolen_account_is_refused_on_redis(stage: Scene, broker: Guarded) -> None:
    if not isinstance(broker.broker, RedisServer):
        pytest.skip("RabbitMQ has a test of its own")
    other = stage.worker("host.h2", url=stage.url_as("host.h2"))
    in_hand = stage.send(stage.command(Pivot, to="host.h2"))
    eventually(lambda: stage.about("begun", in_hand), timeout_s=10, what="a command in the other host's hands")
    thief = RedisThief(stage.url_as("host.h1"))
    let_in = {what: [words for words in tried if thief.may(*words)] for what, tried in REDIS_TRIED.items()}
    assert let_in == {what: [] for what in REDIS_TRIED}
    assert len(broker.denials()) > 0
    (stage.folder / "go").touch()
    eventually(lambda: stage.about("ended", in_hand), timeout_s=10, what="the end of that command")
    assert other.alive


def sends(exchange: str, key: str, **properties: object) -> Callable[[Any], object]:
    message = amqp.Message("{}", **properties)
    return lambda channel: channel.basic_publish_confirm(message, exchange, key)


def gets(queue: str) -> Callable[[Any], object]:
    return lambda channel: channel.basic_get(queue)


def own_event_queue(channel: Any) -> object:
    """Make a queue as Flower has one."""
    return channel.queue_declare("celeryev.mine", exclusive=True)


RABBIT_TRIED: dict[str, list[Callable[[Any], object]]] = {
    "read the queue of another": [
        *(gets(queue) for queue in (*OF_OTHERS, "dead")),
        *((lambda channel, queue=queue: channel.basic_consume(queue)) for queue in OF_OTHERS),
        *((lambda channel, queue=queue: channel.queue_purge(queue)) for queue in OF_OTHERS),
        lambda channel: channel.queue_bind("host.h1", "to.agents", "host.h2"),
        lambda channel: channel.queue_bind("host.h1", "to.answers", "manager.answers"),
        lambda channel: channel.queue_bind("host.h1", "dlx", ""),
    ],
    "give orders to an SPM or a host": [
        *(sends("", queue) for queue in (*OF_OTHERS, "host.h1")),
        *(sends("to.agents", queue) for queue in ("spm.default", "host.h2", "host.h1")),
        sends("dlx", ""),
    ],
    "enqueue jobs": [sends("to.manager", "manager")],
    "answer with another's name": [sends("to.answers", "manager.answers", user_id="host.h2")],
    "make and remove": [
        *((lambda channel, queue=queue: channel.queue_delete(queue)) for queue in (*OF_OTHERS, "host.h1")),
        *((lambda channel, name=name: channel.exchange_delete(name)) for name in ("celeryev", "to.agents", "dlx")),
        lambda channel: channel.queue_declare("mine"),
        own_event_queue,
        lambda channel: channel.exchange_declare("mine", "fanout"),
    ],
}


def test_what_a_stolen_account_is_refused_on_rabbitmq(stage: Scene, broker: Guarded) -> None:
    if not isinstance(broker.broker, RabbitServer):
        pytest.skip("Redis has a test of its own")
    thief = RabbitThief(stage.url_as("host.h1"))
    let_in = {
        what: [number for number, act in enumerate(tried) if thief.may(act)] for what, tried in RABBIT_TRIED.items()
    }
    assert let_in == {what: [] for what in RABBIT_TRIED}
    assert [stage.waiting(queue) for queue in ("host.h1", "host.h2", "manager")] == [0, 0, 0]


@always_on("redis")
def test_nobody_answers_for_another(stage: Scene) -> None:
    """The broker lets a host write to the Manager, whatever it says; its key does not let it be another."""
    manager = stage.worker("manager", url=stage.url_as("manager"))
    answer = stage.command()
    stolen = stage.sealed(replace(answer, sender="manager", to="host.h1"))
    forged = [replace(stolen, sender="host.h2"), replace(stolen, sender="host.h1")]
    for each in forged:
        stage.publish_as("host.h1", each, "manager", "manager.answer")
    eventually(lambda: manager.said().count("message.rejected") == 2, timeout_s=20, what="a line for each")
    assert stage.lines("heard") == []


# ---- Flower ----------------------------------------------------------------------------------------------------------


class FlowerProcess(Daemon):
    """The real Flower with its account, as an operator starts it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.port = free_port()
        self._environment = {**CLEAN_ENV, "LIVESNAP_BROKER_URL": url, "FLOWER_BASIC_AUTH": "me:secret"}
        super().__init__("flower", folder / "flower.log")

    def start(self) -> None:
        words = ["-A", "common.flower", "flower", "--address=127.0.0.1", f"--port={self.port}", "--read-only"]
        self._spawn([sys.executable, "-m", "celery", *words], env=self._environment, cwd=ROOT)
        eventually(lambda: self.ask("/api/tasks") is not None, timeout_s=30, what=f"Flower: {self.log}")

    def ask(self, path: str) -> object:
        """Return what its API says, None while it does not answer."""
        self.require_alive()
        login = b64encode(b"me:secret").decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Basic {login}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None


@pytest.mark.matrix  # tests/e2e/test_flower.py is played in every run
def test_flower_sees_tasks_and_touches_nothing(stage: Scene, broker: Guarded, tmp_path: Path) -> None:
    stage.worker("manager", url=stage.url_as("manager"))
    stage.worker("host.h1", url=stage.url_as("host.h1"))
    with FlowerProcess(tmp_path, stage.url_as("flower")) as flower:

        def seen() -> bool:
            stage.heard(stage.send(stage.command()))
            return "host.probe" in json.dumps(flower.ask("/api/tasks")) and "manager.answer" in json.dumps(
                flower.ask("/api/tasks")
            )

        eventually(seen, timeout_s=40, what=f"the tasks of host and Manager in Flower: {flower.log}")
        said = flower.log.read_text()
    assert password_in(stage.url_as("flower")) not in said
    assert [line for line in said.splitlines() if "ailed" in line and "Inspect method" not in line] == []
    if isinstance(broker.broker, RedisServer):
        assert broker.denials() == []
        thief = RedisThief(stage.url_as("flower"))
        tried = [
            words for several in REDIS_TRIED.values() for words in several if words[0] not in ("LLEN", "SUBSCRIBE")
        ]
        assert [words for words in tried if thief.may(*words)] == []
    else:
        there = RabbitThief(stage.url_as("flower"))
        tried_there = [act for what, several in RABBIT_TRIED.items() for act in several if what != "make and remove"]
        let_in = [number for number, act in enumerate(tried_there) if there.may(act)]
        assert let_in == []
        removals = RABBIT_TRIED["make and remove"]
        assert [number for number, act in enumerate(removals) if there.may(act)] == [removals.index(own_event_queue)]
