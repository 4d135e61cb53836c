"""Deleting snapshots."""

from fastapi import APIRouter, Response

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import IdempotencyKey, checked, checked_key
from manager.api.schemas import DeleteBody
from manager.deletions import DeleteRequest
from manager.views import DeletionView, JobView

router = APIRouter(prefix="/v1", tags=["snapshots"], responses=RESPONSES)


@router.post(
    "/snapshots/delete",
    status_code=202,
    responses={200: {"model": list[DeletionView], "description": "What a dry run found."}},
)
def delete_snapshots(
    service: TheService, response: Response, body: DeleteBody, idempotency_key: IdempotencyKey = None
) -> JobView | list[DeletionView]:
    """Delete snapshots of one machine, one after the other in one job; `Location` names it.

    Their data is merged into the volumes below: by QEMU while the machine runs, by the SPM where it does not. With
    `dry_run` nothing is changed: the answer says what would become of which volume.
    """
    request = DeleteRequest(
        snapshots=tuple(checked(each) for each in body.snapshots),
        bytes_per_s=body.bytes_per_s,
        idempotency_key=checked_key(idempotency_key),
    )
    if body.dry_run:
        response.status_code = 200
        return list(service.deletions.dry_run(request))
    accepted = service.deletions.delete(request)
    response.headers["Location"] = f"/v1/jobs/{accepted.id}"
    return accepted
