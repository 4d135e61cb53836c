"""Which Manager workers live: each says so every few seconds, and takes its row away when it ends."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, func, select

from manager.store.session import upsert
from manager.store.tables import manager_workers

FORGET_AFTER: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """One process of `celery -A manager.worker`: an id of its own, the machine's name, and its pid there."""

    id: str
    node: str
    pid: int
    started_at: datetime


def beat(connection: Connection, worker: WorkerProcess, now: datetime) -> None:
    """Note that a worker lives; forget those that a kill left behind a day ago."""
    row = {
        "id": worker.id,
        "node": worker.node,
        "pid": worker.pid,
        "started_at": worker.started_at,
        "seen_at": now,
    }
    upsert(connection, manager_workers, [row])
    connection.execute(delete(manager_workers).where(manager_workers.c.seen_at < now - FORGET_AFTER))


def leave(connection: Connection, worker: WorkerProcess) -> None:
    """Take a worker's row away: it has ended as it should."""
    connection.execute(delete(manager_workers).where(manager_workers.c.id == worker.id))


def alive(connection: Connection, since: datetime) -> int:
    """Return how many workers were seen at `since` or later."""
    counted = select(func.count()).where(manager_workers.c.seen_at >= since)
    return int(connection.execute(counted).scalar_one())
