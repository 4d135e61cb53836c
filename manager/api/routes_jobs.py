"""`/v1/jobs`: what livesnap is doing and has done."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from manager.api.dependencies import TheChanges, TheService
from manager.api.events import continued_after, job_events
from manager.api.problems import RESPONSES
from manager.api.references import Reference, checked
from manager.api.schemas import ResolveBody
from manager.views import JobView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=RESPONSES)


@router.get("")
def list_jobs(
    service: TheService,
    vm: Annotated[str | None, Query(description="Only jobs of this machine.")] = None,
    active: Annotated[bool | None, Query(description="Only jobs that have (not) ended.")] = None,
) -> list[JobView]:
    """List the jobs, newest first."""
    return list(service.list_jobs(vm=None if vm is None else checked(vm), active=active))


@router.get("/{job}")
def show_job(service: TheService, job: Reference) -> JobView:
    """Show a job with its timeline and attempts."""
    return service.show_job(checked(job))


@router.post("/{job}/cancel", status_code=202)
def cancel_job(service: TheService, job: Reference) -> JobView:
    """Ask a job to end without its effect, if that is still possible."""
    return service.cancel_job(checked(job))


@router.post("/{job}/resolve", status_code=202)
def resolve_job(service: TheService, job: Reference, body: ResolveBody | None = None) -> JobView:
    """Let a job that waits for a host or an operator ask again. It deletes nothing and proves nothing.

    That the host was rebooted is refused while the host's own lock on the storage is held.
    """
    return service.resolve_job(checked(job), host_was_rebooted=body is not None and body.host_was_rebooted)


@router.get("/{job}/events", response_class=StreamingResponse)
def stream_job(
    service: TheService, changes: TheChanges, job: Reference, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Stream a job's timeline as server-sent events (see manager/api/events.py) until it is over."""
    now = service.job_moment(checked(job))
    events = job_events(service, changes, now, after=continued_after(last_event_id))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
