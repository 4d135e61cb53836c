"""A migration that a test holds up for as long as it wants, and then lets end well or aborts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

import libvirt

from tests.bed.host import IsolatedHost
from tests.bed.vm import BedVm
from tests.wait import eventually

#: The least that libvirt knows. A guest has about 80 MiB to send, so that it stays under way for over a minute.
SLOWEST_MIB_PER_S = 1
FULL_SPEED_MIB_PER_S = 4000


class Migration:
    """One migration that is under way.

    Never let a guest that runs come to the end of a slow one: under emulation it then arrives with stale memory and
    hangs (5 of 10 at 30 MiB/s, QEMU 7.2; 0 of 6 of those that were held at the slowest speed and then let go).
    """

    def __init__(self, vm: BedVm, handle: libvirt.virDomain, moved: Future[BedVm]) -> None:
        self._name = vm.name
        self._handle = handle
        self._moved = moved

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self._moved.done()

    def finish(self, *, timeout_s: float = 60) -> BedVm:
        """Let it end, and return the machine on the other host."""
        self._handle.migrateSetMaxSpeed(FULL_SPEED_MIB_PER_S, 0)
        return self._moved.result(timeout_s)

    def abort(self) -> None:
        """Abort it, and wait until it is over; one that has ended already stays as it is."""
        while not self.is_over:
            with suppress(libvirt.libvirtError):
                self._handle.abortJob()
            wait([self._moved], timeout=1)

    def _begun(self) -> bool:
        jobless = libvirt.VIR_DOMAIN_JOB_NONE
        return self.is_over or self._handle.jobStats(0).get("type", jobless) != jobless


@contextmanager
def migrating(vm: BedVm, other: IsolatedHost, *, leave_definition: bool = False) -> Iterator[Migration]:
    """Yield a migration that is held up; it is aborted at the end of the block unless it was told to finish."""
    with ThreadPoolExecutor(1) as pool, vm.libvirt() as handle:
        moved = pool.submit(vm.migrate_to, other, leave_definition=leave_definition, mib_per_s=SLOWEST_MIB_PER_S)
        migration = Migration(vm, handle, moved)
        try:
            eventually(migration._begun, timeout_s=20, what=f"{vm.name} to begin to migrate")
            yield migration
        finally:
            migration.abort()
