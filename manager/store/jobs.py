"""Jobs and their timeline: load and save with an optimistic version."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from common.error_codes import CATALOGUE
from common.ids import JobId, SnapshotId, VmId
from manager.flows.base import Problem
from manager.store import codec
from manager.store.tables import jobs, timeline

# Built once: putting a statement together costs as much as running it.
_LOCK: Final = select(jobs).where(jobs.c.id == bindparam("job")).with_for_update()
_VERSION: Final = select(jobs.c.version).where(jobs.c.id == bindparam("job"))
_VERSIONS: Final = select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(bindparam("jobs", expanding=True)))
_SAVE: Final = update(jobs).where(jobs.c.id == bindparam("job"), jobs.c.version == bindparam("was"))

QUEUED: Final = "pending"
"""The state, as users see it, of a job that waits for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as it is accepted. `created_at` is the receipt of the request, `warnings` what its check warned of."""

    id: JobId
    kind: str
    vm: VmId
    snapshot: SnapshotId | None
    state: Any
    idempotency_key: str | None
    request_hash: str
    created_at: datetime
    warnings: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job as the engine works on it; `version` grows with every change."""

    id: JobId
    kind: str
    vm: VmId
    snapshot: SnapshotId | None
    state: Any
    version: int
    wake_at: datetime | None
    noted_at: datetime
    finished_at: datetime | None
    is_queued: bool = False
    """It waits for its turn: its first step has not been made."""


class VersionConflict(Exception):
    """Somebody else changed the job between load and save: the transaction must be given up."""


def insert_job(connection: Connection, new: NewJob) -> StoredJob:
    """Store a job in its first state, version 0; it holds its vm from here on.

    Raises sqlalchemy.exc.IntegrityError if the vm has an unfinished job or the idempotency key is taken.
    """
    row = {
        "id": new.id,
        "kind": new.kind,
        "vm_id": new.vm,
        "snapshot_id": new.snapshot,
        "state": new.state.label,
        "state_json": codec.dump(codec.state_adapter(new.kind), new.state),
        "version": 0,
        "idempotency_key": new.idempotency_key,
        "request_hash": new.request_hash,
        "created_at": new.created_at,
        "noted_at": new.created_at,
    }
    connection.execute(insert(jobs), row)
    return StoredJob(
        id=new.id,
        kind=new.kind,
        vm=new.vm,
        snapshot=new.snapshot,
        state=new.state,
        version=0,
        wake_at=None,
        noted_at=new.created_at,
        finished_at=None,
    )


def lock_job(connection: Connection, job_id: JobId) -> StoredJob | None:
    """Load a job and keep others from changing it until this transaction ends; None if there is none of that id.

    Raises ValueError if its state cannot be read (written by a newer version).
    """
    row: Row[Any] | None = connection.execute(_LOCK, {"job": job_id}).first()
    if row is None:
        return None
    return StoredJob(
        id=job_id,
        kind=row.kind,
        vm=VmId(row.vm_id),
        snapshot=SnapshotId(row.snapshot_id) if row.snapshot_id else None,
        state=codec.state_adapter(row.kind).validate_json(row.state_json),
        version=row.version,
        wake_at=row.wake_at,
        noted_at=row.noted_at,
        finished_at=row.finished_at,
        is_queued=row.queued_at is not None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one step makes of a job. `detail` is the timeline's line; '' adds none."""

    state: Any
    at: datetime
    wake_at: datetime | None
    problem: Problem | None
    is_over: bool
    detail: str


def save(connection: Connection, job: StoredJob, change: Change) -> None:
    """Store the job's next state and its line in the timeline. Raises VersionConflict."""
    problem = change.problem or Problem(code="", message="")
    known = CATALOGUE.get(problem.code)
    row = {
        "job": job.id,
        "was": job.version,
        "state": change.state.label,
        "state_json": codec.dump(codec.state_adapter(job.kind), change.state),
        "version": job.version + 1,
        "wake_at": None if change.is_over else change.wake_at,
        "error_code": problem.code,
        "error_message": problem.message,
        "error_hint": problem.hint or (known.cure if known else ""),
        "noted_at": change.at if change.detail else job.noted_at,
        "queued_at": None,
        "finished_at": change.at if change.is_over else None,
    }
    if connection.execute(_SAVE, row).rowcount != 1:
        raise VersionConflict(f"job {job.id} is no longer at version {job.version}")
    if change.detail:
        line = {
            "job_id": job.id,
            "version": job.version + 1,
            "at": change.at,
            "step": change.state.label,
            "detail": change.detail,
            "ms": max(0.0, (change.at - job.noted_at) / timedelta(milliseconds=1)),
        }
        connection.execute(insert(timeline), line)


def queue(connection: Connection, job: StoredJob, now: datetime, detail: str) -> None:
    """Let a new job wait for its turn, and say so; its state stays its flow's first one."""
    waits = {"state": QUEUED, "queued_at": now, "noted_at": now}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(waits))
    line = {"job_id": job.id, "version": 0, "at": now, "step": QUEUED, "detail": detail}
    connection.execute(insert(timeline), {**line, "ms": max(0.0, (now - job.noted_at) / timedelta(milliseconds=1))})


def postpone(connection: Connection, job_id: JobId, wake_at: datetime | None) -> None:
    """Move a job's timer without any other change; None switches it off."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(wake_at=wake_at))


def due(connection: Connection, now: datetime, *, limit: int) -> list[JobId]:
    """Return the unfinished jobs whose timer has run out, the longest overdue first."""
    wanted = select(jobs.c.id).where(jobs.c.wake_at.is_not(None), jobs.c.wake_at <= now)
    return [JobId(row.id) for row in connection.execute(wanted.order_by(jobs.c.wake_at).limit(limit))]


def next_wake(connection: Connection) -> datetime | None:
    """Return when the next timer runs out, None if none is set."""
    wanted = select(jobs.c.wake_at).where(jobs.c.wake_at.is_not(None)).order_by(jobs.c.wake_at).limit(1)
    moment: datetime | None = connection.execute(wanted).scalar()
    return moment


def busy_with(connection: Connection, vm: VmId) -> JobId | None:
    """Return the unfinished job that holds a vm."""
    held = connection.execute(select(jobs.c.id).where(jobs.c.vm_id == vm, jobs.c.finished_at.is_(None))).scalar()
    return JobId(held) if held else None


def version_of(connection: Connection, job_id: JobId) -> int:
    """Return the version of a job that exists; it grows with every change."""
    return int(connection.execute(_VERSION, {"job": job_id}).scalar_one())


def versions_of(connection: Connection, asked: Collection[JobId]) -> dict[JobId, int]:
    """Return the version of each of these jobs that exists."""
    return {JobId(row.id): row.version for row in connection.execute(_VERSIONS, {"jobs": sorted(asked)})}


def state_of(connection: Connection, job_id: JobId) -> Any:
    """Return the state of a job that exists, without locking it. Raises ValueError if it cannot be read."""
    row = connection.execute(select(jobs.c.kind, jobs.c.state_json).where(jobs.c.id == job_id)).one()
    return codec.state_adapter(row.kind).validate_json(row.state_json)


def by_idempotency_key(connection: Connection, key: str) -> tuple[JobId, str] | None:
    """Return the job that was made under an idempotency key, and the hash of its request."""
    row = connection.execute(select(jobs.c.id, jobs.c.request_hash).where(jobs.c.idempotency_key == key)).first()
    return (JobId(row.id), row.request_hash) if row else None
