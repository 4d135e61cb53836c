"""For those who watch: health and Prometheus metrics. No token: they name no machine."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from common.errors import LivesnapError
from manager.api.dependencies import TheService, TheWatch
from manager.api.metrics import WatchCollector
from manager.api.problems import RESPONSES
from manager.watch import Check

router = APIRouter(tags=["watching"], responses=RESPONSES)


@router.get("/healthz")
def healthz(service: TheService, watch: TheWatch) -> dict[str, Any]:
    """Tell whether this API process can do its work: the database answers, with this version's tables; else 503."""
    for check in watch.alive():
        if check.name == "schema" and not check.ok:
            raise LivesnapError("not_ready", f"the database is not up to date: {check.detail}")
    return service.healthy()


@router.get("/readyz", responses={503: {"description": "The same document; some check is not ok."}})
def readyz(watch: TheWatch) -> JSONResponse:
    """Tell whether a snapshot could be taken now: database, schema, broker, a Manager worker, every SPM, some host."""
    checks = watch.ready()
    ready = all(check.ok for check in checks)
    document = {"status": "ready" if ready else "not_ready", "checks": [_shown(check) for check in checks]}
    return JSONResponse(document, status_code=200 if ready else 503)


@router.get("/metrics", response_class=Response)
def metrics(watch: TheWatch) -> Response:
    """Return the figures of the whole fleet, for Prometheus (deploy/README.md lists them)."""
    registry = CollectorRegistry()
    registry.register(WatchCollector(watch))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _shown(check: Check) -> dict[str, Any]:
    return {"name": check.name, "ok": check.ok, "detail": check.detail}
