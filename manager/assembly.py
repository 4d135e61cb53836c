"""The Manager put together from its settings: the one place where worker and API learn who uses what."""

from dataclasses import dataclass
from functools import partial

from common.clock import Clock, SystemClock
from common.messaging.broker import remove_queue
from common.messaging.keys import Keyring, SigningKey
from common.messaging.queues import MANAGER
from common.messaging.shell import Publish
from manager.conductor import Conductor
from manager.host_checks import HostChecks
from manager.removal import HostRemoval
from manager.service import Service
from manager.settings import ManagerSettings
from manager.store.session import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The parts that a process of the Manager needs."""

    settings: ManagerSettings
    clock: Clock
    key: SigningKey
    keyring: Keyring
    database: Database
    conductor: Conductor
    host_checks: HostChecks
    service: Service


def assemble(settings: ManagerSettings, publish: Publish) -> Assembly:
    """Build the parts; connects to nothing yet. Call `database.upgrade()` before they are used.

    Raises LivesnapError(settings_invalid) for an unreadable key or an impossible database URL.
    """
    clock = SystemClock()
    key = SigningKey.load(settings.key_file, MANAGER)
    database = Database(settings.url, pool_size=settings.database_pool_size)
    keyring = Keyring(settings.keys_dir)
    conductor = Conductor(database, key, publish, clock, settings=settings)
    host_checks = HostChecks(database, key, publish, clock, settings=settings)
    forget = partial(remove_queue, settings.broker_admin_url or settings.broker_url)
    removal = HostRemoval(database, conductor, host_checks, keyring, clock, remove_queue=forget)
    return Assembly(
        settings=settings,
        clock=clock,
        key=key,
        keyring=keyring,
        database=database,
        conductor=conductor,
        host_checks=host_checks,
        service=Service(database, conductor, clock, settings=settings, host_checks=host_checks, removal=removal),
    )
