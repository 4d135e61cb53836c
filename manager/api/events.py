"""A job's timeline as server-sent events.

id: 3                  one per entry of the timeline, numbered from 1; Last-Event-ID continues after it
event: step
data: {"at": …, "step": "pivoting", "detail": …, "ms": 12.5}

event: waiting         when what the job waits for changes; no id
data: {"state": "awaiting_host", "waiting_for": "host h1"}

event: job             the whole job, once it is over or needs an operator; then the stream ends
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from common.ids import JobId
from manager.service import Service
from manager.store.job_changes import JobChanges
from manager.views import JobMoment, JobView, ProgressView, TimelineEntry

LOOK_AGAIN_S = 1.0
"""What a job waits for can change without a change of the job: an answer becomes overdue."""

_JOB: TypeAdapter[Any] = TypeAdapter(JobView)
_ENTRY: TypeAdapter[Any] = TypeAdapter(TimelineEntry)
_PROGRESS: TypeAdapter[Any] = TypeAdapter(ProgressView)
_WAITING: TypeAdapter[Any] = TypeAdapter(dict[str, str])


async def job_events(service: Service, changes: JobChanges, now: JobMoment, *, after: int) -> AsyncIterator[bytes]:
    """Yield the events of a job from timeline entry `after` on, until it is over, needs an operator, or we are to stop.

    The database is asked in the thread pool, a moment at a time: a stream that waits holds no thread.
    """
    shown, waiting_for = after, ""
    while not changes.stopping.is_set():
        job = now.job
        for number, entry in enumerate(job.timeline[shown:], start=shown + 1):
            yield frame("step", _ENTRY.dump_json(entry), number)
        shown = max(shown, len(job.timeline))
        if job.finished_at is not None or job.state == "needs_operator":
            yield frame("job", _JOB.dump_json(job))
            return
        told = job.waiting_for or ("" if job.progress is None else str(job.progress.done_bytes))
        if told != waiting_for:
            waiting_for = told
            yield _standing(job)
        if not await _changes(changes, now):
            yield b": still running\n\n"
        now = await run_in_threadpool(service.job_moment, job.id)


def _standing(job: JobView) -> bytes:
    """Return what a job waits for, or how far it is."""
    if job.waiting_for or job.progress is None:
        return frame("waiting", _WAITING.dump_json({"state": job.state, "waiting_for": job.waiting_for}))
    return frame("progress", _PROGRESS.dump_json(job.progress))


async def _changes(changes: JobChanges, now: JobMoment) -> bool:
    """Return True as soon as the job has changed (or the process is to end), False after LOOK_AGAIN_S without."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    wake = partial(loop.call_soon_threadsafe, changed.set)
    with changes.watching(JobId(now.job.id), now.version, wake=wake), suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), LOOK_AGAIN_S)
    return changed.is_set()


def frame(kind: str, data: bytes, number: int | None = None) -> bytes:
    """Return one event as it goes over the wire; `data` is JSON, which has no line break of its own."""
    head = b"" if number is None else b"id: %d\n" % number
    return head + b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def continued_after(last_event_id: str | None) -> int:
    """Return the number of the last entry that a client has seen; 0 for a header that is missing or not ours."""
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
