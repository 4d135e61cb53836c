"""Limits on jobs, and whose turn it is, as the database has them. The rule itself is `manager.loads`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select

from common.ids import JobId
from manager.loads import Counted, Limits, Load, turns
from manager.store.session import one_at_a_time, upsert
from manager.store.tables import job_limits, job_loads, jobs, storage_domains

_LIMITS: Final = select(job_limits.c.scope, job_limits.c.name, job_limits.c.max_jobs)
_ANY: Final = select(job_limits.c.scope).limit(1)
_WAITING: Final = select(jobs.c.id).where(jobs.c.queued_at.is_not(None)).limit(1)
_COUNTED: Final = (
    select(jobs.c.id, jobs.c.queued_at, job_loads.c.scope, job_loads.c.name)
    .join(job_loads, job_loads.c.job_id == jobs.c.id)
    .where(jobs.c.finished_at.is_(None))
    .order_by(jobs.c.created_at, jobs.c.id, job_loads.c.scope, job_loads.c.name)
)
_FORGET: Final = delete(job_loads).where(job_loads.c.job_id == bindparam("job"))


def register(connection: Connection, job: JobId, loads: Sequence[Load]) -> None:
    """Count a new job for what it needs."""
    connection.execute(insert(job_loads), [{"job_id": job, "scope": scope, "name": name} for scope, name in loads])


def forget(connection: Connection, job: JobId) -> None:
    """Count a job no more: it has ended."""
    connection.execute(_FORGET, {"job": job})


def why_wait(connection: Connection, job: JobId) -> str:
    """Return why a job that has not begun has to wait, '' if it may begin in this transaction.

    Until the transaction ends nobody else gets an answer, so that two jobs cannot both take the last place.
    """
    if connection.execute(_ANY).first() is None:
        return ""
    one_at_a_time(connection, "job limits")
    return turns(counted(connection, job), limits(connection))[job]


def waiting(connection: Connection) -> dict[JobId, str]:
    """Return why each waiting job waits, by what is seen now; '' for those that may begin. Oldest first."""
    if connection.execute(_WAITING).first() is None:
        return {}
    return turns(counted(connection), limits(connection))


def limits(connection: Connection) -> Limits:
    """Return the limits that are set."""
    names = select(storage_domains.c.id, storage_domains.c.name)
    return Limits(
        set_for={(row.scope, row.name): row.max_jobs for row in connection.execute(_LIMITS)},
        names={row.id: row.name for row in connection.execute(names)},
    )


def set_limit(connection: Connection, load: Load, max_jobs: int, now: datetime) -> None:
    """Set or change a limit."""
    scope, name = load
    upsert(connection, job_limits, [{"scope": scope, "name": name, "max_jobs": max_jobs, "set_at": now}])


def remove_limit(connection: Connection, load: Load) -> bool:
    """Remove a limit; tell whether there was one."""
    scope, name = load
    gone = delete(job_limits).where(job_limits.c.scope == scope, job_limits.c.name == name)
    return connection.execute(gone).rowcount > 0


def counted(connection: Connection, beginning: JobId | None = None) -> list[Counted]:
    """Return every unfinished job with what it is counted for, in the order of their acceptance.

    `beginning` is taken for waiting although it is not marked so (yet).
    """
    loads: dict[JobId, list[Load]] = {}
    marked: set[JobId] = set() if beginning is None else {beginning}
    for row in connection.execute(_COUNTED):
        loads.setdefault(row.id, []).append((row.scope, row.name))
        if row.queued_at is not None:
            marked.add(row.id)
    return [Counted(job=job, loads=tuple(found), is_waiting=job in marked) for job, found in loads.items()]
