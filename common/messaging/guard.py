# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""What stands between the broker and Celery: hostile messages are dropped here, and never stop a worker (P9).

Celery and kombu trust whoever may write to a queue. Measured with the versions that pyproject.toml pins: a Redis item
that is not JSON, or a message whose task header is not text, ends the worker, and the second one comes back to end
the next; a message can carry a chain, name one of Celery's own tasks (`celery.group`, `celery.chord`, ...), or, on
Redis, a false return address, and the receiver then publishes for its author, with rights that the author lacks.

Two places are needed: `SafeTransport` checks the raw Redis item before kombu builds a message from it, and
`SafeConsumer` checks the message before Celery acts on it. Both use kombu's and Celery's own extension points.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

from amqp.exceptions import NotFound
from celery.app.control import Control
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer import Consumer
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as redis_transport
from redis import Redis
from redis.exceptions import LockNotOwnedError
from redis.lock import Lock

from common import logs
from common.errors import MessageRejected
from common.messaging import refusals
from common.messaging.queues import EVENTS
from common.messaging.wire import MAX_BODY_BYTES

MAX_MESSAGE_BYTES: Final = 4 * MAX_BODY_BYTES
"""A signed text stands inside JSON as a string, so its quotes and backslashes are escaped again."""

HEARTBEAT_S: Final = 5
"""So often a worker tells Flower that it lives, which takes it for gone after two of them. Celery's 2 s were a tenth of
what an idle worker does."""

NO_QUEUE: Final = (
    "A queue is made when its host or pool joins (livesnap host add, livesnap pool add), and goes when that is removed."
)

_MAX_HEADER_CHARS: Final = 4096
_EMBEDDED: Final = frozenset({"callbacks", "errbacks", "chain", "chord"})
_EMPTY_ONLY: Final = frozenset({"eta", "shadow", "group_index", "stamped_headers", "stamps"})

_log = logs.get()


def install() -> None:
    """Let every Redis connection of this process go through SafeTransport. Call it before the first is made."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:SafeTransport"


def _refuse(what: str) -> MessageRejected:
    return MessageRejected("message_rejected", what)


def _count(where: refusals.Where, reason: object, **facts: object) -> None:
    _log.warning(
        "message.rejected", where=where.value, reason=str(reason)[:300], refused=refusals.count(where), **facts
    )


# ---- the raw item, on Redis ---------------------------------------------------------------------------------------


class SafeQoS(redis_transport.QoS):
    """What a consumer has in hand. An acknowledgement that Redis did not take still frees its place.

    kombu keeps the place: a worker whose threads all ended while Redis was being restarted then waits for good, since
    with full hands it reads nothing, not even that its connection is dead. The message comes again after the visibility
    timeout, which every handler allows.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge. Raises redis-py's errors."""
        try:
            super().ack(delivery_tag)
        finally:
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Refuse. Raises redis-py's errors."""
        try:
            super().reject(delivery_tag, requeue)
        finally:
            self._quick_ack(delivery_tag)


class PlainLock(Lock):
    """redis-py's lock, given back by a watched transaction and not by a script: no account of ours may run scripts."""

    def do_release(self, expected_token: Any) -> None:
        """Give it back, if it is still ours. Raises redis-py's LockNotOwnedError."""

        def give_back(pipe: Any) -> None:
            if pipe.get(self.name) != expected_token:
                raise LockNotOwnedError("the lock has expired", lock_name=self.name)
            pipe.multi()
            pipe.delete(self.name)

        self.redis.transaction(give_back, self.name)


class SafeClient(Redis):
    """A client whose locks need no script."""

    def lock(self, name: str, *args: Any, **named: Any) -> Any:
        """Return a lock of that name."""
        return super().lock(name, *args, **{**named, "lock_class": PlainLock})


class SafeChannel(redis_transport.Channel):
    """A channel that survives an item which is not JSON. The item is gone then: nobody else could read it either."""

    QoS = SafeQoS
    _kept: SafeClient | None = None

    def _get_client(self) -> type:
        return SafeClient

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return the channel's own client while its pool lasts: kombu makes one for each acknowledgement and each
        publication, which took a twelfth of what a message costs the Manager. A client only borrows connections of
        the pool, so that threads may share it; a pool that was given up takes it along."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        kept = self._kept
        if kept is None or kept.connection_pool is not self.pool:
            kept = self._kept = super()._create_client()
        return kept

    def _brpop_read(self, **options: Any) -> bool | None:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-any-return]
        except (ValueError, RecursionError) as error:
            _count(refusals.Where.TRANSPORT, f"not JSON: {error}")
            return None


class SafeTransport(redis_transport.Transport):
    """The Redis transport, with a look at each item before a message is made of it."""

    Channel = SafeChannel

    def _deliver(self, message: object, queue: str) -> None:
        try:
            check_item(message, queue)
        except MessageRejected as rejected:
            _count(refusals.Where.TRANSPORT, rejected.message, queue=queue)
            return
        super()._deliver(message, queue)


def check_item(item: object, queue: str) -> None:
    """Raise MessageRejected unless `item`, taken from `queue`, is what kombu itself would have put there.

    Its return address (`delivery_info`) must be the very queue: at shutdown and after the visibility timeout kombu
    puts unacknowledged items "back" wherever they say, with the consumer's rights.
    """
    if not isinstance(item, dict) or not isinstance(item.get("properties"), dict):
        raise _refuse("the item is no message")
    properties = item["properties"]
    address = properties.get("delivery_info")
    if queue.startswith(f"{EVENTS}.") and isinstance(address, dict) and address.get("exchange") == EVENTS:
        address = {"routing_key": queue}  # an event: a monitor (Flower) acknowledges none, so none is ever put back
    if not isinstance(address, dict) or address.get("exchange") or address.get("routing_key") != queue:
        raise _refuse(f"the return address is not the queue: {str(address)[:120]}")
    if not _is_short_text(properties.get("delivery_tag")):
        raise _refuse("no delivery tag")
    if not isinstance(item.get("headers"), dict):
        raise _refuse("no headers")
    if (item.get("content-type"), item.get("content-encoding")) != ("application/json", "utf-8"):
        raise _refuse("neither JSON nor UTF-8")
    body = item.get("body")
    if not isinstance(body, str) or not body or properties.get("body_encoding") != "base64":
        raise _refuse("the body is not base64")
    if len(body) > MAX_MESSAGE_BYTES * 4 // 3:
        raise _refuse(f"body of {len(body)} characters")
    try:
        base64.b64decode(body, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _refuse(f"the body is not base64 of UTF-8: {error}") from None


# ---- task events, on both brokers ---------------------------------------------------------------------------------


def _is_at_broker(exchange: Any) -> bool:
    """Tell whether an exchange exists at the broker; on Redis one is an entry in kombu's own memory, where it must be
    (a fan-out that kombu does not know of, it looks for in keys that no account may read)."""
    return bool(exchange.type != "fanout")


class SafeDispatcher(EventDispatcher):  # type: ignore[misc]  # Celery has no types
    """Sends events to an exchange that is there already: declaring it is no right of a worker's account."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build Celery's own, which then declares nothing."""
        super().__init__(*args, **kwargs)
        self.exchange.no_declare = _is_at_broker(self.exchange)


class SafeEvents(Events):  # type: ignore[misc]  # Celery has no types
    """What an app makes dispatchers of."""

    dispatcher_cls = SafeDispatcher


class NoControl(Control):  # type: ignore[misc]  # Celery has no types
    """Broadcasts nothing: no worker of ours takes remote control, and to whom it would go costs rights and traffic."""

    def broadcast(self, command: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing; nobody replies."""
        _log.debug("control.not_sent", command=command)


# ---- Celery's message, on both brokers ----------------------------------------------------------------------------


class SafeConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer without what hosts must not run, and with a check in front of every message.

    Gossip costs each worker a message from every other one every two seconds; mingle a second at start; delayed
    delivery declares 28 queues, for countdowns that we never use.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """Consumer steps without delayed delivery."""

        default_steps: Final = [step for step in Consumer.Blueprint.default_steps if "DelayedDelivery" not in step]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the consumer; worker heartbeats are events, so they go with the setting for events."""
        events = kwargs["app"].conf.worker_send_task_events
        lean = {"without_gossip": True, "without_mingle": True, "without_heartbeat": not events}
        super().__init__(*args, **kwargs, **lean, heartbeat_interval=HEARTBEAT_S)

    def start(self) -> None:
        """Consume until the end. Raises what Celery raises: it ends the process, and a queue that is missing is said.

        Only RabbitMQ has queues that can be missing. A consumer never makes its own: that would be a right to make
        any, and one that was removed would come back by itself.
        """
        try:
            super().start()
        except NotFound as missing:
            queues = [queue.name for queue in self.app.conf.task_queues]
            _log.error("queue.missing", queues=queues, reason=missing.reply_text, hint=NO_QUEUE)
            raise

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return Celery's handler of a received message, guarded."""
        on_task_received = super().create_task_handler(*args, **kwargs)

        def guarded(message: Any) -> None:
            try:
                check_message(message, self.app.tasks)
                on_task_received(message)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001  (whatever a message provokes must not end the worker)
                headers = message.headers if isinstance(message.headers, dict) else {}
                _count(refusals.Where.CELERY, error, task=str(headers.get("task"))[:80])
                message.reject_log_error(_log, self.connection_errors)

        return guarded


def check_message(message: Any, tasks: Any) -> None:
    """Raise MessageRejected unless `message` is a plain call of one of our own `tasks`.

    Raises also what decoding raises (wrong content type, not JSON, too deep). Celery's own tasks are refused: some
    of them publish whatever they are given.
    """
    if len(message.body or b"") > MAX_MESSAGE_BYTES:
        raise _refuse(f"body of {len(message.body)} bytes")
    headers = message.headers
    if not isinstance(headers, dict):
        raise _refuse("no headers")
    task = headers.get("task")
    if not isinstance(task, str) or not _is_short_text(headers.get("id")):
        raise _refuse("no task, or no id")
    if task.startswith("celery.") or task not in tasks:
        raise _refuse("not a task of this process")
    for name, value in headers.items():
        _check_header(name, value)
    check_call(message.payload)


def check_call(payload: object) -> None:
    """Raise MessageRejected unless `payload` is `[args, kwargs, embed]` and embeds nothing to be published."""
    match payload:
        case [list(), dict(), dict(embed)] if embed.keys() <= _EMBEDDED and not any(embed.values()):
            return
        case _:
            raise _refuse("not a plain call: [args, kwargs, nothing embedded] was expected")


def _check_header(name: object, value: object) -> None:
    """Raise MessageRejected for a header that Celery could stumble over later, with the message half taken in."""
    if name == "timelimit":
        good = value in ([None, None], None)
    elif name in _EMPTY_ONLY:
        good = not value
    elif name == "retries":
        good = value in (0, None)
    else:
        good = (
            value is None
            or isinstance(value, bool | int)
            or (isinstance(value, str) and len(value) <= _MAX_HEADER_CHARS)
        )
    if not good:
        raise _refuse(f"header {str(name)[:40]!r} is {str(value)[:80]!r}")


def _is_short_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255
