"""The FastAPI app, put together from its parts. Handlers are plain functions: they run in a pool of threads."""

from fastapi import FastAPI

from manager.access import Access
from manager.api import (
    problems,
    routes_access,
    routes_broker,
    routes_delete,
    routes_doctor,
    routes_fleet,
    routes_inventory,
    routes_jobs,
    routes_limits,
    routes_locks,
    routes_reverts,
    routes_snapshots,
    routes_watch,
)
from manager.api.auth import Gate, Tokens
from manager.api.limits import LimitBody
from manager.service import Service
from manager.store.job_changes import JobChanges
from manager.watch import Watch

DESCRIPTION = """Crash-safe live snapshots for fleets of plain libvirt/KVM hosts.

Everything below `/v1` wants `Authorization: Bearer …`, with a token of sufficient role. Errors are
`application/problem+json` with a stable `code`."""
ROUTES = (
    routes_delete,
    routes_reverts,
    routes_snapshots,
    routes_locks,
    routes_inventory,
    routes_fleet,
    routes_jobs,
    routes_limits,
    routes_doctor,
    routes_broker,
    routes_access,
    routes_watch,
)
"""Machines' and snapshots' routes end in free text, so the more exact ones of snapshots and locks come first."""


def create_app(service: Service, watch: Watch, tokens: Tokens, access: Access, changes: JobChanges) -> FastAPI:
    """Return the API of `service` and `watch`, for those who hold one of `tokens`, or one that `access` knows.

    Set `changes.stopping` at the end of the process: it ends the open event streams, which may else last for hours.
    """
    # No documentation pages: they would load their scripts from elsewhere. The description is at /openapi.json.
    app = FastAPI(
        title="livesnap",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.watch = watch
    app.state.access = access
    app.state.changes = changes
    problems.install(app)
    for routes in ROUTES:
        app.include_router(routes.router)
    app.add_middleware(LimitBody)
    app.add_middleware(Gate, tokens=tokens, access=access)
    return app
