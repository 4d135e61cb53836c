"""What an unfinished job waits for, in words that a user can act on (P7). Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common.messaging.queues import host_of, pool_of

OVERDUE: Final = timedelta(seconds=3)
"""An answer usually comes within a second; only after this is its consumer named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outstanding:
    """The command that a job has no answer to."""

    queue: str
    sent_at: datetime
    publish_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A job as it stands: its state's label, the host that its state names, and the problem that it has.

    `libvirt_down`: the inventory says so of that host. `host_seen_at` is when it gave its last sign of life.
    """

    label: str
    host: str
    code: str
    message: str
    finished: bool
    libvirt_down: bool
    host_seen_at: datetime | None
    outstanding: Outstanding | None


def waiting_for(job: Standing, now: datetime) -> str:
    """Return what the job waits for, '' if it is simply at work or over."""
    if job.finished:
        return ""
    if job.label == "needs_operator":
        return f"an operator: {job.message}"
    if job.outstanding is not None and job.outstanding.publish_error:
        return "the message broker"
    asks_host = job.outstanding is None or host_of(job.outstanding.queue) == job.host
    if job.code == "libvirt_unavailable" or (job.libvirt_down and asks_host):
        return f"libvirt on host {job.host}"
    if job.label == "awaiting_host":
        return f"host {job.host}, {_last_heard(job.host_seen_at)}: {job.message}"
    if job.outstanding is None:
        return job.message
    if now - job.outstanding.sent_at > OVERDUE:
        return consumer(job.outstanding.queue)
    return ""


def _last_heard(seen_at: datetime | None) -> str:
    return f"last heard at {seen_at:%Y-%m-%d %H:%M:%S} UTC" if seen_at else "never heard"


def consumer(queue: str) -> str:
    """Return who consumes a queue, in words."""
    if (pool := pool_of(queue)) is not None:
        return f"the SPM of pool {pool}"
    return f"host {host_of(queue) or queue}"
