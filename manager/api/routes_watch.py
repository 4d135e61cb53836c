"""For those who watch: health and Prometheus metrics. No token: they name no machine."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from manager.api.dependencies import TheService
from manager.api.metrics import ServiceCollector

router = APIRouter(tags=["watching"])


@router.get("/healthz")
def healthz(service: TheService) -> dict[str, Any]:
    """Tell whether the API can do its work; 503 if its database does not answer."""
    return service.healthy()


@router.get("/metrics", response_class=Response)
def metrics(service: TheService) -> Response:
    """Return jobs by state, what waits in the outbox, and the guests that are frozen now."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
