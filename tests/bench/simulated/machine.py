"""A simulated machine: one vm in memory with its own part of the storage, and what a host agent needs to work on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.clock import SystemClock
from common.ids import HostId, VmId, derived_id
from common.messaging.messages import DiskSwitch
from common.messaging.reports import AgentState, DiskReport, MountReport, VmReport
from hostagent.journal import SqliteJournal
from hostagent.operations.deps import Deps
from hostagent.ports import QemuUser
from hostagent.shutdowns import ShutdownWatch
from tests.bench.simulated.guest import SimulatedGuest
from tests.fakes.guard import FakeGuard
from tests.fakes.storage import ROOT, FakeFile, FakeStorage
from tests.fakes.vm import FakeVm, sources_of
from tests.integration.manager_kit import STORAGE

BOOT: Final = "simulated-boot"
TARGET: Final = "vda"


def journal() -> SqliteJournal:
    """Return a journal in memory: a simulated host's disk is not this machine's, on which a thousand would queue up."""
    return SqliteJournal(Path(":memory:"), boot_id=BOOT, clock=SystemClock())


class Machine:
    """One machine on one host. Its host's agent works on it by `deps`."""

    def __init__(self, host: HostId, name: str, records: SqliteJournal) -> None:
        """Make a running machine with one disk, which lies on its own base in the storage domain."""
        self.host, self.name = host, name
        self.vm_id = VmId(derived_id("bench vm", name))
        self._journal = records
        self._storage = FakeStorage(STORAGE, lambda: self._vm.open_paths(), lambda: self._vm.leaves())
        self._vm = FakeVm(vm_id=self.vm_id, files=self._storage.files)
        self._vm.add_disk(TARGET, f"{ROOT}/{name}.qcow2", f"{ROOT}/base.qcow2")
        self._guest = SimulatedGuest(self._vm)
        self.deps = self._deps()

    def _deps(self) -> Deps:
        clock = SystemClock()
        return Deps(
            host_id=self.host,
            guest_of=lambda _: self._guest,
            storage=self._storage,
            guard=FakeGuard(lambda _: None),
            journal=self._journal,
            vm_lock=_free,
            shutdowns=ShutdownWatch(lambda _: self._guest, self._journal, self._storage.image_state),
            clock=clock,
            boot_id=BOOT,
            libvirtd_instance=lambda: "libvirtd-1",
            image_users=lambda _: (),
            qemu_user=lambda _: QemuUser(uid=107, gid=107),
        )

    def see(self, disks: tuple[DiskSwitch, ...]) -> None:
        """Let the new volumes that the SPM says it has made be there."""
        for disk in disks:
            self._storage.files.setdefault(f"{ROOT}/{disk.new.path}", FakeFile(parent=f"{ROOT}/{disk.old.path}"))

    def report(self) -> VmReport:
        """Return the machine as its host's agent reports it."""
        known = self._journal.current(self.vm_id)
        source, kept = self._vm.tops()[TARGET], sources_of(self._vm.persistent)[TARGET]
        disk = DiskReport(
            target=TARGET,
            device="disk",
            source_type="file",
            bus="virtio",
            format="qcow2",
            source=source,
            persistent_source=kept,
            storage_domain_id=STORAGE,
            path=source.removeprefix(f"{ROOT}/"),
            error_policy="stop",
        )
        return VmReport(
            vm_id=self.vm_id,
            name=self.name,
            state=self._guest.state(),
            persistent=True,
            agent=AgentState.CONNECTED,
            disks=(disk,),
            attempt=known.attempt if known else 0,
            runtime_id=self._guest.runtime_id(),
        )


@contextmanager
def _free(_: VmId) -> Iterator[bool]:
    """One process has every message of a simulated host, and the Manager sends one at a time for each machine."""
    yield True


def mount() -> MountReport:
    """Return the storage domain as every host and the SPM have it mounted."""
    return MountReport(storage_domain_id=STORAGE, name="main", root=ROOT, free_bytes=1 << 40, total_bytes=1 << 41)
