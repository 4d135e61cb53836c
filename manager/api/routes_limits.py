"""Limits on how many jobs are at work at once."""

from fastapi import APIRouter

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.schemas import LimitBody
from manager.fleet_views import LimitView

router = APIRouter(prefix="/v1", tags=["limits"], responses=RESPONSES)


@router.get("/limits")
def list_limits(service: TheService) -> list[LimitView]:
    """List the limits that are set, with how much of each is used."""
    return service.limits.show()


@router.post("/limits")
def set_limit(service: TheService, body: LimitBody) -> list[LimitView]:
    """Set, change or remove one limit, from the next job on; the answer lists all."""
    return service.limits.put(body.scope, body.name, body.max_jobs)
