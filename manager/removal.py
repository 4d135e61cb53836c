"""Operators' words about hosts that do not answer, each checked against the one sign of life that needs no broker.

A host's agents hold a lock on the storage. Only the SPM can see it, and it looks when it is asked: a report would be
some seconds old, and the host could be back since. A lock that is held refuses the word. One that is free proves
nothing, since an agent can be dead and its machines run on; so neither word lets a volume be deleted.
"""

from collections.abc import Callable, Mapping, Sequence

from common import logs
from common.clock import Clock
from common.errors import BrokerUnavailable, LivesnapError, RequestRefused
from common.ids import HostId, PoolId, StorageDomainId
from common.messaging.keys import Keyring
from common.messaging.messages import Failed, HostInspected, InspectHost, Refused
from common.messaging.queues import host_queue, spm_queue
from manager.conductor import Conductor
from manager.fleet_views import RemovedHostView
from manager.flows.base import HostLost
from manager.host_checks import HostChecks, NoAnswer
from manager.store import lost_hosts
from manager.store.session import Database

_log = logs.get()

ACCOUNT = "Delete the host's own account at the message broker, if it has one."
MACHINES = "Start its machines on other hosts, from the volumes that `livesnap vm show` lists."


class HostRemoval:
    """Takes the words. Safe to share between threads."""

    def __init__(
        self,
        database: Database,
        conductor: Conductor,
        host_checks: HostChecks,
        keyring: Keyring,
        clock: Clock,
        *,
        remove_queue: Callable[[str], None],
    ) -> None:
        """Ask SPMs by `host_checks`; take keys out of `keyring`; `remove_queue` is the broker's."""
        self._database = database
        self._conductor = conductor
        self._host_checks = host_checks
        self._keyring = keyring
        self._clock = clock
        self._remove_queue = remove_queue

    def require_no_sign_of_life(self, host: HostId, pools: Mapping[PoolId, Sequence[StorageDomainId]]) -> None:
        """Raise RequestRefused(host_alive) if the host's lock is held on one of these storage domains, and with the
        reason (spm_unreachable, storage_unavailable, …) if that could not be looked at."""
        for pool, storage_domains in pools.items():
            command = InspectHost(host_id=host, storage_domains=tuple(storage_domains))
            try:
                seen = self._host_checks.ask_queue(spm_queue(pool), command).answer
            except NoAnswer as silent:
                message = f"nobody could look whether host {host} holds its lock: {silent}"
                raise RequestRefused("spm_unreachable", message) from silent
            match seen:
                case HostInspected(held_on=()):
                    continue
                case HostInspected(held_on=held_on):
                    where = ", ".join(held_on)
                    raise RequestRefused("host_alive", f"host {host} holds its lock on storage domain {where}")
                case Failed() | Refused():
                    code = seen.code or "spm_unreachable"
                    raise RequestRefused(code, f"the SPM of pool {pool} could not look at host {host}: {seen.message}")
                case _:
                    raise LivesnapError("internal_error", f"the SPM of pool {pool} answered {seen.op}")

    def remove(self, host: HostId) -> RemovedHostView:
        """Give a host up for ever: its word counts no more, its jobs end with every volume kept, its queue goes.

        Safe to repeat. A crash leaves the host shut out, or removed with jobs whose next timer ends them, or with its
        queue, which repeating it removes. Refuses: host_not_found, host_alive, what prevents the looking, and
        settings_invalid where this process does not have the host's public key.
        """
        with self._database.write() as connection:
            known = lost_hosts.find(connection, host)
        if known is None:
            raise RequestRefused("host_not_found", f"no host {host!a} has ever reported")
        self.require_no_sign_of_life(host, known.pools)
        revoked = self._keyring.revoke(host_queue(host))
        now = self._clock.now()
        with self._database.write() as connection:
            names = lost_hosts.remove(connection, host, revoked, now)
            jobs = lost_hosts.jobs_of(connection, host)
        ended = tuple(job for job in jobs if self._conductor.apply(job, HostLost(host=host)))
        to_do = self._without_queue(host)
        _log.warning("host.removed", host=host, jobs=len(ended), vms=len(names))
        return RemovedHostView(id=host, removed_at=now, vms=tuple(names), jobs=ended, to_do=to_do)

    def _without_queue(self, host: HostId) -> tuple[str, ...]:
        """Remove the queue; return what is left for people to do."""
        try:
            self._remove_queue(host_queue(host))
        except BrokerUnavailable as error:
            _log.warning("queue.left", host=host, reason=error.message)
            return f"Remove its queue {host_queue(host)}: {error.message}", ACCOUNT, MACHINES
        return ACCOUNT, MACHINES
