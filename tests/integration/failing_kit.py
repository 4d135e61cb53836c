"""A machine whose writes to new leaves can be made to fail, and what must be true of it after each such pivot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import libvirt

from common.ids import JobId, VmId, new_id
from common.messaging.messages import DiskSwitch, LeavesObserved, Outcome, Pivot, Probe, Repair
from hostagent.guest import LibvirtGuest
from tests.bed.failing_fs import FailingFs
from tests.bed.oracle import examine
from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm
from tests.integration.operations_kit import Bench
from tests.wait import eventually

XFS = "vde"
"""The disk with a file system that the oracle cannot read."""
PAUSED_BY_IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the host saw, and for how many seconds each the machine was paused by an I/O error meanwhile."""

    seen: LeavesObserved
    job: JobId
    disks: tuple[DiskSwitch, ...]
    pauses: list[float]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A machine on a bench; `failing` makes writes fail with EIO, `small` with ENOSPC."""

    on: Bench
    vm: BedVm
    failing: FailingFs
    small: SmallFs

    def pivot(self, disks: tuple[DiskSwitch, ...], *, quiesce: bool, guest: LibvirtGuest | None = None) -> Answered:
        """Pivot to these leaves; `guest` stands in for the real one."""
        return self._ask(self.on.pivot(self.vm, disks, quiesce=quiesce), JobId(new_id()), guest)

    def repair(self, before: Answered) -> Answered:
        """Repair what a pivot has left."""
        return self._ask(Repair(vm_id=VmId(self.vm.uuid), disks=before.disks), before.job)

    def probe(self, before: Answered) -> Answered:
        """Look at what a pivot has left."""
        return self._ask(Probe(vm_id=VmId(self.vm.uuid), disks=before.disks), before.job)

    def _ask(self, command: Pivot | Repair | Probe, job: JobId, guest: LibvirtGuest | None = None) -> Answered:
        with pauses(self.vm) as lengths:
            seen = self.on.ask(command, job, guest)
        return Answered(seen=seen, job=job, disks=command.disks, pauses=lengths)

    def mend(self) -> None:
        """Let writes succeed again."""
        self.failing.heal()
        self.small.free()

    def require_back(self, got: Answered, *, code: str = "volume_not_writable") -> None:
        """Fail unless the guest is back on its old leaves and writes, with no record lost, and nobody uses the new
        leaves; end the failures, and delete those."""
        on, vm = self.on, self.vm
        old, new = on.paths(got.disks)
        assert (got.seen.outcome, got.seen.code) == (Outcome.NONE_ROLLED_BACK, code), got.seen
        assert vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        assert old.items() <= vm.sources().items()
        assert old.items() <= vm.sources(persistent=True).items()
        assert not any(disk.new_is_locked for disk in got.seen.disks)
        assert not {node.path for node in on.agent.deps.guest_of(VmId(vm.uuid)).qemu_nodes()} & set(new.values())
        assert vm.freeze_status() == "thawed"
        assert on.agent.deps.journal.frozen_records() == ()
        self.require_writing()
        self.mend()
        volumes = tuple(disk.new.volume_id for disk in got.disks)
        on.attempt += 1
        answer = on.kit.delete(*got.disks, attempt=on.attempt, vm=VmId(vm.uuid), committed=volumes)
        assert (set(answer.gone), answer.kept) == (set(volumes), ())

    def require_writing(self) -> None:
        """Fail unless the guest writes on every disk with error policy `stop`, without a gap, and heard of no error."""
        heard = {error.target for error in self.vm.write_errors()}
        for disk in self.vm.spec.disks:
            numbers = [ack.n for ack in self.vm.acks() if ack.target == disk.target]
            assert numbers == list(range(1, len(numbers) + 1)), f"{disk.target}: a record is missing, or is there twice"
            if numbers and disk.error_policy == "stop":
                self.vm.wait_acks(more=2, target=disk.target)
                assert disk.target not in heard

    def require_records(self) -> None:
        """Pull the plug; fail unless every acknowledged record of those disks is on the leaf of the definition."""
        self.vm.pause()
        acked = {ack.target: ack.n for ack in self.vm.acks()}
        self.vm.destroy()
        for disk in self.vm.spec.disks:
            if disk.error_policy == "stop" and disk.target in acked and disk.target != XFS:
                found = examine(disk.path, format=disk.format)
                assert found.fsck_rc == 0, disk.target
                assert found.records[: acked[disk.target]] == tuple(range(1, acked[disk.target] + 1)), disk.target


class BreaksAfterThaw(LibvirtGuest):
    """A guest that thaws well, and whose later writes fail."""

    def __init__(self, scene: Scene, breaks: Callable[[], None]) -> None:
        agent = scene.on.agent
        super().__init__(agent.connection, VmId(scene.vm.uuid), agent.io_errors)
        self._breaks = breaks

    def thaw(self, limit_ms: int) -> int:
        count = super().thaw(limit_ms)
        self._breaks()
        return count


@contextmanager
def pauses(vm: BedVm) -> Iterator[list[float]]:
    """Collect for how many seconds each time the machine was paused by an I/O error, as libvirt tells of it."""
    since: list[float] = []
    lengths: list[float] = []

    def happened(_raw: object, _handle: object, event: int, detail: int, _: object) -> None:
        if (event, detail) == (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR):
            since.append(time.monotonic())
        elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and since:
            lengths.append(time.monotonic() - since.pop())

    with vm.libvirt() as handle:
        raw = handle.connect()
        number = raw.domainEventRegisterAny(handle, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, happened, None)
        try:
            yield lengths
            eventually(lambda: not since or vm.state() == PAUSED_BY_IO_ERROR, timeout_s=5, what="the last event")
        finally:
            raw.domainEventDeregisterAny(number)
