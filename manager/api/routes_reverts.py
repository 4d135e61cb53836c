"""Going back to a snapshot: preview, commit, undo, revert. Each is a job; `Location` names it."""

from fastapi import APIRouter, Response

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import IdempotencyKey, Reference, checked, checked_key
from manager.api.schemas import NothingBody, PreviewBody, RevertBody
from manager.flows.revert_states import Goal
from manager.reverts import Ask
from manager.service import Service
from manager.views import JobView, LossView

router = APIRouter(prefix="/v1", tags=["going back"], responses=RESPONSES)


@router.post("/snapshots/{snapshot:path}/preview", status_code=202)
def preview(
    service: TheService,
    response: Response,
    snapshot: Reference,
    body: PreviewBody,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Give a stopped machine new leaves above a snapshot's volumes; its present ones are kept, for `undo`."""
    ask = _ask("preview", snapshot, body.disks, idempotency_key)
    return _started(service, response, ask)


@router.post(
    "/snapshots/{snapshot:path}/revert",
    status_code=202,
    responses={200: {"model": LossView, "description": "What a dry run says would be given up."}},
)
def revert(
    service: TheService,
    response: Response,
    snapshot: Reference,
    body: RevertBody,
    idempotency_key: IdempotencyKey = None,
) -> JobView | LossView:
    """Put a stopped machine back on a snapshot for good; what was written since is given up.

    With `dry_run` nothing is created: the answer says what would be given up.
    """
    ask = _ask("revert", snapshot, body.disks, idempotency_key)
    if body.dry_run:
        response.status_code = 200
        return service.reverts.loss(ask)
    return _started(service, response, ask)


@router.post("/vms/{vm:path}/commit", status_code=202)
def commit(
    service: TheService, response: Response, vm: Reference, body: NothingBody, idempotency_key: IdempotencyKey = None
) -> JobView:
    """Make a preview permanent: the leaves that were kept are given up. Snapshots on their branch stay."""
    return _started(service, response, _ask("commit", vm, [], idempotency_key))


@router.post("/vms/{vm:path}/undo", status_code=202)
def undo(
    service: TheService, response: Response, vm: Reference, body: NothingBody, idempotency_key: IdempotencyKey = None
) -> JobView:
    """End a preview: the machine comes back to the leaves that were kept, and what it wrote meanwhile is given up."""
    return _started(service, response, _ask("undo", vm, [], idempotency_key))


def _ask(goal: Goal, reference: str, disks: list[str], key: str | None) -> Ask:
    return Ask(goal=goal, reference=checked(reference), disks=tuple(disks), idempotency_key=checked_key(key))


def _started(service: Service, response: Response, ask: Ask) -> JobView:
    job = service.reverts.start(ask)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job
