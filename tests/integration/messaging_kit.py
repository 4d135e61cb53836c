"""Brokers and worker processes for the messaging tests."""

import base64
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.ids import StepId, new_id
from common.messaging.broker import Publisher, declare_queues, make_app
from common.messaging.messages import Command, Pivot, Probe, Repair
from common.messaging.queues import ANSWERS, DEAD
from common.messaging.topology import exchange_to
from common.messaging.wire import Envelope, Sealed, readable, seal, task_of
from common.settings import SharedSettings
from tests.bed.process import CLEAN_ENV, Daemon, as_user
from tests.bed.servers import RabbitServer, RedisServer
from tests.unit.common.messaging.samples import VM, Parties, envelope, pivot
from tests.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
Broker = RedisServer | RabbitServer
QUEUES = ("manager", "host.h1", "host.h2")


class Worker(Daemon):
    """One worker process, as an operator would start it."""

    def __init__(self, folder: Path, url: str, me: str, *, threads: int = 2, **environment: str) -> None:
        self.me = me
        self._folder = folder
        self._threads = threads
        self._environment = {
            **CLEAN_ENV,
            "MESSAGING_DIR": str(folder),
            "MESSAGING_ME": me,
            "LIVESNAP_BROKER_URL": url,
            **environment,
        }
        super().__init__(f"worker {me}", folder / f"{me}.log")

    def start(self) -> None:
        """Start, and wait until it says that it is ready."""
        before = self.said().count(" ready.")
        node = ["-n", f"{self.me}-{uuid.uuid4().hex[:6]}@test"]
        words = ["-A", "tests.integration.messaging_app", "worker", "-c", str(self._threads), *node, "-l", "info"]
        self._spawn([sys.executable, "-m", "celery", *words], env=self._environment, cwd=ROOT)
        eventually(lambda: self._ready(before), timeout_s=30, what=f"{self.what}: {self.log}")

    def said(self) -> str:
        """Return its log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def _ready(self, before: int) -> bool:
        self.require_alive()
        return self.said().count(" ready.") > before


@dataclass
class Scene:
    """A broker, and a folder in which the processes leave what they saw."""

    broker: Broker
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    accounts: Path | None = None

    def __post_init__(self) -> None:
        """Make all keys and queues."""
        self.parties = Parties(self.folder)
        for sender in QUEUES:
            self.parties.key(sender)
        declare_queues(self.broker.url, QUEUES)
        settings = SharedSettings(broker_url=self.broker.url, task_events=False)
        self.app = make_app(settings, name="test", queue=None)
        self.publisher = Publisher(self.app)

    def worker(self, me: str, *, url: str = "", **options: Any) -> Worker:
        """Start a worker that ends with the scene."""
        worker = Worker(self.folder, url or self.broker.url, me, **options)
        self.workers.append(worker)
        worker.start()
        return worker

    def command(self, kind: type[Command] = Probe, *, to: str = "host.h1", attempt: int = 1) -> Envelope:
        """Return a fresh command with a minute to go."""
        plain = pivot()
        body = plain if kind is Pivot else (Probe if kind is Probe else Repair)(vm_id=VM, disks=plain.disks)
        now = SystemClock().now()
        times = {"issued_at": now, "deadline": now + timedelta(minutes=1)}
        return envelope(step=StepId(new_id()), to=to, attempt=attempt, body=body, **times)

    def sealed(self, sent: Envelope) -> Sealed:
        """Sign as the sender."""
        return seal(sent, self.parties.key(sent.sender))

    def send(self, sent: Envelope) -> StepId:
        """Publish, and return the step to listen for."""
        self.publisher.publish(sent.to, task_of(sent.body), self.sealed(sent), readable(sent))
        return sent.step

    def lines(self, name: str) -> list[str]:
        """Return what the processes have noted so far."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def heard(self, step: StepId, *, timeout_s: float = 15) -> str:
        """Wait for the Manager to hear of `step`; return what it heard."""
        said = eventually(lambda: self.about("heard", step), timeout_s=timeout_s, what=f"an answer to {step}")
        return said[0].partition(" ")[2]

    def about(self, name: str, step: StepId) -> list[str]:
        """Return the noted lines of `step`."""
        return [line for line in self.lines(name) if line.startswith(step)]

    def exchange_to(self, queue: str) -> str:
        """Return the exchange that leads to `queue`."""
        if isinstance(self.broker, RedisServer):
            return ""
        return exchange_to(queue)

    def url_as(self, user: str) -> str:
        """Return the broker's URL for one of its accounts (`accounts`: the folder that they were made in)."""
        assert self.accounts is not None
        return (self.accounts / f"{user}.url").read_text().strip()

    def publish_as(self, user: str, sent: Sealed, queue: str, task: str) -> None:
        """Publish to `queue` with the rights of one of the broker's accounts."""
        settings = SharedSettings(broker_url=self.url_as(user), task_events=False)
        publisher = Publisher(make_app(settings, name=user, queue=None))
        try:
            publisher.publish(queue, task, sent, "")
        finally:
            publisher.close()

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in `queue`."""
        with self.app.connection_for_read() as connection:
            if isinstance(self.broker, RedisServer):
                return int(connection.default_channel.client.llen(queue))
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)

    def empty_queues(self) -> None:
        """Take away what an earlier test left."""
        with self.app.connection_for_read() as connection:
            if isinstance(self.broker, RedisServer):
                connection.default_channel.client.flushall()
                return
            for queue in (*QUEUES, ANSWERS, DEAD):
                connection.default_channel.queue_purge(queue)

    def close(self) -> None:
        """Stop the processes."""
        for worker in self.workers:
            worker.close()
        self.publisher.close()


@contextmanager
def scene(broker: Broker, folder: Path, accounts: Path | None = None) -> Iterator[Scene]:
    """Yield a scene; its processes end with it."""
    made = Scene(broker=broker, folder=folder, accounts=accounts)
    try:
        yield made
    finally:
        made.close()


def raw_item(body: Any, headers: Any, *, queue: str, **properties: Any) -> bytes:
    """Return a Redis list item as kombu would write it, changed as told."""
    text = body if isinstance(body, str) else json.dumps(body)
    address = {"exchange": "", "routing_key": queue}
    plain = {"delivery_info": address, "delivery_tag": str(uuid.uuid4()), "body_encoding": "base64", "priority": 0}
    item = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": plain | properties,
    }
    return json.dumps(item).encode()


def rabbit_control(broker: RabbitServer, *words: str, text: str = "") -> None:
    """Run one command of `rabbitmqctl` on the broker, as the user it runs as: its cookie is private."""
    argv = [*as_user("rabbitmq"), "/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", "-n", broker.node, *words]
    subprocess.run(argv, env=broker._environment(), cwd=broker.dir, check=True, input=text, text=True, timeout=60)
