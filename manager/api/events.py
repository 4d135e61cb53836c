"""A job's timeline as server-sent events.

id: 3                  one per entry of the timeline, numbered from 1; Last-Event-ID continues after it
event: step
data: {"at": …, "step": "pivoting", "detail": …, "ms": 12.5}

event: waiting         when what the job waits for changes; no id
data: {"state": "awaiting_host", "waiting_for": "host h1"}

event: job             the whole job, once it is over or needs an operator; then the stream ends
"""

import asyncio
import time
from collections.abc import AsyncIterator
from threading import Event
from typing import Any

from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from manager.service import Service
from manager.views import JobView, ProgressView, TimelineEntry

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25
"""A snapshot is over in some 100 ms and is watched at once; one that waits for a host may take hours."""
SLOWER = 1.05
"""Each pause, compared with the one before: an end is told late by a twentieth, at most, of what was waited."""
LOOK_AGAIN_S = 1.0
"""What a job waits for can change without a change of the job: an answer becomes overdue."""

_JOB: TypeAdapter[Any] = TypeAdapter(JobView)
_ENTRY: TypeAdapter[Any] = TypeAdapter(TimelineEntry)
_PROGRESS: TypeAdapter[Any] = TypeAdapter(ProgressView)
_WAITING: TypeAdapter[Any] = TypeAdapter(dict[str, str])


async def job_events(service: Service, job_id: str, *, after: int, stopping: Event) -> AsyncIterator[bytes]:
    """Yield the events of a job from timeline entry `after` on, until it is over, needs an operator, or `stopping`.

    The database is asked in the thread pool, a moment at a time: a stream that waits holds no thread.
    """
    shown, waiting_for = after, ""
    while not stopping.is_set():
        version, _ = await run_in_threadpool(service.job_version, job_id)
        job = await run_in_threadpool(service.show_job, job_id)
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
        if await _unchanged(service, job_id, version, stopping):
            yield b": still running\n\n"


def _standing(job: JobView) -> bytes:
    """Return what a job waits for, or how far it is."""
    if job.waiting_for or job.progress is None:
        return frame("waiting", _WAITING.dump_json({"state": job.state, "waiting_for": job.waiting_for}))
    return frame("progress", _PROGRESS.dump_json(job.progress))


async def _unchanged(service: Service, job_id: str, version: int, stopping: Event) -> bool:
    """Return False as soon as the job has changed (or the process is to end), True after LOOK_AGAIN_S without."""
    until, pause_s = time.monotonic() + LOOK_AGAIN_S, FIRST_PAUSE_S
    while time.monotonic() < until and not stopping.is_set():
        await asyncio.sleep(pause_s)
        now, _ = await run_in_threadpool(service.job_version, job_id)
        if now != version:
            return False
        pause_s = min(pause_s * SLOWER, LONGEST_PAUSE_S)
    return not stopping.is_set()


def frame(kind: str, data: bytes, number: int | None = None) -> bytes:
    """Return one event as it goes over the wire; `data` is JSON, which has no line break of its own."""
    head = b"" if number is None else b"id: %d\n" % number
    return head + b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def continued_after(last_event_id: str | None) -> int:
    """Return the number of the last entry that a client has seen; 0 for a header that is missing or not ours."""
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
