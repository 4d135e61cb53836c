# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""Dead letters: what RabbitMQ took out of circulation, to be looked at and thrown away.

A message lands there when a worker refused it (hostile, or of an unknown kind) or when it ended DELIVERY_LIMIT workers.
Nothing is lost with it: what still has to be done stands in the Manager's outbox, which sends it again by itself. Redis
has no dead letters: what is refused there is gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from amqp.exceptions import AMQPError
from kombu.connection import Connection
from kombu.exceptions import KombuError

from common.errors import BrokerUnavailable
from common.messaging.queues import DEAD
from common.messaging.urls import is_redis, without_password

MAX_SHOWN: Final = 1000
_LIMIT_S: Final = 5
_SHORT: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message: the queue it lay in, why it was taken out (`rejected`, `delivery_limit`), what it says of itself.

    `about` is the line that Flower shows (ids only); a hostile message may say anything there. Content is not shown.
    """

    queue: str
    reason: str
    count: int
    died_at: datetime | None
    task: str
    about: str


def list_dead_letters(url: str, *, limit: int = 100) -> tuple[DeadLetter, ...]:
    """Return the oldest dead letters, at most `limit`; they stay where they are. () on Redis.

    Raises BrokerUnavailable if the broker cannot be reached, or does not let this account look.
    """
    if is_redis(url):
        return ()
    with _channel(url, "looking at the dead letters") as channel:
        # Unacknowledged, so that they go back, in their order, when the channel is closed.
        taken = (channel.basic_get(DEAD, no_ack=False) for _ in range(min(limit, MAX_SHOWN)))
        return tuple(_read(message) for message in iter(lambda: next(taken, None), None))


def purge_dead_letters(url: str) -> int:
    """Throw all dead letters away; return how many there were. Raises BrokerUnavailable."""
    if is_redis(url):
        return 0
    with _channel(url, "purging the dead letters") as channel:
        return int(channel.queue_purge(DEAD) or 0)


@contextmanager
def _channel(url: str, what: str) -> Iterator[Any]:
    try:
        with Connection(url, connect_timeout=_LIMIT_S) as connection:
            yield connection.channel()
    except (KombuError, AMQPError, OSError) as error:
        where = without_password(url)
        raise BrokerUnavailable("broker_unavailable", f"{what} at {where}: {error!r}") from error


def _read(message: Any) -> DeadLetter:
    """Read what a message says of itself: nothing in it can be relied on, but what the broker has added."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    deaths = headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    died_at = death.get("time")
    if isinstance(died_at, datetime):
        died_at = died_at.replace(tzinfo=UTC) if died_at.tzinfo is None else died_at
    else:
        died_at = None
    count = death.get("count")
    return DeadLetter(
        queue=_text(death.get("queue")),
        reason=_text(death.get("reason")),
        count=count if isinstance(count, int) else 0,
        died_at=died_at,
        task=_text(headers.get("task")),
        about=_text(headers.get("argsrepr")),
    )


def _text(value: object) -> str:
    """Return short text that is safe to store and to show."""
    shown = "" if value is None else str(value)
    return shown.encode("utf-8", "replace").decode()[:_SHORT]
