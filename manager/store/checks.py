"""Questions to hosts that no job stands behind, until they are answered or given up: one row each.

They are rows because the process that asks (an API) is not the one that the answer comes to (a Manager's worker).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from common.ids import StepId
from common.messaging.messages import Answer
from manager.store import codec
from manager.store.tables import checks

_READ: Final = select(checks).where(checks.c.step_id == bindparam("step"), checks.c.said_at.is_not(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer, and when its host sent it, by the host's own clock."""

    answer: Answer
    said_at: datetime


def add(connection: Connection, step: StepId, queue: str, expires_at: datetime) -> None:
    """Store a question to the consumer of `queue`; nobody waits for it any more after `expires_at`."""
    connection.execute(insert(checks), {"step_id": step, "queue": queue, "expires_at": expires_at})


def answer(connection: Connection, step: StepId, sender: str, said: Said) -> bool:
    """Keep an answer for whoever waits; False if nobody does, or if it comes from somebody who was not asked."""
    asked = (checks.c.step_id == step) & (checks.c.queue == sender) & checks.c.said_at.is_(None)
    values = {"answer_json": codec.dump(codec.ANSWER, said.answer), "said_at": said.said_at}
    return connection.execute(update(checks).where(asked).values(**values)).rowcount == 1


def read(connection: Connection, step: StepId) -> Said | None:
    """Return the answer, None while there is none."""
    row = connection.execute(_READ, {"step": step}).first()
    return Said(answer=codec.ANSWER.validate_json(row.answer_json), said_at=row.said_at) if row else None


def remove(connection: Connection, step: StepId) -> None:
    """End a question."""
    connection.execute(delete(checks).where(checks.c.step_id == step))


def has_expired(connection: Connection, now: datetime) -> bool:
    """Tell whether a process has died before it could end its question."""
    return connection.execute(select(checks.c.step_id).where(checks.c.expires_at < now).limit(1)).first() is not None


def remove_expired(connection: Connection, now: datetime) -> None:
    """End the questions that nobody waits for any more."""
    connection.execute(delete(checks).where(checks.c.expires_at < now))
