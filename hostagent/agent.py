"""One agent process put together: connection, journal, locks, guard, storage, and what runs in the background."""

from collections.abc import Callable, Collection
from functools import partial

from common import logs
from common.clock import Clock
from common.ids import VmId
from common.messaging.reports import HostReport
from hostagent import places, processes
from hostagent.block_jobs import LibvirtBlockJobs
from hostagent.connection import Connection
from hostagent.guard_client import GuardClient
from hostagent.guest import LibvirtGuest
from hostagent.inventory import Inventory, Sources
from hostagent.io_errors import IoErrors
from hostagent.journal import SqliteJournal
from hostagent.operations.deps import Deps
from hostagent.ports import VmListed
from hostagent.qemu_user import QemuUsers
from hostagent.reporter import Reporter
from hostagent.settings import HostSettings
from hostagent.shutdowns import ShutdownWatch
from hostagent.storage import MountedStorage, image_state
from hostagent.sweep import Sweeper
from hostagent.vm_locks import VmLockFiles

LIBVIRT_WAIT_S = 5.0
"""How long the first command waits for libvirt at most; without it every start would refuse a few."""


class Agent:
    """Holds what the operations need (`deps`); opens files when made, libvirt when started."""

    def __init__(self, settings: HostSettings, clock: Clock, send: Callable[[HostReport], object]) -> None:
        """Wire everything up. Raises NotReady when the state folder cannot be used."""
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        boot_id = processes.boot_id()
        self._connection = Connection(settings.libvirt_uri)
        self._storage = MountedStorage(settings.storage_domains, settings.host)
        self._journal = SqliteJournal(places.journal_file(settings.state_dir), boot_id=boot_id, clock=clock)
        self._guard = GuardClient(places.guard_socket(settings.state_dir))
        vm_locks = VmLockFiles(places.vm_locks_dir(settings.state_dir))
        io_errors = IoErrors()
        io_errors.attach(self._connection)
        guest_of = partial(LibvirtGuest, self._connection, io_errors=io_errors)
        self._guest_of = guest_of
        self._sweeper = Sweeper(guest_of, self._journal, vm_locks)
        sources = Sources(connection=self._connection, journal=self._journal, vm_locks=vm_locks, storage=self._storage)
        inventory = Inventory(settings.host, boot_id, clock, sources)
        self._shutdowns = ShutdownWatch(guest_of, self._journal, image_state)

        def tell(report: HostReport) -> None:
            self._shutdowns.saw(report.vms)
            send(report)

        self.reporter = Reporter(
            inventory, tell, self._sweeper.wake, settings.report_interval, is_busy=vm_locks.is_held
        )
        self.deps = Deps(
            host_id=settings.host,
            guest_of=guest_of,
            storage=self._storage,
            guard=self._guard,
            journal=self._journal,
            vm_lock=vm_locks,
            shutdowns=self._shutdowns,
            clock=clock,
            boot_id=boot_id,
            libvirtd_instance=self._connection.libvirtd_instance,
            qemu_user=QemuUsers(self._connection),
            verify_ms=settings.verify_ms,
            switch_limit_ms=settings.switch_limit_ms,
        )

    def listing(self, only: Collection[VmId] | None) -> tuple[VmListed, ...]:
        """Return the vms of this host, or those of `only` that exist. Raises NotReady when libvirt is not there."""
        return self._connection.vms(only)

    def block_jobs(self, vm: VmId) -> LibvirtBlockJobs:
        """Return the block jobs of one vm; nothing is asked before the first call."""
        return LibvirtBlockJobs(self._guest_of(vm).handle, vm)

    def start(self) -> None:
        """Connect to libvirt, sweep what a dead predecessor left frozen, and hold the host's own locks."""
        self._sweeper.start()
        self._connection.on_reconnect(self._sweeper.wake)
        self._connection.on_event(self._shutdowns.happened)
        self._connection.on_lost(self._shutdowns.events_were_lost)
        self.reporter.attach(self._connection)
        self._storage.mounts()
        self._connection.start()
        if not self._connection.wait(LIBVIRT_WAIT_S):
            logs.get().warning("libvirt_not_yet", uri=self._connection.uri)

    def begin_reporting(self) -> None:
        """Report everything now, and what changes from now on; call it when commands can come in."""
        self.reporter.start()

    def stop(self) -> None:
        """End what runs in the background. Nothing is thawed: commands have ended, and the guard has the rest."""
        self.reporter.stop()
        self._sweeper.stop()
        self._connection.stop()
        self._guard.close()
        self._storage.close()
        self._journal.close()
