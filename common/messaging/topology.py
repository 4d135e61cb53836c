"""What must exist at RabbitMQ before anybody works: exchanges, queues, bindings. Pure. (Redis needs none of it.)

Every working queue is a quorum queue that loses nothing: what it cannot take is refused, and what has ended
DELIVERY_LIMIT workers, or was refused by one, goes to the dead letters.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from common.messaging.queues import (
    ANSWERS,
    DEAD,
    DEAD_EXCHANGE,
    EVENTS,
    MANAGER,
    TO_AGENTS,
    TO_ANSWERS,
    TO_MANAGER,
    consumed_by,
)

DELIVERY_LIMIT: Final = 10
"""RabbitMQ takes a message out of circulation once it has ended this many workers."""

DEAD_KEPT: Final = 10_000
"""Dead letters that are kept to be looked at; the oldest make room, so that nobody can fill the broker's disk."""

EXCHANGES: Final[Mapping[str, str]] = {
    TO_MANAGER: "direct",
    TO_ANSWERS: "direct",
    TO_AGENTS: "direct",
    EVENTS: "topic",
    DEAD_EXCHANGE: "fanout",
}
"""Name and type of every exchange; all are durable."""

WORK_ARGUMENTS: Final[Mapping[str, Any]] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_EXCHANGE,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
DEAD_ARGUMENTS: Final[Mapping[str, Any]] = {
    "x-queue-type": "quorum",
    "x-max-length": DEAD_KEPT,
    "x-overflow": "drop-head",
}


def exchange_to(queue: str) -> str:
    """Return the exchange that leads to a working queue."""
    return {MANAGER: TO_MANAGER, ANSWERS: TO_ANSWERS}.get(queue, TO_AGENTS)


def topology(consumers: Iterable[str], vhost: str) -> dict[str, list[dict[str, Any]]]:
    """Return exchanges, queues and bindings for these consumers, as RabbitMQ's definitions files hold them."""
    working = [queue for name in consumers for queue in consumed_by(name)]
    queues: dict[str, Mapping[str, Any]] = {**dict.fromkeys(working, WORK_ARGUMENTS), DEAD: DEAD_ARGUMENTS}
    bindings = [*((exchange_to(queue), queue, queue) for queue in working), (DEAD_EXCHANGE, DEAD, "")]
    lasting = {"vhost": vhost, "durable": True, "auto_delete": False}
    return {
        "exchanges": [
            {"name": name, "type": kind, "internal": False, "arguments": {}, **lasting}
            for name, kind in EXCHANGES.items()
        ],
        "queues": [{"name": name, "arguments": dict(arguments), **lasting} for name, arguments in queues.items()],
        "bindings": [
            {
                "source": source,
                "vhost": vhost,
                "destination": queue,
                "destination_type": "queue",
                "routing_key": key,
                "arguments": {},
            }
            for source, queue, key in bindings
        ],
    }
