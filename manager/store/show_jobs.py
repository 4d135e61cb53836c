"""Jobs as users see them: bulk queries, however many jobs are listed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, select

from common.errors import RequestRefused
from common.ids import JobId, VmId, is_uuid
from manager.store import admission
from manager.store.tables import hosts, jobs, outbox, snapshots, timeline, vms
from manager.views import AttemptView, ErrorView, JobView, ProgressView, TimelineEntry
from manager.waiting import Outstanding, Standing, waiting_for

LIST_LIMIT = 500
MIN_PREFIX = 4

_JOINED: Final = (
    select(jobs, vms.c.name.label("vm_name"), snapshots.c.name.label("snapshot_name"))
    .join(vms, vms.c.id == jobs.c.vm_id)
    .outerjoin(snapshots, snapshots.c.id == jobs.c.snapshot_id)
)
_ONE: Final = _JOINED.where(jobs.c.id == bindparam("job"))
_STEPS: Final = select(outbox).where(outbox.c.job_id.in_(bindparam("jobs", expanding=True))).order_by(outbox.c.attempt)
_LINES: Final = (
    select(timeline).where(timeline.c.job_id.in_(bindparam("jobs", expanding=True))).order_by(timeline.c.version)
)
_HOSTS: Final = select(hosts.c.id, hosts.c.libvirt_up, hosts.c.seen_at).where(
    hosts.c.id.in_(bindparam("hosts", expanding=True))
)


def find_job(connection: Connection, reference: str) -> JobId:
    """Return the job of that id, or the only one whose id begins so (4 characters at least).

    Raises RequestRefused(job_not_found).
    """
    if is_uuid(reference):
        wanted: ColumnElement[bool] = jobs.c.id == reference
    elif len(reference) >= MIN_PREFIX:
        wanted = jobs.c.id.startswith(reference.lower(), autoescape=True)
    else:
        raise RequestRefused("job_not_found", f"{reference!a} is too short for a job's id")
    found = connection.execute(select(jobs.c.id).where(wanted).limit(2)).scalars().all()
    if len(found) != 1:
        what = "several jobs' ids begin with" if found else "there is no job"
        raise RequestRefused("job_not_found", f"{what} {reference[:80]!a}")
    return JobId(found[0])


def list_jobs(connection: Connection, now: datetime, *, vm: VmId | None, active: bool | None) -> list[JobView]:
    """Return the newest jobs, newest first; `active`: only the unfinished ones (False: only the others)."""
    wanted: list[ColumnElement[bool]] = []
    if vm is not None:
        wanted.append(jobs.c.vm_id == vm)
    if active is not None:
        wanted.append(jobs.c.finished_at.is_(None) if active else jobs.c.finished_at.is_not(None))
    newest = jobs.c.created_at.desc(), jobs.c.id
    found = connection.execute(_JOINED.where(*wanted).order_by(*newest).limit(LIST_LIMIT)).all()
    return _views(connection, found, now)


def show_job(connection: Connection, now: datetime, job: JobId) -> JobView:
    """Return one job. Raises RequestRefused(job_not_found)."""
    found = connection.execute(_ONE, {"job": job}).all()
    if not found:
        raise RequestRefused("job_not_found", f"there is no job {job}")
    return _views(connection, found, now)[0]


def attempts(connection: Connection, job: JobId) -> tuple[AttemptView, ...]:
    """Return every command that a job has sent, in order, with what became of it."""
    return tuple(_attempt(step) for step in connection.execute(_STEPS, {"jobs": [job]}))


def figures(connection: Connection) -> dict[str, Any]:
    """Return what there is to count: jobs by state, open outbox rows, and those that the broker did not take."""
    by_state = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
    open_rows = select(func.count()).where(outbox.c.closed_at.is_(None))
    unpublished = open_rows.where(outbox.c.publish_error != "")
    return {
        "jobs_by_state": {state: count for state, count in by_state},
        "outbox_open": connection.execute(open_rows).scalar_one(),
        "outbox_unpublished": connection.execute(unpublished).scalar_one(),
    }


def _views(connection: Connection, found: Sequence[Row[Any]], now: datetime) -> list[JobView]:
    of = {"jobs": [row.id for row in found]}
    steps = _by_job(connection.execute(_STEPS, of).all())
    lines = _by_job(connection.execute(_LINES, of).all())
    # A fleet's other hosts are nobody's business here, and may be a thousand.
    named = sorted({host for row in found if (host := _host_of(row))})
    known = {row.id: row for row in connection.execute(_HOSTS, {"hosts": named})} if named else {}
    turn = admission.waiting(connection) if any(row.queued_at for row in found) else {}
    views = [_view(row, steps.get(row.id, []), lines.get(row.id, []), known, now=now) for row in found]
    return [replace(view, waiting_for=turn.get(JobId(view.id)) or view.waiting_for) for view in views]


def _by_job(rows: Sequence[Row[Any]]) -> dict[str, list[Row[Any]]]:
    grouped: dict[str, list[Row[Any]]] = {}
    for row in rows:
        grouped.setdefault(row.job_id, []).append(row)
    return grouped


def _view(
    row: Row[Any],
    steps: Sequence[Row[Any]],
    lines: Sequence[Row[Any]],
    known_hosts: Mapping[str, Any],
    *,
    now: datetime,
) -> JobView:
    error = ErrorView(code=row.error_code, message=row.error_message, hint=row.error_hint) if row.error_code else None
    return JobView(
        id=row.id,
        kind=row.kind,
        vm=row.vm_id,
        vm_name=row.vm_name,
        state=row.state,
        waiting_for=waiting_for(_standing(row, steps, known_hosts), now),
        snapshot_id=row.snapshot_id,
        snapshot_name=row.snapshot_name,
        attempts=tuple(_attempt(step) for step in steps),
        error=error,
        created_at=row.created_at,
        finished_at=row.finished_at,
        timeline=tuple(
            TimelineEntry(at=line.at, step=line.step, detail=line.detail, ms=round(line.ms, 3)) for line in lines
        ),
        progress=_progress(row, lines, now),
    )


def _progress(row: Row[Any], lines: Sequence[Row[Any]], now: datetime) -> ProgressView | None:
    """Return how far a copy is, with its mean speed since it began; None where nothing is copied now."""
    told = json.loads(row.state_json).get("progress") if row.finished_at is None else None
    if not told or not told["total_bytes"]:
        return None
    since = next((line.at for line in reversed(lines) if line.step == row.state), row.noted_at)
    elapsed_s = max((now - since).total_seconds(), 0.001)
    done, total = told["done_bytes"], told["total_bytes"]
    speed = int(done / elapsed_s)
    left = round((total - done) / speed) if speed and total >= done else None
    return ProgressView(done_bytes=done, total_bytes=total, bytes_per_s=speed, seconds_left=left)


def _standing(row: Row[Any], steps: Sequence[Row[Any]], known_hosts: Mapping[str, Any]) -> Standing:
    unanswered = next((step for step in steps if step.closed_at is None), None)
    outstanding = unanswered and Outstanding(
        queue=unanswered.queue, sent_at=unanswered.created_at, publish_error=unanswered.publish_error
    )
    host = _host_of(row)
    known = known_hosts.get(host)
    return Standing(
        label=row.state,
        host=host,
        code=row.error_code,
        message=row.error_message,
        finished=row.finished_at is not None,
        libvirt_down=known is not None and not known.libvirt_up,
        host_seen_at=known.seen_at if known else None,
        outstanding=outstanding,
    )


def _host_of(row: Row[Any]) -> str:
    """Return the host that an unfinished job is about now, '' for any other job."""
    state = json.loads(row.state_json) if row.finished_at is None else {}
    return str(state.get("host") or state.get("at", {}).get("host", ""))


def _attempt(step: Row[Any]) -> AttemptView:
    return AttemptView(
        attempt=step.attempt,
        step=step.step,
        to=step.queue,
        sent_at=step.created_at,
        quiesce=step.quiesce,
        outcome=step.outcome,
        reason=step.reason,
        deliveries=step.deliveries,
    )
