"""The sweep thaws what is ours and orphaned, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.ids import VmId, new_id
from common.messaging.reports import VmState
from hostagent.journal import SqliteJournal
from hostagent.sweep import Sweeper
from hostagent.vm_locks import VmLockFiles
from tests.fakes.clock import FakeClock
from tests.fakes.guest import FakeGuest
from tests.fakes.vm import FakeVm
from tests.wait import eventually

TOKEN = "h1/1.2/abc"


class Bed:
    """One vm, a journal, locks, and the sweeper."""

    def __init__(self, folder: Path) -> None:
        self.vm = FakeVm(vm_id=VmId(new_id()), files={})
        self.vm.add_disk("vda", "/s/a.qcow2")
        self.guest = FakeGuest(self.vm)
        self.journal = SqliteJournal(folder / "journal.db", boot_id="b", clock=FakeClock())
        self.locks = VmLockFiles(folder / "locks")
        self.sweeper = Sweeper(lambda _: self.guest, self.journal, self.locks)

    def freeze(self, *, record: bool = True, mark: bool = True) -> None:
        """Leave behind what a handler leaves that is killed while the guest is frozen."""
        if record:
            self.journal.maybe_frozen(self.vm.vm_id, TOKEN, self.guest.runtime_id())
        if mark:
            self.guest.mark_frozen(TOKEN)
        self.guest.freeze(1000)

    @property
    def is_clean(self) -> bool:
        return not (self.vm.is_frozen or self.vm.mark or self.journal.frozen_records())


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    yield made
    made.journal.close()


def test_an_orphaned_freeze_is_thawed(bed: Bed) -> None:
    bed.freeze()
    bed.sweeper.sweep()
    assert bed.is_clean


def test_a_freeze_that_arrived_with_its_vm_is_thawed(bed: Bed) -> None:
    bed.freeze(record=False)
    bed.sweeper.sweep()
    assert bed.vm.is_frozen, "nobody has told the sweeper of this vm"
    bed.sweeper.sweep([bed.vm.vm_id])
    assert bed.is_clean


def test_an_unmarked_record_of_this_run_is_enough(bed: Bed) -> None:
    bed.freeze(mark=False)
    bed.sweeper.sweep()
    assert bed.is_clean


def test_a_late_freeze_is_thawed(bed: Bed) -> None:
    bed.journal.maybe_frozen(bed.vm.vm_id, TOKEN, bed.guest.runtime_id())
    bed.vm.late_freeze = True
    bed.sweeper.sweep()
    assert bed.is_clean
    assert not bed.vm.late_freeze


def test_a_living_handlers_freeze_is_left_alone(bed: Bed) -> None:
    bed.freeze()
    with bed.locks(bed.vm.vm_id):
        bed.sweeper.sweep([bed.vm.vm_id])
        assert bed.vm.is_frozen
        assert bed.vm.mark == TOKEN
    bed.sweeper.sweep()
    assert bed.is_clean


def test_somebody_elses_freeze_is_left_alone(bed: Bed) -> None:
    bed.freeze(record=False, mark=False)
    bed.sweeper.sweep([bed.vm.vm_id])
    assert bed.vm.is_frozen


def test_a_record_of_an_earlier_run_thaws_nothing(bed: Bed) -> None:
    bed.journal.maybe_frozen(bed.vm.vm_id, TOKEN, "1.1")
    bed.freeze(record=False, mark=False)
    bed.sweeper.sweep()
    assert bed.vm.is_frozen
    assert bed.journal.frozen_records() == ()


@pytest.mark.parametrize("ending", ["off", "gone"])
def test_a_vm_that_does_not_run_here_needs_no_thaw(bed: Bed, ending: str) -> None:
    bed.freeze()
    if ending == "off":
        bed.vm.power_off()
    else:
        bed.guest.is_known = False
    bed.sweeper.sweep()
    assert bed.journal.frozen_records() == ()


def test_what_cannot_be_thawed_now_is_kept_for_later(bed: Bed) -> None:
    bed.freeze()
    bed.vm.state = VmState.PAUSED
    bed.sweeper.sweep()
    assert bed.journal.frozen_records()
    assert bed.vm.mark == TOKEN
    bed.vm.state = VmState.RUNNING
    bed.vm.thaw_fails = 1
    bed.sweeper.sweep()
    assert bed.journal.frozen_records()
    bed.sweeper.sweep()
    assert bed.is_clean


def test_the_mark_of_a_migrating_vm_travels_on(bed: Bed) -> None:
    """To clear it would wait for the migration, and keep every other guest waiting; it is thawed all the same."""
    bed.freeze()
    bed.vm.job = "migration"
    bed.sweeper.sweep()
    assert not bed.vm.is_frozen
    assert bed.vm.mark == TOKEN
    assert bed.journal.frozen_records()
    bed.vm.job = ""
    bed.sweeper.sweep()
    assert bed.is_clean


def test_without_libvirt_everything_is_kept(bed: Bed) -> None:
    bed.freeze()
    bed.vm.libvirt_is_up = False
    bed.sweeper.sweep([bed.vm.vm_id])
    assert bed.journal.frozen_records()
    bed.vm.libvirt_is_up = True
    bed.sweeper.sweep()
    assert bed.is_clean


def test_waking_sweeps_in_its_own_thread(bed: Bed) -> None:
    bed.sweeper.start()
    bed.freeze(record=False)
    bed.sweeper.wake([bed.vm.vm_id])
    eventually(lambda: bed.is_clean, timeout_s=5, what="the sweep")
    bed.freeze()
    bed.sweeper.wake()
    eventually(lambda: bed.is_clean, timeout_s=5, what="the second sweep")
    bed.sweeper.stop()
