"""The outbox: every command, from the transaction that decided it until its answer is in (P6).

A row is open until `closed_at`; a job has at most one open row (a unique index). The sealed text is kept, so that a
re-send is the same message with the same step, attempt and deadline.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from common.ids import JobId, StepId
from common.messaging.messages import Answer, LeavesObserved, Pivot
from common.messaging.wire import Envelope, Sealed, readable, task_of
from manager.store import codec
from manager.store.tables import outbox, vms

SUPERSEDED: Final = "superseded"

_NAME: Final = select(vms.c.name).where(vms.c.id == bindparam("vm"))
_OPEN: Final = select(outbox.c.step_id, outbox.c.queue).where(
    outbox.c.job_id == bindparam("job"), outbox.c.closed_at.is_(None)
)
_LAST: Final = (
    select(outbox.c.queue).where(outbox.c.job_id == bindparam("job")).order_by(outbox.c.attempt.desc()).limit(1)
)
_CLOSE: Final = update(outbox).where(outbox.c.step_id == bindparam("answered"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A sealed command on its way to a queue; `deliveries` counts the sendings, this one included."""

    step: StepId
    job: JobId
    queue: str
    task: str
    sealed: Sealed
    readable: str
    deliveries: int = 1
    publish_error: str = ""


def add(
    connection: Connection, envelope: Envelope, sealed: Sealed, *, step_label: str, next_send_at: datetime
) -> Outgoing:
    """Store a command that its job waits for, and return it, to be published after the commit.

    Raises sqlalchemy.exc.IntegrityError if the job has an open one already.
    """
    if envelope.job is None:
        raise ValueError("a command without its job")
    outgoing = Outgoing(
        step=envelope.step,
        job=envelope.job,
        queue=envelope.to,
        task=task_of(envelope.body),
        sealed=sealed,
        readable=readable(envelope, connection.execute(_NAME, {"vm": envelope.vm}).scalar() or ""),
    )
    row = {
        "step_id": outgoing.step,
        "job_id": outgoing.job,
        "vm_id": envelope.vm,
        "queue": outgoing.queue,
        "task": outgoing.task,
        "attempt": envelope.attempt,
        "step": step_label,
        "quiesce": envelope.body.quiesce if isinstance(envelope.body, Pivot) else None,
        "readable": outgoing.readable,
        "sender": sealed.sender,
        "body": sealed.body,
        "signature": sealed.signature,
        "deadline": envelope.deadline,
        "created_at": envelope.issued_at,
        "deliveries": 1,
        "next_send_at": next_send_at,
    }
    connection.execute(insert(outbox), row)
    return outgoing


def open_step(connection: Connection, job: JobId) -> tuple[StepId, str] | None:
    """Return the step that a job waits for and the queue that it was sent to, None if it waits for no answer."""
    row = connection.execute(_OPEN, {"job": job}).first()
    return (StepId(row.step_id), row.queue) if row else None


def last_asked(connection: Connection, job: JobId) -> str | None:
    """Return the queue that a job's last command was sent to, answered or not; None if it has sent none."""
    queue: str | None = connection.execute(_LAST, {"job": job}).scalar()
    return queue


def close_answered(connection: Connection, step: StepId, answer: Answer, at: datetime) -> None:
    """End a step with its answer: it is not sent again. The XML in it is kept once, in the snapshot's record."""
    outcome, reason = codec.outcome_of(answer)
    kept = replace(answer, live_xml="", persistent_xml="") if isinstance(answer, LeavesObserved) else answer
    closed = {"closed_at": at, "outcome": outcome, "reason": reason, "publish_error": ""}
    connection.execute(_CLOSE, {"answered": step, **closed, "answer_json": codec.dump(codec.ANSWER, kept)})


def close_superseded(connection: Connection, job: JobId, at: datetime) -> None:
    """End whatever step a job still waits for: an answer that comes all the same will be ignored."""
    still_open = (outbox.c.job_id == job) & outbox.c.closed_at.is_(None)
    connection.execute(update(outbox).where(still_open).values(closed_at=at, outcome=SUPERSEDED, publish_error=""))


def due(connection: Connection, now: datetime, *, limit: int) -> list[Outgoing]:
    """Return what has no answer yet and is to be sent again now, the longest overdue first."""
    wanted = select(outbox).where(outbox.c.closed_at.is_(None), outbox.c.next_send_at <= now)
    return [
        Outgoing(
            step=StepId(row.step_id),
            job=JobId(row.job_id),
            queue=row.queue,
            task=row.task,
            sealed=Sealed(sender=row.sender, body=row.body, signature=row.signature),
            readable=row.readable,
            deliveries=row.deliveries + 1,
            publish_error=row.publish_error,
        )
        for row in connection.execute(wanted.order_by(outbox.c.next_send_at).limit(limit))
    ]


def claim(connection: Connection, outgoing: Outgoing, *, now: datetime, next_send_at: datetime) -> bool:
    """Take the right to send a due row; False if another Manager took it, or its answer came meanwhile."""
    still_due = (outbox.c.step_id == outgoing.step) & outbox.c.closed_at.is_(None) & (outbox.c.next_send_at <= now)
    taken = connection.execute(
        update(outbox).where(still_due).values(next_send_at=next_send_at, deliveries=outgoing.deliveries)
    )
    return taken.rowcount == 1


def note_publishing(
    connection: Connection, steps: Iterable[StepId], *, error: str, next_send_at: datetime | None = None
) -> None:
    """Record that the broker did not take these steps (`error`, and when to try again), or that it now did ('')."""
    values = {"publish_error": error} | ({"next_send_at": next_send_at} if next_send_at else {})
    still_open = outbox.c.step_id.in_(list(steps)) & outbox.c.closed_at.is_(None)
    connection.execute(update(outbox).where(still_open).values(**values))


def wake(connection: Connection, queue: str, now: datetime) -> int:
    """Make everything that waits for the consumer of `queue` due at once; return how many steps these are."""
    waiting = (outbox.c.queue == queue) & outbox.c.closed_at.is_(None)
    return connection.execute(update(outbox).where(waiting).values(next_send_at=now)).rowcount


def next_due(connection: Connection) -> datetime | None:
    """Return when the next row is to be sent again, None if nothing is open."""
    wanted = select(outbox.c.next_send_at).where(outbox.c.closed_at.is_(None)).order_by(outbox.c.next_send_at).limit(1)
    moment: datetime | None = connection.execute(wanted).scalar()
    return moment
