"""Pivot, probe and repair on real guests: what the fakes promise, and what only a guest's own file system can tell."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from common.errors import OutcomeUnknown, StaleAttempt
from common.ids import JobId, VmId, new_id
from common.images.locks import image_lock
from common.messaging.messages import DiskSwitch, Outcome, Probe, Repair
from common.receipt import Consistency, label
from hostagent import processes, vm_xml
from hostagent.guest import LibvirtGuest
from tests.bed.oracle import examine
from tests.bed.vm import BedVm
from tests.crash import sampled
from tests.fakes.guest import requested_leaves
from tests.integration.operations_kit import Bench, bench
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("libvirtd", "qemu-img", "libvirt"),
    pytest.mark.xdist_group("operations"),
]


PAUSED_BY_IO_ERROR = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


@pytest.fixture(scope="module")
def on() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(scope="module")
def vm(on: Bench) -> BedVm:
    """One machine with two disks and a writer on each; every test leaves it running, above the leaf it found."""
    return on.boot("ops", disks=2)


@pytest.fixture
def job() -> JobId:
    return JobId(new_id())


def probe_of(vm: BedVm, disks: tuple[DiskSwitch, ...]) -> Probe:
    return Probe(vm_id=VmId(vm.uuid), disks=disks)


def repair_of(vm: BedVm, disks: tuple[DiskSwitch, ...]) -> Repair:
    return Repair(vm_id=VmId(vm.uuid), disks=disks)


def taints(vm: BedVm) -> str:
    with vm.libvirt() as handle:
        return "; ".join(handle.messages(0))


# ---- the straight way -------------------------------------------------------------------------------------------


def test_quiesced(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    old, new = on.paths(disks)
    vm.wait_acks(more=5, target="vdb")
    acked = {target: vm.last_ack(target) for target in old}
    seen = on.ask(on.pivot(vm, disks), job)
    assert (seen.outcome, seen.message) == (Outcome.ALL_NEW, "")
    assert label(seen.receipt) == (Consistency.FILESYSTEM, "")
    assert vm.sources() == vm.sources(persistent=True) == new
    assert all(disk.first_write_bytes > 0 for disk in seen.disks), "ext4 writes its superblock when it thaws"
    assert "monitor" not in taints(vm), "a healthy pivot asks QEMU nothing"
    for target in old:
        found = examine(Path(old[target]))
        assert (found.needs_recovery, found.fsck_rc) == (False, 0)
        assert found.records[-1] >= acked[target], "a write that was acknowledged before the pivot is in the snapshot"
        vm.wait_acks(more=3, target=target)
    assert vm.write_errors() == []


def test_not_quiesced(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    old, new = on.paths(disks)
    vm.wait_acks(more=5)
    seen = on.ask(on.pivot(vm, disks, quiesce=False), job)
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "not_quiesced")
    assert vm.sources() == new
    assert examine(Path(old["vda"])).needs_recovery
    vm.wait_acks(more=3)


def test_paused(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    vm.pause()
    seen = on.ask(on.pivot(vm, disks), job)
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "paused")
    assert vm.sources() == vm.sources(persistent=True) == on.paths(disks)[1]
    vm.resume()
    vm.wait_acks(more=3)


def test_stopped_and_booted_again(on: Bench, vm: BedVm, job: JobId) -> None:
    below = vm_xml.chains(vm.xml())
    vm.destroy()
    boots = vm.console().count("GUEST READY")
    disks = on.switches(vm)
    seen = on.ask(on.pivot(vm, disks), job)
    assert (seen.outcome, seen.message) == (Outcome.ALL_NEW, "")
    vm.start()
    vm.wait_ready(boots=boots + 1)
    new = on.paths(disks)[1]
    for target, chain in vm_xml.chains(vm.xml()).items():
        assert [os.path.realpath(path) for path in chain] == [new[target], *below[target]]
    assert on.ask(probe_of(vm, disks), job).outcome is Outcome.ALL_NEW
    vm.wait_agent()
    vm.wait_acks(more=3)


class LockedAtTheSwitch(LibvirtGuest):
    """Somebody takes the lock of one new leaf after everything was checked."""

    def __init__(self, on: Bench, vm: BedVm, leaf: str) -> None:
        super().__init__(on.agent.connection, VmId(vm.uuid))
        self._leaf = Path(leaf)

    def switch_leaves(self, snapshot_xml: str) -> None:
        with image_lock(self._leaf) as held:
            assert held is not None
            super().switch_leaves(snapshot_xml)


def test_all_disks_or_none(on: Bench, vm: BedVm, job: JobId) -> None:
    """QEMU can take one new leaf and not the other, whose lock somebody holds: no disk moves.

    libvirt 9.0 leaves the file open in QEMU after such an error, in no disk's chain, which is seen, and repaired.
    """
    disks = on.switches(vm)
    old, new = on.paths(disks)
    seen = on.ask(on.pivot(vm, disks), job, LockedAtTheSwitch(on, vm, new["vdb"]))
    assert (seen.outcome, seen.code) == (Outcome.BAD, "chain_unexpected")
    assert "qemu=old new file free; vdb" in seen.message
    assert "Failed to lock byte" in seen.message
    assert vm.sources() == old
    assert vm.freeze_status() == "thawed"
    assert on.ask(repair_of(vm, disks), job).outcome is Outcome.NONE
    assert vm.sources() == vm.sources(persistent=True) == old
    vm.wait_acks(more=3)
    assert on.kit.delete(*disks, attempt=on.attempt + 1, vm=VmId(vm.uuid)).kept == ()


def test_late_message_of_an_older_attempt(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    late = on.envelope(on.pivot(vm, disks), job)
    assert on.ask(probe_of(vm, disks), job).outcome is Outcome.NONE
    with pytest.raises(StaleAttempt):
        on.agent.deps.journal.begin(VmId(vm.uuid), late.attempt, job, late.step)


# ---- libvirt is wrong about QEMU --------------------------------------------------------------------------------


class BehindLibvirt(LibvirtGuest):
    """A libvirtd that dies in the middle of the switch: QEMU has done something, the definitions say nothing of it."""

    def __init__(self, on: Bench, vm: BedVm, *, insert: bool) -> None:
        super().__init__(on.agent.connection, VmId(vm.uuid))
        self._vm, self._insert = vm, insert

    def switch_leaves(self, snapshot_xml: str) -> None:
        for target, path in requested_leaves(snapshot_xml).items():
            self._vm.switch_behind_libvirt(target, path, insert=self._insert)
        raise OutcomeUnknown("pivot_unknown", "End of file while reading data")


def test_definitions_that_lie_are_seen_through_and_repaired(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    old, new = on.paths(disks)
    seen = on.ask(on.pivot(vm, disks, quiesce=False), job, BehindLibvirt(on, vm, insert=True))
    assert seen.outcome is Outcome.BAD
    assert {disk.target: disk.qemu for disk in seen.disks} == new
    assert vm.sources() == old, "libvirt still believes the old leaves"
    vm.wait_acks(more=5)

    repaired = on.ask(repair_of(vm, disks), job)
    assert (repaired.outcome, vm.sources(), vm.sources(persistent=True)) == (Outcome.NONE_ROLLED_BACK, old, old)
    acked = vm.wait_acks(more=3)
    assert vm.write_errors() == []
    vm.pause()
    assert examine(Path(old["vda"])).records[-1] >= acked, "what was written to the new leaf is on the old one"
    vm.resume()
    assert on.ask(on.pivot(vm, on.switches(vm)), JobId(new_id())).outcome is Outcome.ALL_NEW


def test_leaked_nodes_are_seen_and_detached(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    old, _ = on.paths(disks)
    seen = on.ask(on.pivot(vm, disks), job, BehindLibvirt(on, vm, insert=False))
    assert (seen.outcome, seen.code) == (Outcome.BAD, "chain_unexpected")
    repaired = on.ask(repair_of(vm, disks), job)
    assert (repaired.outcome, vm.sources()) == (Outcome.NONE, old)
    assert not any(disk.new_is_locked for disk in repaired.disks)
    vm.wait_acks(more=3)


def test_foreign_overlay_above_ours_is_bad_and_stays(on: Bench, vm: BedVm, job: JobId) -> None:
    disks = on.switches(vm)
    assert on.ask(on.pivot(vm, disks), job).outcome is Outcome.ALL_NEW
    foreign = on.switches(vm)
    vm.snapshot({target: Path(path) for target, path in on.paths(foreign)[1].items()})
    seen = on.ask(probe_of(vm, disks), job)
    assert (seen.outcome, seen.code) == (Outcome.BAD, "chain_unexpected")
    vm.wait_acks(more=3)


# ---- freezing that does not go ----------------------------------------------------------------------------------


class WithMoreTime(LibvirtGuest):
    """A vm whose agent is given more time by another client, right between our own limit and our call.

    The limit belongs to the machine. With this one the freeze call returns well, after all of the hook's time.
    """

    @staticmethod
    def _limit_agent(handle: libvirt.virDomain, limit_ms: int) -> None:
        LibvirtGuest._limit_agent(handle, limit_ms)
        handle.agentSetResponseTimeout(10, 0)


@pytest.mark.matrix
def test_freeze_that_completes_after_its_limit(on: Bench) -> None:
    vm = on.boot("slow", ga="hookslow", hook_s=2)
    for kind, said in ((LibvirtGuest, "not available for now"), (WithMoreTime, "its limit is 1000 ms")):
        disks = on.switches(vm)
        guest = kind(on.agent.connection, VmId(vm.uuid))
        seen = on.ask(on.pivot(vm, disks, freeze_limit_ms=1000), JobId(new_id()), guest)
        assert (seen.outcome, seen.code) == (Outcome.NONE, "freeze_failed"), seen.receipt
        assert said in seen.message
        assert vm.sources() == vm.sources(persistent=True) == on.paths(disks)[0]
        vm.wait_acks(more=5)
        assert vm.freeze_status() == "thawed"
    vm.destroy()


# ---- a call that is still in flight -----------------------------------------------------------------------------


@pytest.mark.matrix
@pytest.mark.slow
def test_call_that_hangs_in_qemu_is_unknown_until_it_ends(on: Bench, vm: BedVm, job: JobId) -> None:
    """V1: what libvirtd still does for a dead agent is waited for, not overlooked."""
    disks = on.switches(vm)
    new, vm_id, pid = on.paths(disks)[1], VmId(vm.uuid), vm.qemu_pid
    assert pid is not None
    on.agent.deps.journal.begin(vm_id, on.attempt, job, disks[0].disk_id)  # type: ignore[arg-type]
    on.agent.deps.journal.call_issued(vm_id, on.attempt, processes.boottime_ms(), on.agent.deps.libvirtd_instance())
    os.kill(pid, signal.SIGSTOP)
    call = threading.Thread(target=lambda: vm.snapshot({target: Path(path) for target, path in new.items()}))
    try:
        call.start()
        # Not `job_running`: a lookup of the job's kind may itself wait behind the call that is held up, for 30 s.
        eventually(lambda: _is_held(vm), timeout_s=5, what="the call")
        begun = time.monotonic()
        seen = on.ask(probe_of(vm, disks), job)
        assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "pivot_unknown")
        assert 25 < time.monotonic() - begun < 40
    finally:
        os.kill(pid, signal.SIGCONT)
        call.join(30)
    seen = on.ask(probe_of(vm, disks), job)
    assert (seen.outcome, vm.sources()) == (Outcome.ALL_NEW, new)
    assert label(seen.receipt) == (Consistency.CRASH, "receipt_lost")
    vm.wait_acks(more=3)


def _is_held(vm: BedVm) -> bool:
    with vm.libvirt() as handle:
        return bool(handle.controlInfo(0)[0] != libvirt.VIR_DOMAIN_CONTROL_OK)


# ---- kill -9 ------------------------------------------------------------------------------------------------------

BEFORE_THE_SWITCH = ["begun", "prepared", "defined", "armed", "frozen", "issued"]
AFTER_THE_SWITCH = ["switched", "thawed", "observed", "done"]
REPAIRING = ("host.repair.begun", "host.repair.committed")


@pytest.mark.slow
@pytest.mark.parametrize("point", sampled(*BEFORE_THE_SWITCH, *AFTER_THE_SWITCH, suite=("frozen", "switched", "done")))
def test_kill_9_at_every_point_of_a_pivot(on: Bench, vm: BedVm, job: JobId, point: str) -> None:
    disks = on.switches(vm)
    old, new = on.paths(disks)
    on.die_in(f"host.pivot.{point}", on.pivot(vm, disks), job)
    vm.wait_acks(more=5, timeout_s=10)  # the guard has thawed whatever was frozen; no probe was needed for that
    seen = on.ask(probe_of(vm, disks), job)
    if point in BEFORE_THE_SWITCH:
        assert (seen.outcome, vm.sources(), vm.sources(persistent=True)) == (Outcome.NONE, old, old)
        assert on.kit.delete(*disks, attempt=on.attempt + 1, vm=VmId(vm.uuid)).kept == ()
    else:
        assert (seen.outcome, vm.sources(), vm.sources(persistent=True)) == (Outcome.ALL_NEW, new, new)
        expected = (Consistency.FILESYSTEM, "") if point == "done" else (Consistency.CRASH, "receipt_lost")
        assert label(seen.receipt) == expected
        assert examine(Path(old["vda"])).fsck_rc == 0
    assert on.agent.deps.journal.frozen_records() == ()
    assert on.agent.deps.guest_of(VmId(vm.uuid)).frozen_mark() == ""
    assert vm.freeze_status() == "thawed"
    assert vm.write_errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("point", sampled("host.probe.begun", "host.probe.done", suite=("host.probe.done",)))
def test_kill_9_in_a_probe(on: Bench, vm: BedVm, job: JobId, point: str) -> None:
    disks = on.switches(vm)
    assert on.ask(on.pivot(vm, disks), job).outcome is Outcome.ALL_NEW
    on.die_in(point, probe_of(vm, disks), job)
    seen = on.ask(probe_of(vm, disks), job)
    assert label(seen.receipt) == (Consistency.FILESYSTEM, "")


@pytest.mark.slow
@pytest.mark.parametrize("point", sampled(*REPAIRING, suite=REPAIRING[1:]))
def test_kill_9_in_a_repair(on: Bench, vm: BedVm, job: JobId, point: str) -> None:
    disks = on.switches(vm)
    old, _ = on.paths(disks)
    assert on.ask(on.pivot(vm, disks), job, BehindLibvirt(on, vm, insert=True)).outcome is Outcome.BAD
    on.die_in(point, repair_of(vm, disks), job)
    assert on.ask(probe_of(vm, disks), job).outcome is Outcome.BAD
    seen = on.ask(repair_of(vm, disks), job)
    assert (seen.outcome, vm.sources(), vm.sources(persistent=True)) == (Outcome.NONE_ROLLED_BACK, old, old)
    vm.wait_acks(more=3)
    assert vm.write_errors() == []
