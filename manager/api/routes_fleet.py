"""Who belongs to the fleet: hosts, pools, storage domains."""

from fastapi import APIRouter

from manager.api.dependencies import TheService
from manager.api.problems import RESPONSES
from manager.api.references import Reference, checked
from manager.api.schemas import AddHostBody, AddPoolBody
from manager.fleet import HostRequest
from manager.fleet_views import HostDutyView, JoinedView, PoolView, RemovedView, StorageDomainView

router = APIRouter(prefix="/v1", tags=["fleet"], responses=RESPONSES)


@router.post("/hosts", status_code=201)
def add_host(service: TheService, body: AddHostBody) -> JoinedView:
    """Take a host in. The answer holds its settings file, with its private key and password: it is shown once."""
    return service.fleet.add_host(
        HostRequest(
            host=body.host,
            libvirt_uri=body.libvirt_uri,
            state_dir=body.state_dir,
            storage_domains=body.storage_domains,
            renew=body.renew,
        )
    )


@router.post("/hosts/{host}/drain")
def drain_host(service: TheService, host: Reference) -> HostDutyView:
    """Let a host finish what it has and take nothing new."""
    return service.fleet.drain_host(checked(host))


@router.post("/hosts/{host}/resume")
def resume_host(service: TheService, host: Reference) -> HostDutyView:
    """Let a host take new work again."""
    return service.fleet.resume_host(checked(host))


@router.delete("/hosts/{host}")
def remove_host(service: TheService, host: Reference) -> RemovedView:
    """Take a host out: its key and account count no more, its queue goes. Refused while it has unfinished jobs."""
    return service.fleet.remove_host(checked(host))


@router.get("/pools")
def list_pools(service: TheService) -> list[PoolView]:
    """List the pools whose SPM has reported."""
    return service.fleet.list_pools()


@router.post("/pools", status_code=201)
def add_pool(service: TheService, body: AddPoolBody) -> JoinedView:
    """Take a pool in. The answer holds the settings file of its SPMs, with their key and password: it is shown once."""
    return service.fleet.add_pool(body.pool, body.storage_domains)


@router.get("/storage-domains")
def list_storage_domains(service: TheService) -> list[StorageDomainView]:
    """List the storage domains that SPMs have reported."""
    return service.fleet.list_storage_domains()
