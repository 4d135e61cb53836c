"""What the routes are given."""

from typing import Annotated

from fastapi import Depends, Request

from manager.access import Access
from manager.roles import Caller
from manager.service import Service
from manager.store.job_changes import JobChanges
from manager.watch import Watch


def the_service(request: Request) -> Service:
    """Return the service that the app was made with."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def the_watch(request: Request) -> Watch:
    """Return the watch that the app was made with."""
    watch = request.app.state.watch
    assert isinstance(watch, Watch)
    return watch


def the_access(request: Request) -> Access:
    """Return the tokens and the audit log that the app was made with."""
    access = request.app.state.access
    assert isinstance(access, Access)
    return access


def who_asks(request: Request) -> Caller:
    """Return whose token the request carries; the gate has put it there (manager/api/auth.py)."""
    asking = request.scope["livesnap.caller"]
    assert isinstance(asking, Caller)
    return asking


def the_changes(request: Request) -> JobChanges:
    """Return what tells of changes of jobs."""
    changes = request.app.state.changes
    assert isinstance(changes, JobChanges)
    return changes


TheChanges = Annotated[JobChanges, Depends(the_changes)]
TheService = Annotated[Service, Depends(the_service)]
TheWatch = Annotated[Watch, Depends(the_watch)]
TheAccess = Annotated[Access, Depends(the_access)]
Asking = Annotated[Caller, Depends(who_asks)]
