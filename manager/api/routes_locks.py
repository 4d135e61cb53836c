"""Locks on machines, for scripts that clone them or back them up."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import IdempotencyKey, Reference, checked, checked_key
from manager.api.schemas import LockBody
from manager.views import LockView

router = APIRouter(prefix="/v1", tags=["locks"], responses=RESPONSES)


@router.post("/vms/{vm:path}/lock")
def lock_vm(service: TheService, vm: Reference, body: LockBody, idempotency_key: IdempotencyKey = None) -> LockView:
    """Keep jobs off a machine. Repeated with the same Idempotency-Key it returns the same lock."""
    ttl = None if body.ttl_s is None else timedelta(seconds=body.ttl_s)
    key = checked_key(idempotency_key)
    return service.lock_vm(checked(vm), reason=body.reason, ttl=ttl, idempotency_key=key)


@router.delete("/vms/{vm:path}/lock")
def unlock_vm(
    service: TheService,
    vm: Reference,
    lock: Annotated[str | None, Query(description="Free only the lock of this id.")] = None,
) -> LockView:
    """Free a machine's lock and return it."""
    return service.unlock_vm(checked(vm), lock=lock)
