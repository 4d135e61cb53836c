"""`/v1/doctor`: database, storage and live machines compared."""

from fastapi import APIRouter

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.views import DiagnosisView

router = APIRouter(prefix="/v1/doctor", tags=["doctor"], responses=RESPONSES)


@router.get("")
def examine(service: TheService) -> DiagnosisView:
    """Ask every host and SPM what is there, and return what differs from the record. Changes nothing."""
    return service.examine()


@router.post("", status_code=202)
def repair(service: TheService) -> DiagnosisView:
    """Start the repairs that are provably safe, one for each machine. `job` names each; ask again once they end."""
    return service.repair()
