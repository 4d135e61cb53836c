"""Hosts and machines, as their agents have reported them."""

from fastapi import APIRouter

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import Reference, checked
from manager.api.schemas import RemoveHostBody
from manager.fleet_views import HostView, RemovedHostView
from manager.views import VmView

router = APIRouter(prefix="/v1", tags=["inventory"], responses=RESPONSES)


@router.get("/hosts")
def list_hosts(service: TheService) -> list[HostView]:
    """List the hosts, with the guests that are frozen there now."""
    return list(service.list_hosts())


@router.post("/hosts/{host}/remove")
def remove_host(service: TheService, host: Reference, body: RemoveHostBody) -> RemovedHostView:
    """Give a host up that never comes back: its jobs end with every volume kept, and it is refused from now on.

    Refused while the host's own lock on the storage is held.
    """
    return service.remove_host(checked(host))


@router.get("/vms")
def list_vms(service: TheService) -> list[VmView]:
    """List the machines."""
    return list(service.list_vms())


@router.get("/vms/{vm:path}")
def show_vm(service: TheService, vm: Reference) -> VmView:
    """Show a machine with its disks and their chains."""
    return service.show_vm(checked(vm))
