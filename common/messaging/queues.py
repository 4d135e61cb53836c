"""Queue names. A consumer's queue is also its identity as a sender: `manager`, `spm.<pool>`, `host.<host>`."""

from common.ids import HostId, PoolId

MANAGER = "manager"


def spm_queue(pool: PoolId) -> str:
    """Return the queue of the active SPM of `pool`."""
    return f"spm.{pool}"


def host_queue(host: HostId) -> str:
    """Return the queue that all agent processes of `host` consume."""
    return f"host.{host}"


def host_of(queue: str) -> HostId | None:
    """Return the host whose queue this is, None for any other queue."""
    kind, _, name = queue.partition(".")
    return HostId(name) if kind == "host" and name else None


def pool_of(queue: str) -> PoolId | None:
    """Return the pool whose SPM's queue this is, None for any other queue."""
    kind, _, name = queue.partition(".")
    return PoolId(name) if kind == "spm" and name else None
