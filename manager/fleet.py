"""Who belongs to the fleet: hosts and pools join with one settings file each, hosts are drained, and leave again.

A host's file holds its account at the broker and its private key. Neither is kept here: who has lost the file makes a
new one, which makes the old one worthless.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import Connection

from common import logs
from common.clock import Clock
from common.errors import RequestRefused
from common.ids import HostId, PoolId, require_name
from common.messaging import access, accounts
from common.messaging.admin import BrokerAdmin
from common.messaging.dead_letters import list_dead_letters, purge_dead_letters
from common.messaging.keys import Keyring, SigningKey, replace_public
from common.messaging.queues import MANAGER, host_queue, spm_queue
from common.messaging.urls import is_redis
from common.toml import Settings, toml
from manager.fleet_views import (
    DeadLetterView,
    HostDutyView,
    JoinedView,
    PoolView,
    PurgedView,
    RemovedView,
    StorageDomainView,
)
from manager.settings import ManagerSettings
from manager.store import duty, show_inventory
from manager.store.session import Database

_log = logs.get()
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRequest:
    """What a new host is told. No `storage_domains`: those that are known, at the paths where their SPMs have them."""

    host: str
    libvirt_uri: str = "qemu:///system"
    state_dir: str = "/var/lib/livesnap/host"
    storage_domains: Mapping[str, str] | None = None
    renew: bool = False


class Fleet:
    """Takes hosts and pools in, and lets hosts go. Safe to share between threads.

    Every method raises RequestRefused with nothing done, LivesnapError(database_unavailable), and BrokerUnavailable
    where the broker cannot be told; then repeating it goes on.
    """

    def __init__(self, database: Database, clock: Clock, settings: ManagerSettings) -> None:
        """Record in `database`; broker and keys are those of the settings."""
        self._database = database
        self._clock = clock
        self._settings = settings
        self._keyring = Keyring(settings.keys_dir)
        admin_url = settings.broker_admin_url
        self._admin = BrokerAdmin(admin_url, settings.broker_management_url) if admin_url else None

    # ---- joining ------------------------------------------------------------------------------------------------

    def add_host(self, request: HostRequest) -> JoinedView:
        """Give a host a queue, a key and an account at the broker, and return the settings file that carries them.

        One that has not reported yet may be added again: its earlier file is then worthless. Refuses: host_exists (it
        has reported, and is not to be renewed), request_malformed. A crash leaves a host without a file: add it again.
        """
        host = HostId(_named(request.host))
        with self._database.read() as connection:
            if duty.has_reported(connection, host) and not request.renew:
                raise RequestRefused("host_exists", f"host {host} has joined already")
            known = dict(duty.roots(connection))
        storage = dict(request.storage_domains) if request.storage_domains is not None else known
        own: Settings = {
            "host_id": host,
            "libvirt_uri": request.libvirt_uri,
            "state_dir": request.state_dir,
            "storage_domains": storage,
        }
        joined = self._join(host_queue(host), own, f"host {host}")
        with self._database.write() as connection:
            duty.add(connection, host, self._clock.now())
        _log.info("host.added", host=host, account=joined.account)
        return joined

    def add_pool(self, pool: str, storage_domains: Mapping[str, str]) -> JoinedView:
        """Give the SPMs of a pool a queue, a key and an account, and return their settings file: every SPM of the pool
        has the same. Refuses: pool_exists (an SPM of it has reported), request_malformed."""
        pool_id = PoolId(_named(pool))
        with self._database.read() as connection:
            if pool_id in show_inventory.pools_seen(connection):
                raise RequestRefused("pool_exists", f"an SPM of pool {pool_id} has reported already")
        own: Settings = {"pool": pool_id, "storage_domains": dict(storage_domains)}
        joined = self._join(spm_queue(pool_id), own, f"SPM of pool {pool_id}")
        _log.info("pool.added", pool=pool_id, account=joined.account)
        return joined

    def _join(self, sender: str, own: Settings, what: str) -> JoinedView:
        """Make queue, account and key of a sender; the key counts last, when all else is there."""
        url = self._settings.broker_url_for_others or self._settings.broker_url
        password = accounts.new_password()
        to_do = self._admit(sender, password)
        if urlsplit(url).hostname in _LOOPBACK:
            to_do += (f"The file names the broker by {urlsplit(url).hostname}: set the API's broker_url_for_others.",)
        key = SigningKey.new(sender)
        settings: Settings = {
            "broker_url": accounts.url_as(url, sender, password),
            "private_key": key.private_pem.decode("ascii"),
            "manager_key": self._keyring.public_text(MANAGER),
            **own,
        }
        replace_public(self._settings.keys_dir, key)
        head = f"# livesnap: {what}. It holds secrets: owner root, mode 0600, and nowhere else.\n"
        return JoinedView(
            id=sender.partition(".")[2], queue=sender, account=sender, settings=head + toml(settings), to_do=to_do
        )

    def _admit(self, sender: str, password: str) -> tuple[str, ...]:
        """Make the account and the queue, or return what the broker's administrator has to do."""
        if self._admin is not None:
            left = self._admin.put_account(sender, password)
            self._admin.declare(sender)
            return (left,) if left else ()
        url = self._settings.broker_url
        if is_redis(url):
            rules = " ".join(access.redis_rules(sender, database=accounts.redis_database(url)))
            return (f"At Redis: ACL SETUSER {sender} reset on {access.redis_hash(password)} {rules}",)
        return (f"Load with `rabbitmqctl import_definitions`: {accounts.definitions({sender: password}, url)}",)

    # ---- duty ---------------------------------------------------------------------------------------------------

    def drain_host(self, host: str) -> HostDutyView:
        """Let a host finish what it has and take nothing new; return what it still has. Refuses: host_not_found."""
        return self._set_drained(host, drained=True)

    def resume_host(self, host: str) -> HostDutyView:
        """Let a host take new work again. Refuses: host_not_found."""
        return self._set_drained(host, drained=False)

    def _set_drained(self, host: str, *, drained: bool) -> HostDutyView:
        with self._database.write() as connection:
            known = self._known(connection, host)
            duty.set_drained(connection, known, self._clock.now() if drained else None)
            left = duty.work_left(connection, known).get(known, [])
        _log.info("host.drained" if drained else "host.resumed", host=known, jobs=len(left))
        state = "in_service" if not drained else "draining" if left else "drained"
        return HostDutyView(id=known, duty=state, jobs=tuple(each.job for each in left))

    def _known(self, connection: Connection, host: str) -> HostId:
        if not duty.is_known(connection, HostId(host)):
            raise RequestRefused("host_not_found", f"no host {host!a} was added or has ever reported")
        return HostId(host)

    # ---- leaving ------------------------------------------------------------------------------------------------

    def remove_host(self, host: str) -> RemovedView:
        """Take a host out: its key and its account count no more, its queue goes with what is in it.

        Safe to repeat: a crash leaves a host that is drained and perhaps shut out, and repeating takes the rest away.
        Refuses: host_not_found, host_has_jobs.
        """
        with self._database.write() as connection:
            known = self._known(connection, host)
            left = duty.work_left(connection, known).get(known, [])
            if left:
                raise RequestRefused("host_has_jobs", f"host {known} has {_listed(left)}")
            duty.set_drained(connection, known, self._clock.now())  # nothing begins while it is taken out
            machines = duty.machines_on(connection, known)
        queue = host_queue(known)
        to_do: tuple[str, ...] = ()
        revoked = self._keyring.revoke(queue) if self._keyring.is_known(queue) else ""
        if self._admin is not None:
            undone = self._admin.drop_account(queue)
            self._admin.remove_queue(queue)
            to_do = (undone,) if undone else ()
        else:
            to_do = (f"Remove the account and the queue {queue} at the broker.",)
        with self._database.write() as connection:
            duty.forget(connection, known, revoked, self._clock.now())
        _log.warning("host.removed", host=known, vms=len(machines))
        return RemovedView(id=known, vms=tuple(machines), to_do=to_do)

    # ---- looking ------------------------------------------------------------------------------------------------

    def list_pools(self) -> list[PoolView]:
        """Return the pools by name."""
        with self._database.read() as connection:
            return show_inventory.list_pools(connection, silent_before=self._silent_before())

    def list_storage_domains(self) -> list[StorageDomainView]:
        """Return the storage domains by name."""
        with self._database.read() as connection:
            return show_inventory.list_storage_domains(connection)

    # ---- dead letters -------------------------------------------------------------------------------------------

    def list_dead_letters(self, limit: int) -> list[DeadLetterView]:
        """Return what RabbitMQ took out of circulation, oldest first; [] on Redis."""
        found = list_dead_letters(self._settings.broker_url, limit=limit)
        return [
            DeadLetterView(
                queue=each.queue,
                reason=each.reason,
                count=each.count,
                died_at=each.died_at,
                task=each.task,
                about=each.about,
            )
            for each in found
        ]

    def purge_dead_letters(self) -> PurgedView:
        """Throw them away."""
        purged = purge_dead_letters(self._settings.broker_url)
        _log.warning("dead_letters.purged", count=purged)
        return PurgedView(purged=purged)

    def _silent_before(self) -> datetime:
        return self._clock.now() - self._settings.host_silent_after


def _named(name: str) -> str:
    try:
        require_name(name)
    except ValueError as error:
        raise RequestRefused("request_malformed", str(error)) from None
    return name


def _listed(left: list[duty.WorkLeft]) -> str:
    shown = ", ".join(f"job {each.job} of {each.vm}" for each in left[:5])
    return shown if len(left) <= 5 else f"{shown} and {len(left) - 5} more"
