# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""Two worker processes, a real broker between them, and everything that can happen to the three."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.entity import Exchange, Queue

from common.clock import SystemClock
from common.errors import BrokerUnavailable
from common.messaging.broker import declare_queues, remove_queue
from common.messaging.messages import Pivot, Repair
from common.messaging.reports import HostReport
from common.messaging.shell import Shell
from common.messaging.wire import readable, task_of
from tests.bed.paths import short_dir
from tests.bed.servers import RabbitServer, RedisServer
from tests.brokers import BROKERS, always_on
from tests.crash import crash_at
from tests.integration import messaging_hostile as hostile
from tests.integration.messaging_kit import Broker, Scene, Worker, scene
from tests.wait import eventually


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with short_dir() as folder:
        made: Broker = RedisServer(folder / "b") if request.param == "redis" else RabbitServer(folder / "b")
        with made:
            yield made


@pytest.fixture
def stage(broker: Broker, tmp_path: Path) -> Iterator[Scene]:
    """A scene on a broker with empty queues."""
    if not broker.alive:
        broker.start()
    with scene(broker, tmp_path) as made:
        made.empty_queues()
        yield made


def test_commands_and_answers(stage: Scene) -> None:
    stage.worker("manager")
    stage.worker("host.h1")
    assert stage.heard(stage.send(stage.command())) == "host.h1 host.observed "
    for attempt, expected in {404: "refused not_ready", 405: "refused busy", 409: "refused stale"}.items():
        assert stage.heard(stage.send(stage.command(attempt=attempt))) == f"host.h1 {expected}"
    assert stage.heard(stage.send(stage.command(attempt=418))) == "host.h1 failed guest_agent_missing"
    assert stage.heard(stage.send(stage.command(attempt=500))) == "host.h1 failed internal_error"
    assert stage.heard(stage.send(stage.command(Repair))) == "host.h1 failed internal_error"
    late = stage.command()
    assert stage.heard(stage.send(replace(late, deadline=late.issued_at))) == "host.h1 refused expired"


@always_on("rabbitmq")
def test_reports(stage: Scene) -> None:
    stage.worker("manager")
    key = stage.parties.key("host.h2")
    shell = Shell("host.h2", key, stage.parties.ring, SystemClock(), handlers={}, publish=stage.publisher.publish)
    now = SystemClock().now()
    report = HostReport(
        host_id="h2",  # type: ignore[arg-type]
        boot_id="b",
        incarnation="first",
        sequence=1,
        observed_at=now,
        libvirt_up=True,
        full=True,
    )
    assert shell.send_report(report)
    eventually(lambda: "host.h2 host.report first" in str(stage.lines("heard")), timeout_s=15, what="the report")


def test_any_celery_client_may_ask(stage: Scene) -> None:
    """DESIGN section 6: jobs can be enqueued without HTTP. On RabbitMQ the client must not declare the queue."""
    stage.worker("manager")
    client = Celery("client", broker=stage.broker.url, set_as_current=False)
    name = "manager.create_snapshot"
    if isinstance(stage.broker, RedisServer):
        client.send_task(name, kwargs={"vm": "web1"}, queue="manager")
    else:
        queue = Queue("manager", Exchange("to.manager"), routing_key="manager", no_declare=True)
        client.send_task(
            name, kwargs={"vm": "web1"}, queue=queue, exchange="to.manager", routing_key="manager", declare=[]
        )
    client.close()
    eventually(lambda: stage.lines("requested") == ["web1"], timeout_s=15, what="the request")


def test_a_removed_queue_takes_everything_with_it(stage: Scene) -> None:
    """What waits in it, and what a dead consumer had taken and not acknowledged: both would be carried out later."""
    armed, hit = crash_at("shell.before_answer", stage.folder)
    worker = stage.worker("host.h1", **armed)
    stage.send(stage.command())
    eventually(lambda: hit.exists() and not worker.alive, timeout_s=15, what="the consumer's death")
    step = stage.send(stage.command())
    remove_queue(stage.broker.url, "host.h1")
    remove_queue(stage.broker.url, "host.h1")
    declare_queues(stage.broker.url, ["host.h1"])
    stage.worker("manager")
    stage.worker("host.h1")
    assert stage.heard(stage.send(stage.command(attempt=2))) == "host.h1 host.observed "
    assert stage.waiting("host.h1") == 0
    assert stage.about("heard", step) == []


@always_on("rabbitmq")
def test_hostile_messages_do_nothing(stage: Scene) -> None:
    stage.worker("manager")
    host = stage.worker("host.h1")
    pid = host.pid
    sent = hostile.publish_all(stage, "host.h1")
    if isinstance(stage.broker, RedisServer):
        items = hostile.raw_items("host.h1")
        with redis.Redis.from_url(stage.broker.url) as client:
            for item in items:
                client.lpush("host.h1", item)
        sent += len(items)
    assert stage.heard(stage.send(stage.command()), timeout_s=30) == "host.h1 host.observed "
    assert (host.alive, host.pid) == (True, pid)
    # One of them is allowed to Celery and is silently dropped there: an expiry that has passed.
    eventually(lambda: host.said().count("message.rejected") >= sent - 1, timeout_s=10, what="a line for each")
    assert "Unrecoverable" not in host.said()
    assert stage.waiting(hostile.VICTIM) == 0, "nothing was published for its author"
    if isinstance(stage.broker, RabbitServer):
        assert stage.waiting("dead") > 0, "kept to be looked at"
    host.restart()
    assert stage.heard(stage.send(stage.command())) == "host.h1 host.observed "
    assert stage.waiting(hostile.VICTIM) == 0, "nothing was put back to where it never was"


@always_on("rabbitmq")
def test_the_forged_are_not_answered(stage: Scene) -> None:
    stage.worker("manager")
    host = stage.worker("host.h1")
    good = stage.command()
    sealed = stage.sealed(good)
    forged = [
        replace(sealed, body=sealed.body.replace(good.step, stage.command().step)),
        replace(sealed, sender="host.h2"),
        stage.sealed(stage.command(to="host.h2")),
    ]
    for each in forged:
        stage.publisher.publish("host.h1", "host.probe", each, "forged")
    assert stage.heard(stage.send(stage.command())) == "host.h1 host.observed "
    eventually(lambda: host.said().count("message.rejected") == len(forged), timeout_s=10, what="a line for each")
    assert len(stage.lines("heard")) == 1


def test_a_killed_worker_loses_nothing(stage: Scene) -> None:
    stage.worker("manager")
    host = stage.worker("host.h1", MESSAGING_VISIBILITY_S="3")
    first = host.pid
    step = stage.send(stage.command(Pivot))
    eventually(lambda: stage.about("begun", step), timeout_s=10, what="the command's begin")
    host.kill9()
    (stage.folder / "go").touch()
    host.start()
    assert stage.heard(step, timeout_s=30) == "host.h1 host.observed "
    pids = [int(line.split()[1]) for line in stage.about("begun", step)]
    assert pids[0] == first
    assert host.pid in pids[1:]


@always_on("redis")
def test_a_worker_that_dies_before_it_answers(stage: Scene) -> None:
    """The crash window between effect and answer: the answer is lost, asking again brings it."""
    stage.worker("manager")
    armed, hit = crash_at("shell.before_answer", stage.folder)
    host = stage.worker("host.h1", **armed)
    command = stage.command()
    stage.send(command)
    eventually(lambda: not host.alive, timeout_s=10, what="the worker's death")
    assert hit.exists()
    assert stage.lines("heard") == []
    host.start()
    stage.send(command)
    assert stage.heard(command.step) == "host.h1 host.observed "


@always_on("rabbitmq")
def test_a_stopping_worker_finishes_its_command(stage: Scene) -> None:
    stage.worker("manager")
    host = stage.worker("host.h1")
    step = stage.send(stage.command(Pivot))
    eventually(lambda: stage.about("begun", step), timeout_s=10, what="the command's begin")
    with ThreadPoolExecutor(1) as executor:
        stopping = executor.submit(host.stop)
        eventually(lambda: "Warm shutdown" in host.said(), timeout_s=10, what="the warm shutdown")
        (stage.folder / "go").touch()
        stopping.result()
    assert stage.heard(step) == "host.h1 host.observed "


def test_a_broker_that_is_killed_and_comes_back(stage: Scene) -> None:
    stage.worker("manager")
    host = stage.worker("host.h1")
    assert stage.heard(stage.send(stage.command())) == "host.h1 host.observed "
    pid = host.pid
    host.sigstop()
    waiting = stage.send(stage.command())
    stage.broker.kill9()
    host.sigcont()
    with pytest.raises(BrokerUnavailable, match="sending host"):
        quickly(lambda: stage.send(stage.command()), limit_s=2)
    stage.broker.start()
    eventually(lambda: answered(stage), timeout_s=60, what="an answer after the restart")
    assert (host.alive, host.pid) == (True, pid)
    if isinstance(stage.broker, RabbitServer):
        assert stage.heard(waiting) == "host.h1 host.observed ", "a confirmed message is on disk"


@always_on("redis")
def test_a_broker_that_dies_under_a_worker_with_full_hands(stage: Scene) -> None:
    """Every thread is at work and finishes while the broker is away, so that not one message can be acknowledged."""
    stage.worker("manager")
    host = stage.worker("host.h1", threads=2)
    steps = [stage.send(stage.command(Pivot)) for _ in range(2)]
    eventually(lambda: all(stage.about("begun", step) for step in steps), timeout_s=10, what="both commands' begin")
    stage.broker.kill9()
    (stage.folder / "go").touch()
    eventually(lambda: all(stage.about("ended", step) for step in steps), timeout_s=10, what="both commands' end")
    eventually(lambda: host.said().count("publish.failed") >= 2, timeout_s=20, what="two answers that cannot be sent")
    stage.broker.start()
    eventually(lambda: answered(stage), timeout_s=60, what="an answer after the restart")


@pytest.mark.parametrize("broker", BROKERS[:1], indirect=True)
@pytest.mark.parametrize("answer", ["ack", "reject"])
def test_an_acknowledgement_in_vain_frees_its_place(stage: Scene, answer: str) -> None:
    """Else a worker with full hands never takes another message, and never notices that its broker had been away."""
    got: list[Any] = []
    stage.send(stage.command())
    with stage.app.connection_for_read() as connection:
        consumer = connection.Consumer([stage.app.amqp.queues.select_add("host.h1")], on_message=got.append)
        consumer.qos(prefetch_count=1)
        consumer.consume()
        eventually(lambda: got or connection.drain_events(timeout=5), timeout_s=10, what="the message")
        assert not consumer.channel.qos.can_consume()
        stage.broker.kill9()
        with pytest.raises(connection.connection_errors):
            getattr(got[0], answer)()
        assert consumer.channel.qos.can_consume()


def answered(stage: Scene) -> bool:
    """Send one more command, as the outbox would, and tell whether it or an earlier one is answered."""
    before = len(stage.lines("heard"))
    stage.send(stage.command())
    try:
        eventually(lambda: len(stage.lines("heard")) > before, timeout_s=3, what="an answer")
    except AssertionError:
        return False
    return True


def quickly(act: Any, *, limit_s: float) -> None:
    """Run `act`, which raises; fail instead if that takes longer than `limit_s`."""
    begun = time.monotonic()
    try:
        act()
    finally:
        assert time.monotonic() - begun < limit_s


@pytest.mark.parametrize("broker", BROKERS[:1], indirect=True)
def test_a_channel_keeps_one_client_while_its_pool_lasts(stage: Scene) -> None:
    with stage.app.connection_for_write() as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
            assert first is not channel.client, "the one that waits for messages is its own"
            assert first.ping()
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.connection_pool is channel.pool
            assert third.ping()


def test_a_broker_that_was_never_there(stage: Scene) -> None:
    stage.broker.stop()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable) as caught:
            quickly(lambda: stage.send(stage.command()), limit_s=2)
        assert "guest:guest" not in caught.value.message
    if isinstance(stage.broker, RabbitServer):
        with pytest.raises(BrokerUnavailable, match="declaring"):
            declare_queues(stage.broker.url, ["manager"])
    stage.broker.start()
    stage.send(stage.command())
    assert stage.waiting("host.h1") == 1


def test_a_broker_that_does_not_answer(stage: Scene) -> None:
    stage.send(stage.command())
    stage.broker.sigstop()
    try:
        with pytest.raises(BrokerUnavailable):
            quickly(lambda: stage.send(stage.command()), limit_s=15)
    finally:
        stage.broker.sigcont()
    before = eventually(lambda: stage.waiting("host.h1"), timeout_s=10, what="the first message")
    stage.send(stage.command())
    eventually(lambda: stage.waiting("host.h1") > before, timeout_s=10, what="one more message")


@pytest.mark.parametrize("broker", BROKERS[1:], indirect=True)
def test_a_queue_that_does_not_exist(stage: Scene) -> None:
    """A confirmation left over from a refused message must not pass for that of the next one."""
    for _ in range(3):
        with pytest.raises(BrokerUnavailable, match="NO_ROUTE"):
            stage.send(stage.command(to="host.nowhere"))
        stage.send(stage.command())
    assert stage.waiting("host.h1") == 3


@pytest.mark.parametrize("broker", BROKERS[1:], indirect=True)
def test_a_worker_whose_queue_was_removed_says_so_and_ends(stage: Scene) -> None:
    remove_queue(stage.broker.url, "host.h2")
    worker = Worker(stage.folder, stage.broker.url, "host.h2")
    with pytest.raises(RuntimeError, match="has ended"):
        worker.start()
    (line,) = [line for line in worker.said().splitlines() if "queue.missing" in line]
    assert "host.h2" in line
    assert "livesnap host add" in line


@always_on("rabbitmq")
def test_many_threads_share_a_publisher(stage: Scene) -> None:
    stage.worker("manager", threads=4)
    stage.worker("host.h1", threads=4)
    with ThreadPoolExecutor(8) as executor:
        steps = list(executor.map(lambda _: stage.send(stage.command()), range(200)))
    eventually(lambda: len(stage.lines("heard")) >= 200, timeout_s=40, what="200 answers")
    assert {line.split()[0] for line in stage.lines("heard")} == set(steps)


def test_what_is_on_the_broker(stage: Scene) -> None:
    """People see ids; the broker holds no password, and on Redis no key that another process also needs."""
    command = stage.command()
    stage.send(command)
    if isinstance(stage.broker, RabbitServer):
        return
    with redis.Redis.from_url(stage.broker.url) as client:
        assert client.keys() == [b"host.h1"]
        item = json.loads(client.lrange("host.h1", 0, -1)[0])
    assert item["headers"]["argsrepr"] == readable(command)
    assert item["headers"]["task"] == task_of(command.body) == "host.probe"
    host = stage.worker("host.h1")
    eventually(lambda: "succeeded" in host.said(), timeout_s=10, what="the end of the task")
    with redis.Redis.from_url(stage.broker.url) as client:
        left = set(client.scan_iter())
    assert {key for key in left if not key.startswith(b"u:host.h1:")} <= {b"manager.answers"}


@pytest.mark.parametrize("broker", BROKERS[:1], indirect=True)
def test_redis_on_a_socket(stage: Scene) -> None:
    assert isinstance(stage.broker, RedisServer)
    for me in ("manager", "host.h1"):
        stage.worker(me, url=f"redis+socket://{stage.broker.socket}")
    hostile.publish_all(stage, "host.h1")
    assert stage.heard(stage.send(stage.command())) == "host.h1 host.observed "
