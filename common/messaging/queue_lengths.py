# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""How many messages wait in each queue, and thereby whether the broker can be reached. Takes nothing from a queue."""

from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

from amqp.connection import Connection as AmqpConnection
from amqp.exceptions import AMQPError, NotFound
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import KombuError

from common.errors import BrokerUnavailable
from common.messaging.urls import is_redis, without_password

TIMEOUT_S: Final = 2
"""A broker that hangs must not hang who asks: a scrape's own limit is 10 s by default."""


class QueueLengths:
    """Asks over one kept connection. Safe to share between threads."""

    def __init__(self, app: Celery) -> None:
        """Use the broker of `app`; connects when it is first asked."""
        self._url = str(app.conf.broker_url)
        self._app = app
        self._lock = Lock()
        self._connection: Connection | None = None

    def look(self, queues: Sequence[str]) -> dict[str, int]:
        """Return the lengths of those queues that exist (on Redis an empty one does too).

        Messages that a consumer has in hand are not counted. On RabbitMQ it is one short question for each queue.
        Raises BrokerUnavailable after some seconds at most.
        """
        with self._lock:
            if self._connection is not None:
                try:
                    return self._look(queues)
                except BrokerUnavailable:
                    pass  # a kept connection that the broker's restart has cut: a new one tells the truth
            return self._look(queues)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _look(self, queues: Sequence[str]) -> dict[str, int]:
        connection = self._connected()
        try:
            return (_redis if is_redis(self._url) else _rabbit)(connection, queues)
        except self._errors(connection) as error:
            self._drop()
            where = without_password(self._url)
            raise BrokerUnavailable("broker_unavailable", f"asking {where} for its queues: {error!r}") from error

    def _connected(self) -> Connection:
        if self._connection is None:
            timeouts = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "max_retries": 0}
            rabbit = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "write_timeout": TIMEOUT_S}
            options = timeouts if is_redis(self._url) else {**rabbit, "max_retries": 0}
            self._connection = self._app.connection_for_read(connect_timeout=TIMEOUT_S, transport_options=options)
        return self._connection

    def _errors(self, connection: Connection) -> tuple[type[Exception], ...]:
        return (KombuError, AMQPError, OSError, *connection.connection_errors, *connection.channel_errors)

    def _drop(self) -> None:
        if self._connection is not None:
            # kombu's own way out says goodbye first, which fails where the broker is gone, and then keeps the socket.
            below: Any = self._connection._connection
            if isinstance(below, AmqpConnection):
                below.collect()
            self._connection.collect()
            self._connection = None


def _redis(connection: Connection, queues: Sequence[str]) -> dict[str, int]:
    channel: Any = connection.default_channel
    if not queues:
        channel.client.ping()
        return {}
    pipeline = channel.client.pipeline(transaction=False)
    for queue in queues:
        pipeline.llen(queue)
    return dict(zip(queues, pipeline.execute(), strict=True))


def _rabbit(connection: Connection, queues: Sequence[str]) -> dict[str, int]:
    lengths, channel = {}, connection.channel()
    for queue in queues:
        try:
            lengths[queue] = int(channel.queue_declare(queue, passive=True).message_count)
        except NotFound:
            channel = connection.channel()  # the broker has closed the other one
    channel.close()
    return lengths
