"""A pivot and a real migration that get in each other's way: the guest is never frozen while a switch waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from common.ids import JobId, VmId, new_id
from common.messaging.messages import DiskSwitch, LeavesObserved, Outcome, Probe
from common.receipt import Consistency, label
from hostagent.guest import LibvirtGuest
from tests.bed.host import IsolatedHost
from tests.bed.migration import Migration, migrating
from tests.bed.vm import BedVm
from tests.integration.operations_kit import AgentParts, Bench, Place, bench, carry_out
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("libvirtd", "qemu-img", "libvirt"),
    pytest.mark.xdist_group("operations-migration"),
]

SWITCH_LIMIT_MS = 1500


@pytest.fixture(scope="module")
def on() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(scope="module")
def other(on: Bench) -> Iterator[IsolatedHost]:
    """A second host, which sees the same storage."""
    with IsolatedHost("b", on.host.dir.parent) as host:
        yield host


@pytest.fixture(scope="module")
def vm(on: Bench) -> BedVm:
    """One machine with a writer; every test leaves it running on the first host, above the leaf it found."""
    return on.boot("mover")


@pytest.fixture
def job() -> JobId:
    return JobId(new_id())


@dataclass
class Migrating(LibvirtGuest):
    """The real thing, and somebody who starts a migration right after a freeze, or right before a switch."""

    on: Bench
    vm: BedVm
    other: IsolatedHost
    moment: str
    stack: ExitStack
    leave_definition: bool = False
    migration: Migration | None = None

    def __post_init__(self) -> None:
        super().__init__(self.on.agent.connection, VmId(self.vm.uuid))

    def freeze(self, limit_ms: int) -> int:
        count = super().freeze(limit_ms)
        self._begin("frozen")
        return count

    def switch_leaves(self, snapshot_xml: str) -> None:
        self._begin("switching")
        super().switch_leaves(snapshot_xml)

    def _begin(self, moment: str) -> None:
        if moment == self.moment:
            held_up = migrating(self.vm, self.other, leave_definition=self.leave_definition)
            self.migration = self.stack.enter_context(held_up)


def probe_of(vm: BedVm, disks: tuple[DiskSwitch, ...]) -> Probe:
    return Probe(vm_id=VmId(vm.uuid), disks=disks)


def the_guest_writes_meanwhile(vm: BedVm, guest: Migrating, asked: Future[LeavesObserved]) -> Migration:
    """Fail unless the guest writes while the switch still waits for the migration, which is returned."""
    migration = eventually(lambda: guest.migration, timeout_s=30, what="the migration")
    assert migration is not None
    # A record that was under way may still be acknowledged, once frozen; not several.
    vm.wait_acks(more=5, timeout_s=25)
    assert not asked.done()
    assert not migration.is_over
    assert vm.freeze_status() == "thawed"
    return migration


def test_one_that_begins_while_the_guest_freezes_is_not_waited_for(
    on: Bench, vm: BedVm, other: IsolatedHost, job: JobId
) -> None:
    disks = on.switches(vm)
    old, new = on.paths(disks)
    with ExitStack() as stack:
        guest = Migrating(on, vm, other, "frozen", stack)
        seen = on.ask(on.pivot(vm, disks), job, guest, switch_limit_ms=30_000)
        assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "vm_migrating"), seen
        assert guest.job_running() == "migration"
        assert vm.freeze_status() == "thawed"
        vm.wait_acks(more=3)
        # The definition was set back, but the one that travels is that of the beginning: nothing may be deleted yet.
        assert vm.sources() == vm.sources(persistent=True) == old
        assert on.ask(probe_of(vm, disks), job).code == "vm_migrating"
    seen = on.ask(probe_of(vm, disks), job)
    assert (seen.outcome, vm.sources(), vm.sources(persistent=True)) == (Outcome.NONE, old, old)
    assert on.agent.deps.journal.frozen_records() == ()
    assert on.agent.deps.guest_of(VmId(vm.uuid)).frozen_mark() == ""
    assert on.kit.delete(*disks, attempt=on.attempt + 1, vm=VmId(vm.uuid)).kept == (), new


def test_one_that_begins_right_before_the_switch_and_fails(
    on: Bench, vm: BedVm, other: IsolatedHost, job: JobId
) -> None:
    disks = on.switches(vm)
    new = on.paths(disks)[1]
    with ThreadPoolExecutor(1) as pool:
        with ExitStack() as stack:
            guest = Migrating(on, vm, other, "switching", stack)
            asked = pool.submit(on.ask, on.pivot(vm, disks), job, guest, switch_limit_ms=SWITCH_LIMIT_MS)
            the_guest_writes_meanwhile(vm, guest, asked)
        seen = asked.result(40)
    assert (seen.outcome, vm.sources(), vm.sources(persistent=True)) == (Outcome.ALL_NEW, new, new)
    assert label(seen.receipt) == (Consistency.CRASH, "switch_late")
    assert on.agent.deps.journal.frozen_records() == ()
    vm.wait_acks(more=3)
    assert vm.write_errors() == []


def test_one_that_ends_while_the_switch_waits(on: Bench, vm: BedVm, other: IsolatedHost, job: JobId) -> None:
    """libvirt carries the switch out on the definition that stays behind, and says that it went well."""
    disks = on.switches(vm)
    old, new = on.paths(disks)
    vm_id = VmId(vm.uuid)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        guest = Migrating(on, vm, other, "switching", stack, leave_definition=True)
        asked = pool.submit(on.ask, on.pivot(vm, disks), job, guest, switch_limit_ms=SWITCH_LIMIT_MS)
        there = the_guest_writes_meanwhile(vm, guest, asked).finish()
        seen = asked.result(40)
    assert (seen.outcome, seen.code) == (Outcome.UNKNOWN, "vm_migrating"), seen
    assert vm.sources(persistent=True) == old, "the definition that was left behind is set back"
    assert on.ask(probe_of(vm, disks), job).outcome is Outcome.NOT_HERE

    state_dir = on.place.state_dir.with_name("state-b")
    state_dir.mkdir()
    agent = AgentParts(Place(uri=other.uri, state_dir=state_dir, storage=on.place.storage))
    try:
        assert there.sources(persistent=True) == new, "it came with the definition of the migration's beginning"
        seen = carry_out(on.envelope(probe_of(there, disks), job), agent.deps)
        assert (seen.outcome, there.sources(), there.sources(persistent=True)) == (Outcome.NONE, old, old)
        assert there.freeze_status() == "thawed"
        there.wait_acks(more=3)
        assert agent.deps.guest_of(vm_id).frozen_mark() == ""
    finally:
        agent.close()
    there.migrate_to(on.host)
    vm.wait_acks(more=3)
    assert vm.write_errors() == []
    assert on.ask(probe_of(vm, disks), job).outcome is Outcome.NONE
    assert on.agent.deps.journal.frozen_records() == ()
