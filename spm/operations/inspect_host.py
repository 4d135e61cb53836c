"""Look at a host's own locks: the one sign of life that needs neither the broker nor the host's word."""

from common import logs
from common.messaging.messages import HostInspected, InspectHost
from spm.pool import Pool

_log = logs.get()


def inspect_host(command: InspectHost, pool: Pool) -> HostInspected:
    """Return on which of the storage domains the host's own lock is held now.

    Raises NotReady when one of them cannot be looked at, StorageError for one that is not in the settings: what was not
    seen must not pass for free.
    """
    backends = [pool.backend(storage_domain) for storage_domain in command.storage_domains]
    held = tuple(each.identity.storage_domain_id for each in backends if each.is_held_by(command.host_id))
    _log.info("host.inspected", host=command.host_id, storage_domains=len(backends), held_on=list(held))
    return HostInspected(held_on=held)
