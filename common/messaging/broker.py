# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""The Celery app of a process, and publishing. Every setting that makes the brokers safe for us stands here.

Celery is a courier: at least once, perhaps twice at the same time, perhaps (on Redis) not at all. Whether anything
was done, and when to ask again, is known by the SQL outbox and the journals only; hence no result backend, no retry,
no countdown, no canvas.

    Redis      one list per queue, by the default exchange, so that no shared binding key is touched and an access
               list can name every key a process needs; the unacknowledged ones under `u:<queue>:`, private to it.
    RabbitMQ   quorum queues behind three direct exchanges: `to.manager` for requests, `to.answers`, and `to.agents`, so
               that a host's account may publish to the second only. Queues and exchanges, that of the task events too,
               are declared by `declare_queues`, never by consumers: to declare is a right.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import KombuError
from kombu.pools import ProducerPool

from common import logs
from common.errors import BrokerUnavailable
from common.messaging import access, guard, topology
from common.messaging.queues import DEAD, DEAD_EXCHANGE, consumed_by, inbox_of
from common.messaging.shell import Shell
from common.messaging.urls import is_redis, without_password
from common.messaging.wire import Sealed
from common.settings import SharedSettings

VISIBILITY_TIMEOUT_S: Final = 600
"""Redis gives a message to somebody else after this long: longer than the longest handler, else it runs twice."""

_PUBLISHERS: Final = 4
"""Kept connections of one Publisher; more threads than this wait for each other."""

_PUBLISH_TIMEOUT_S: Final = 2
_RETRY: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
"""One more try, for a kept connection whose broker has been restarted; anything longer is the outbox's business."""

_log = logs.get()


def make_app(settings: SharedSettings, *, name: str, queue: str | None, events: bool | None = None) -> Celery:
    """Return the Celery app that consumes `queue` (None: only publishes). Connects to nothing yet.

    `events` overrides the setting `task_events`.
    """
    guard.install()
    url = settings.broker_url
    parts = {"events": guard.SafeEvents, "control": guard.NoControl}
    app = Celery(name, broker=url, set_as_current=False, **parts)
    app.conf.update(_common(settings.task_events if events is None else events))
    app.conf.broker_transport_options = _redis_options(queue or name) if is_redis(url) else _rabbit_options()
    if queue is not None:
        app.conf.task_queues = [_queue(url, each) for each in consumed_by(queue)]
        app.conf.task_default_queue = queue
    return app


def _common(events: bool) -> dict[str, Any]:
    """Return the settings that hold for both brokers."""
    return {
        # Only JSON, and no result backend: an answer is a message of its own.
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        # Acknowledged when done. A fault is no reason to deliver again: the shell has answered it.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # libvirt wants one process with threads; a lost connection must not cut a call to it short.
        "worker_pool": "threads",
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_prefetch_count_reduction": False,
        "worker_consumer": f"{guard.__name__}:{guard.SafeConsumer.__name__}",
        "worker_enable_remote_control": False,
        "worker_disable_rate_limits": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": events,
        "task_send_sent_event": events,
        # The broker may come up after us, and may be away for as long as it likes.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 5,
        "broker_heartbeat": 30,
        "task_publish_retry": True,
        "task_publish_retry_policy": _RETRY,
        "task_create_missing_queues": False,
    }


def _redis_options(consumer: str) -> dict[str, Any]:
    """Return kombu's options for Redis. Its timeouts default to none: a dead peer would then hang us for ever."""
    prefix = access.unacked_prefix(consumer)
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_key": f"{prefix}unacked",
        "unacked_index_key": f"{prefix}index",
        "unacked_mutex_key": f"{prefix}mutex",
        # Together: look every 30 s for messages whose consumer died, which the visibility timeout gives back after ten
        # minutes; a look is seven commands, and every 5 s they were a third of what an idle worker does.
        "unacked_restore_interval": 30,
        "unacked_restore_throttle": 1,
        "priority_steps": [0],
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
    }


def _rabbit_options() -> dict[str, Any]:
    """Return kombu's options for RabbitMQ: `publish` returns once a majority of the quorum has the message."""
    return {"confirm_publish": True, "connect_timeout": 5}


def _exchange_of(url: str, queue: str) -> str:
    if is_redis(url):
        return ""
    return topology.exchange_to(queue)


def _queue(url: str, name: str) -> Queue:
    """Return the queue as consumers and publishers see it: they never declare, its arguments only tell Celery."""
    arguments = None if is_redis(url) else {"x-queue-type": "quorum"}
    exchange = Exchange(_exchange_of(url, name), type="direct", no_declare=True)
    return Queue(name, exchange, routing_key=name, queue_arguments=arguments, no_declare=True)


class Publisher:
    """Sends sealed messages over kept connections. Safe to share between threads; not between processes."""

    def __init__(self, app: Celery) -> None:
        """Use the broker of `app`; connects at the first `publish`."""
        self._app = app
        self._url = str(app.conf.broker_url)
        timeouts = {"socket_timeout": _PUBLISH_TIMEOUT_S, "socket_connect_timeout": _PUBLISH_TIMEOUT_S}
        rabbit = {"connect_timeout": _PUBLISH_TIMEOUT_S, "write_timeout": _PUBLISH_TIMEOUT_S}
        options = {**(timeouts if is_redis(self._url) else rabbit), **_RETRY}
        connection = app.connection_for_write(connect_timeout=_PUBLISH_TIMEOUT_S, transport_options=options)
        self._errors = (KombuError, AMQPError, OSError, *connection.connection_errors, *connection.channel_errors)
        self._producers = ProducerPool(connection.Pool(limit=_PUBLISHERS), limit=_PUBLISHERS)

    def publish(self, queue: str, task: str, sealed: Sealed, readable: str) -> None:
        """Hand one message for the consumer `queue` to the broker; `readable` is what Flower shows for the arguments.

        On RabbitMQ a return means that it is stored; on Redis, that Redis has it in memory. Raises BrokerUnavailable
        otherwise, after less than a second if the broker refuses, after some seconds if it does not answer; the
        message may have arrived all the same.
        """
        try:
            with self._producers.acquire(block=True, timeout=_PUBLISH_TIMEOUT_S) as producer:
                try:
                    self._send(producer, _queue(self._url, inbox_of(queue)), task, sealed, readable)
                except self._errors:
                    # A confirmation that is still on its way would be taken for the next message's.
                    producer.connection.collect()
                    raise
        except self._errors as error:
            where = without_password(self._url)
            raise BrokerUnavailable("broker_unavailable", f"sending {task} to {queue} by {where}: {error!r}") from error

    def close(self) -> None:
        """Close the kept connections."""
        self._producers.force_close_all()
        self._producers.connections.force_close_all()

    def _send(self, producer: Any, queue: Queue, task: str, sealed: Sealed, readable: str) -> None:
        self._app.send_task(
            task,
            args=[sealed.sender, sealed.body, sealed.signature],
            argsrepr=readable,
            kwargsrepr="{}",
            producer=producer,
            queue=queue,
            exchange=queue.exchange.name,
            routing_key=queue.name,
            declare=[],
            mandatory=True,
            confirm_timeout=_PUBLISH_TIMEOUT_S,
            add_to_parent=False,
        )


def register_tasks(app: Celery, names: Iterable[str], shell: Shell) -> None:
    """Give every message of the tasks `names` to `shell`."""
    for name in names:
        app.task(_deliver_to(shell), name=name, typing=False)


def _deliver_to(shell: Shell) -> Any:
    def deliver(*parts: Any, **named: Any) -> None:
        # A call of another shape is hostile: the shell refuses it like any other message that nobody has signed.
        shell.handle(*(parts if len(parts) == 3 and not named else (None, None, None)))

    return deliver


def declare_queues(url: str, queues: Iterable[str]) -> None:
    """Make sure that the queues of these consumers exist at the broker, with every exchange and the dead letters.

    Nothing to do on Redis. Safe to repeat. Raises BrokerUnavailable if the broker cannot be reached or has one of
    them with other arguments.
    """
    if is_redis(url):
        return
    try:
        with Connection(url, connect_timeout=5) as connection:
            channel = connection.channel()
            for exchange, kind in topology.EXCHANGES.items():
                Exchange(exchange, type=kind).bind(channel).declare()
            _declare(channel, DEAD, DEAD_EXCHANGE, key="", arguments=topology.DEAD_ARGUMENTS)
            for name in (each for queue in queues for each in consumed_by(queue)):
                _declare(channel, name, topology.exchange_to(name), key=name, arguments=topology.WORK_ARGUMENTS)
    except (KombuError, AMQPError, OSError) as error:
        where = without_password(url)
        raise BrokerUnavailable("broker_unavailable", f"declaring queues at {where}: {error!r}") from error
    _log.info("queues.declared", broker=without_password(url))


def remove_queue(url: str, queue: str) -> None:
    """Remove a consumer's queue with everything in it, delivered or not: the consumer never comes back. Repeatable.

    Raises BrokerUnavailable if the broker cannot be reached, or does not let this account do it.
    """
    options = _redis_options(queue) if is_redis(url) else _rabbit_options()
    try:
        with Connection(url, connect_timeout=5, transport_options=options) as connection:
            channel = connection.channel()
            if is_redis(url):
                private = [options[name] for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key")]
                channel.client.delete(queue, *private)
            else:
                channel.queue_delete(queue)
    except (KombuError, AMQPError, OSError, *Connection(url).connection_errors) as error:
        where = without_password(url)
        raise BrokerUnavailable("broker_unavailable", f"removing queue {queue} at {where}: {error!r}") from error
    _log.info("queue.removed", queue=queue, broker=without_password(url))


def _declare(channel: Any, name: str, exchange: str, *, key: str, arguments: Mapping[str, Any]) -> None:
    """Declare one queue behind an exchange that is there."""
    kind = topology.EXCHANGES[exchange]
    queue = Queue(name, Exchange(exchange, type=kind), routing_key=key, queue_arguments=dict(arguments))
    queue.bind(channel).declare()
