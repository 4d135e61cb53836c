# mypy: disable-error-code="no-untyped-call"
# amqp says that it has types, but most of its functions have none.
"""The broker as a test sees it: it hears every message, sends it again, and takes messages and broker away."""

import base64
import json
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import amqp
import pytest
import redis

from common.messaging.queues import ANSWERS, MANAGER
from common.messaging.topology import exchange_to
from tests.bed.servers import LOOPBACK, PostgresServer, RabbitServer
from tests.e2e.kit import Livesnap
from tests.e2e.scene import Scene
from tests.wait import eventually

WIRES = [
    pytest.param("steady_wired", id="redis", marks=pytest.mark.xdist_group("steady")),
    pytest.param(
        "production_wired",
        id="rabbitmq",
        marks=[pytest.mark.rabbit, pytest.mark.needs("rabbitmq", "postgres"), pytest.mark.xdist_group("production")],
    ),
]
QUEUES = {queue: exchange_to(queue) for queue in (MANAGER, ANSWERS, "spm.default", "host.h1")}
"""Every queue of a standalone instance, with its exchange on RabbitMQ."""
PATIENCE_S = 5.0
GONE = (redis.ConnectionError, redis.TimeoutError, amqp.AMQPError, OSError)


@dataclass(frozen=True, slots=True)
class Heard:
    """One message as it was published; `raw` is what the broker is given to have it again."""

    queue: str
    task: str
    body: str
    raw: Any

    @property
    def sealed(self) -> tuple[str, str, str]:
        """Sender, signed text and signature."""
        (sender, text, signature), _, _ = json.loads(self.body)
        return sender, text, signature


class Wire(ABC):
    """A broker, and a thread that listens to it; `heard` grows with everything that anybody else publishes."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._stopping = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @abstractmethod
    def send_again(self, messages: Sequence[Heard]) -> None:
        """Publish messages once more, as they were. These are not heard."""

    @abstractmethod
    def lose_all(self) -> None:
        """Take away every message, also what a dead consumer had taken and not acknowledged; there must be some."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the broker, as a crash would."""

    @abstractmethod
    def revive(self) -> None:
        """Have it back, and listen to it again."""

    @abstractmethod
    def _listen(self) -> None:
        """Set `_listening`, and listen until `_stopping`; raises what is in GONE when the broker goes."""

    def hears(self, task: str, *, after: int) -> None:
        """Wait for a message of a task, beyond the first `after` that were heard."""
        eventually(
            lambda: any(heard.task == task for heard in self.heard[after:]), timeout_s=60, what=f"{task} on the wire"
        )

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._stopping.set()
        self._thread.join(10)

    def _wait(self) -> None:
        assert self._listening.wait(60), "nobody could listen to the broker"

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(*GONE):
                self._listen()
            self._listening.clear()
            self._stopping.wait(0.05)


@dataclass(frozen=True, kw_only=True)
class Wired:
    """A scene, and its broker as seen from outside; its PostgreSQL, where it has one."""

    scene: Scene
    wire: Wire
    postgres: PostgresServer | None = None


class RedisWire(Wire):
    """The Redis that a standalone instance has started for itself, and whose supervisor starts it again."""

    def __init__(self, livesnap: Livesnap) -> None:
        super().__init__()
        self._livesnap = livesnap

    def send_again(self, messages: Sequence[Heard]) -> None:
        """Push the same items, between two marks in the order that the monitor sees."""
        with self._client() as client:
            client.echo("deaf")
            for message in messages:
                client.lpush(message.queue, message.raw)
            client.echo("hearing")

    def lose_all(self) -> None:
        """Flush: what is taken and not acknowledged goes too."""
        with self._client() as client:
            assert client.flushall()

    def kill(self) -> None:
        """Kill its process."""
        self._listening.clear()
        os.kill(self._livesnap.pid_of("redis-server"), signal.SIGKILL)

    def revive(self) -> None:
        """Wait until the supervisor has started it."""
        self._wait()

    def _client(self, **options: Any) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self._livesnap.state_dir / "redis.sock"), **options)

    def _listen(self) -> None:
        deaf = False
        with self._client() as client, client.monitor() as monitor:
            self._listening.set()
            while not self._stopping.is_set():  # the processes' own commands keep it turning, several a second
                words = monitor.next_command()["command"].split(maxsplit=2)
                if words[0].upper() == "ECHO":
                    deaf = words[1] == "deaf"
                elif words[0].upper() == "LPUSH" and words[1] in QUEUES and not deaf:
                    item = json.loads(words[2])
                    body = base64.b64decode(item["body"]).decode()
                    self.heard.append(Heard(words[1], item["headers"]["task"], body, words[2]))


class RabbitWire(Wire):
    """A RabbitMQ of the test's own. A queue beside the others gets a copy of everything that passes the exchanges."""

    def __init__(self, server: RabbitServer) -> None:
        super().__init__()
        self._server = server

    def send_again(self, messages: Sequence[Heard]) -> None:
        """Publish to the queues themselves, past the exchanges and so past our ears."""
        with self._connection() as connection:
            channel = connection.channel()
            for message in messages:
                channel.basic_publish(amqp.Message(message.body, **message.raw), routing_key=message.queue)

    def lose_all(self) -> None:
        """Purge every queue, once what its consumer had taken when it died is back in one of them."""
        eventually(lambda: purge(self._server, tuple(QUEUES)), timeout_s=20, what="a message to lose")

    def kill(self) -> None:
        """Kill the node."""
        self._listening.clear()
        self._server.kill9()

    def revive(self) -> None:
        """Start the node."""
        self._server.start()
        self._wait()

    def _connection(self) -> Any:
        return _connection(self._server)

    def _listen(self) -> None:
        with self._connection() as connection:
            channel = connection.channel()
            copies = channel.queue_declare("", exclusive=True).queue
            for queue, exchange in QUEUES.items():
                channel.queue_bind(copies, exchange, routing_key=queue)
            channel.basic_consume(copies, no_ack=True, callback=self._hear)
            self._listening.set()
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)

    def _hear(self, message: Any) -> None:
        headers = message.properties["application_headers"]
        body = message.body if isinstance(message.body, str) else bytes(message.body).decode()
        self.heard.append(Heard(message.delivery_info["routing_key"], headers["task"], body, message.properties))


def purge(server: RabbitServer, queues: Sequence[str]) -> int:
    """Take every message out of these queues that waits there; return how many there were."""
    with _connection(server) as connection:
        channel = connection.channel()
        return sum(channel.queue_purge(queue) for queue in queues)


def _connection(server: RabbitServer) -> Any:
    return amqp.Connection(f"{LOOPBACK}:{server.port}", "guest", "guest", connect_timeout=PATIENCE_S)
