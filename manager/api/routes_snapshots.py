"""Taking snapshots and looking at them."""

from fastapi import APIRouter, Response

from common.preflight import PreflightLine
from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import IdempotencyKey, Reference, checked, checked_key
from manager.api.schemas import SnapshotBody
from manager.service import SnapshotRequest
from manager.views import JobView, SnapshotView

router = APIRouter(prefix="/v1", tags=["snapshots"], responses=RESPONSES)


@router.post(
    "/vms/{vm:path}/snapshots",
    status_code=202,
    responses={200: {"model": list[PreflightLine], "description": "What a dry run found."}},
)
def create_snapshot(
    service: TheService, response: Response, vm: Reference, body: SnapshotBody, idempotency_key: IdempotencyKey = None
) -> JobView | list[PreflightLine]:
    """Accept a live snapshot; `Location` names its job. Repeated with the same Idempotency-Key it stays one job.

    With `dry_run` nothing is created: the answer has a line for each thing that was looked at, here and on the
    machine's host, which is waited for some seconds.
    """
    request = SnapshotRequest(
        vm=checked(vm),
        name=body.name,
        description=body.description,
        disks=tuple(body.disks),
        quiesce=body.quiesce,
        idempotency_key=checked_key(idempotency_key),
    )
    accepted = service.create_snapshot(request, dry_run=body.dry_run)
    if not isinstance(accepted, JobView):
        response.status_code = 200
        return list(accepted)
    response.headers["Location"] = f"/v1/jobs/{accepted.id}"
    return accepted


@router.get("/vms/{vm:path}/snapshots")
def list_snapshots(service: TheService, vm: Reference) -> list[SnapshotView]:
    """List a machine's snapshots, newest first."""
    return list(service.list_snapshots(checked(vm)))


@router.get("/snapshots/{snapshot:path}")
def show_snapshot(service: TheService, snapshot: Reference) -> SnapshotView:
    """Show a snapshot by its id, by VM/NAME, or by its name where that is unique."""
    return service.show_snapshot(checked(snapshot))
