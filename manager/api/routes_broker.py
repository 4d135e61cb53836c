"""The broker's dead letters."""

from typing import Annotated

from fastapi import APIRouter, Query

from common.messaging.dead_letters import MAX_SHOWN
from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.fleet_views import DeadLetterView, PurgedView

router = APIRouter(prefix="/v1", tags=["broker"], responses=RESPONSES)


@router.get("/dead-letters")
def list_dead_letters(
    service: TheService, limit: Annotated[int, Query(ge=1, le=MAX_SHOWN)] = 100
) -> list[DeadLetterView]:
    """List messages that RabbitMQ took out of circulation, oldest first. Redis has none."""
    return service.fleet.list_dead_letters(limit)


@router.delete("/dead-letters")
def purge_dead_letters(service: TheService) -> PurgedView:
    """Throw them away. Nothing is lost with them: what is still to be done is sent again."""
    return service.fleet.purge_dead_letters()
