"""How many messages were refused, and why; counted per process, wherever in the stack they were refused. Pure."""

from collections import Counter
from enum import StrEnum
from threading import Lock


class Where(StrEnum):
    """The layer that refused: the transport's raw item, Celery's message, or our signed envelope."""

    TRANSPORT = "transport"
    CELERY = "celery"
    ENVELOPE = "envelope"


_LOCK = Lock()
_COUNTS: Counter[Where] = Counter()


def count(where: Where) -> int:
    """Add one refusal and return how many there were at this layer."""
    with _LOCK:
        _COUNTS[where] += 1
        return _COUNTS[where]


def counted() -> dict[Where, int]:
    """Return the refusals so far, per layer (layers without any are listed too, for metrics)."""
    with _LOCK:
        return {where: _COUNTS[where] for where in Where}
