"""The Manager put together from its settings: the one place where worker and API learn who uses what."""

from dataclasses import dataclass

from common.clock import Clock, SystemClock
from common.messaging.keys import SigningKey
from common.messaging.queues import MANAGER
from common.messaging.shell import Publish
from manager.conductor import Conductor
from manager.host_checks import HostChecks
from manager.service import Service
from manager.settings import ManagerSettings
from manager.store.session import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """The parts that a process of the Manager needs."""

    settings: ManagerSettings
    clock: Clock
    key: SigningKey
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
    conductor = Conductor(database, key, publish, clock, settings=settings)
    host_checks = HostChecks(database, key, publish, clock, settings=settings)
    return Assembly(
        settings=settings,
        clock=clock,
        key=key,
        database=database,
        conductor=conductor,
        host_checks=host_checks,
        service=Service(database, conductor, clock, settings=settings, host_checks=host_checks),
    )
