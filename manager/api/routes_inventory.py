"""Hosts and machines, as their agents have reported them."""

from fastapi import APIRouter

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import Reference, checked
from manager.views import HostView, VmView

router = APIRouter(prefix="/v1", tags=["inventory"], responses=RESPONSES)


@router.get("/hosts")
def list_hosts(service: TheService) -> list[HostView]:
    """List the hosts, with the guests that are frozen there now."""
    return list(service.list_hosts())


@router.get("/vms")
def list_vms(service: TheService) -> list[VmView]:
    """List the machines."""
    return list(service.list_vms())


@router.get("/vms/{vm:path}")
def show_vm(service: TheService, vm: Reference) -> VmView:
    """Show a machine with its disks and their chains."""
    return service.show_vm(checked(vm))
