"""What this host tells the Manager of its vms and mounts. It looks; it changes nothing.

The journal is read before the definitions are: a report that says attempt 7 shows leaves at least as new as that
attempt left them, and a report that was overtaken by a later attempt can be told by its number.
"""

from collections.abc import Collection
from dataclasses import dataclass

from common import logs
from common.clock import Clock
from common.errors import LivesnapError
from common.ids import HostId, VmId, new_id
from common.messaging.reports import HostReport, VmReport, VmState
from hostagent import processes, vm_xml
from hostagent.connection import Connection
from hostagent.guest import LibvirtGuest
from hostagent.journal import SqliteJournal
from hostagent.ports import VmListed
from hostagent.storage import MountedStorage
from hostagent.vm_locks import VmLockFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the inventory looks."""

    connection: Connection
    journal: SqliteJournal
    vm_locks: VmLockFiles
    storage: MountedStorage


class Inventory:
    """Makes the reports of one agent process, which is one incarnation. For one thread only."""

    def __init__(self, host_id: HostId, boot_id: str, clock: Clock, sources: Sources) -> None:
        """Begin a new incarnation."""
        self._host_id = host_id
        self._boot_id = boot_id
        self._clock = clock
        self._sources = sources
        self._incarnation = new_id()
        self._sequence = 0

    def look(self, only: Collection[VmId] | None = None) -> HostReport:
        """Report every vm of this host, or those of `only`; those of them that do not exist here stand in `gone`.

        Raises LivesnapError when libvirt or the journal does not answer.
        """
        attempts = self._sources.journal.attempts()
        recorded = {vm for vm, _, _ in self._sources.journal.frozen_records()}
        listed = self._sources.connection.vms(only)
        marked = {vm.vm_id for vm in listed if vm_xml.frozen_mark(vm.live_xml)}
        return self._report(
            vms=tuple(self._describe(vm, *attempts.get(vm.vm_id, (0, True))) for vm in listed),
            gone=tuple(sorted(set(only or ()) - {vm.vm_id for vm in listed})),
            frozen=tuple(sorted(recorded | marked)),
            full=only is None,
        )

    def libvirt_down(self, problem: str) -> HostReport:
        """Report that libvirt cannot be reached; nothing is claimed about any vm."""
        return self._report(problem=problem)

    def _report(
        self,
        *,
        full: bool = False,
        vms: tuple[VmReport, ...] = (),
        gone: tuple[VmId, ...] = (),
        frozen: tuple[VmId, ...] = (),
        problem: str = "",
    ) -> HostReport:
        self._sequence += 1
        return HostReport(
            host_id=self._host_id,
            boot_id=self._boot_id,
            incarnation=self._incarnation,
            sequence=self._sequence,
            observed_at=self._clock.now(),
            libvirt_up=not problem,
            full=full,
            vms=vms,
            gone=gone,
            storage_domains=self._sources.storage.mounts(),
            frozen=frozen,
            problem=problem,
        )

    def _describe(self, vm: VmListed, attempt: int, answered: bool) -> VmReport:
        names = self._sources.connection.pid_files(vm.name)
        is_busy, storage = self._sources.vm_locks.is_held(vm.vm_id), self._sources.storage
        return VmReport(
            vm_id=vm.vm_id,
            name=vm.name,
            state=vm.state,
            persistent=bool(vm.persistent_xml),
            agent=vm_xml.agent_state(vm.live_xml or vm.persistent_xml),
            disks=vm_xml.disks(vm.live_xml, vm.persistent_xml, storage.locate, storage.is_encrypted),
            attempt=attempt,
            in_flight=is_busy or not answered,
            runtime_id=processes.qemu_run(vm.vm_id, names) if vm.live_xml else "",
            # A job of our own command is no migration, and asking for it would wait for the command's end.
            migrating=vm.state is VmState.PAUSED_MIGRATION or (not is_busy and self._job_of(vm) == "migration"),
            managed_save=vm.managed_save,
            libvirt_snapshots=vm.snapshots,
        )

    def _job_of(self, vm: VmListed) -> str:
        if not vm.live_xml:
            return ""
        try:
            return LibvirtGuest(self._sources.connection, vm.vm_id).job_running()
        except LivesnapError as error:
            logs.get().info("job_not_known", vm=vm.vm_id, seen=str(error))
            return ""
