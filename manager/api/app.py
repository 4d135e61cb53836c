"""The FastAPI app, put together from its parts. Handlers are plain functions: they run in a pool of threads."""

import threading

from fastapi import FastAPI

from manager.api import (
    problems,
    routes_doctor,
    routes_inventory,
    routes_jobs,
    routes_locks,
    routes_reverts,
    routes_snapshots,
    routes_watch,
)
from manager.api.auth import RequireToken, Tokens
from manager.api.limits import LimitBody
from manager.service import Service
from manager.watch import Watch

DESCRIPTION = """Crash-safe live snapshots for fleets of plain libvirt/KVM hosts.

Everything below `/v1` wants `Authorization: Bearer …`. Errors are `application/problem+json` with a stable `code`."""


def create_app(service: Service, watch: Watch, tokens: Tokens) -> FastAPI:
    """Return the API of `service` for those who hold one of `tokens`, and of `watch` for those who watch.

    Set `state.stopping` at the end of the process: it ends the open event streams, which may else last for hours.
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
    app.state.stopping = threading.Event()
    problems.install(app)
    # Machines' and snapshots' routes end in free text, so the more exact ones of snapshots and locks come first.
    for routes in (
        routes_reverts,
        routes_snapshots,
        routes_locks,
        routes_inventory,
        routes_jobs,
        routes_doctor,
        routes_watch,
    ):
        app.include_router(routes.router)
    app.add_middleware(LimitBody)
    app.add_middleware(RequireToken, tokens=tokens)
    return app
