"""One vm, one storage domain and one host agent that can die after any effect; everything else is real code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from common.ids import HostId, JobId, StepId, StorageDomainId, VmId, VolumeId, disk_id, new_id
from common.messaging.merging import CheckMerge
from common.messaging.messages import (
    Check,
    Checked,
    DiskSwitch,
    Format,
    LeavesObserved,
    Outcome,
    Pivot,
    Probe,
    Repair,
    VolumeAt,
)
from common.messaging.reports import VmState
from common.messaging.wire import SCHEMA_VERSION, Envelope
from common.preflight import Limits
from hostagent.journal import SqliteJournal
from hostagent.operations.check import check
from hostagent.operations.deps import Deps
from hostagent.operations.pivot import pivot
from hostagent.operations.probe import probe
from hostagent.operations.repair import repair
from hostagent.ports import Guard, Guest, Journal, QemuUser
from hostagent.shutdowns import ShutdownWatch
from tests.fakes.clock import FakeClock
from tests.fakes.guard import FakeGuard
from tests.fakes.guest import FakeGuest
from tests.fakes.storage import ROOT, FakeFile, FakeStorage
from tests.fakes.vm import FakeVm, sources_of

GUEST_EFFECTS = {"define", "freeze", "thaw", "mark_frozen", "clear_frozen_mark", "switch_leaves", "drop_node", "resume"}
COMMITS = {"commit_active", "commit_by_qemu"}
JOURNAL_EFFECTS = {"begin", "call_issued", "maybe_frozen", "thawed", "done", "commit_begun"}
EFFECTS = GUEST_EFFECTS | COMMITS | JOURNAL_EFFECTS | {"arm", "disarm"}


class Crash(BaseException):
    """kill -9: no handler of the dead process has any effect from now on."""


class Process:
    """The life of one agent process: it dies after its `crash_after`-th effect, or in the middle of `crash_in`.

    `meddle` is what somebody else does after the `meddle_after`-th.
    """

    def __init__(
        self,
        *,
        crash_after: int = 0,
        crash_in: str = "",
        meddle_after: int = 0,
        meddle: Callable[[], object] = lambda: None,
    ) -> None:
        self.effects: list[str] = []
        self.crash_after, self.crash_in = crash_after, crash_in
        self.meddle_after, self.meddle = meddle_after, meddle
        self.is_dead = False

    def require_alive(self) -> None:
        if self.is_dead:
            raise Crash

    def effect(self, name: str) -> None:
        self.effects.append(name)
        if len(self.effects) == self.meddle_after:
            self.meddle()
        if len(self.effects) == self.crash_after:
            self.die()

    def die(self) -> None:
        self.is_dead = True
        raise Crash


class Mortal:
    """A port as one process uses it: its effects are counted, and the dead use nothing."""

    def __init__(self, port: object, process: Process, hold: Callable[[Callable[[], object]], None]) -> None:
        self._port, self._process, self._hold = port, process, hold

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            self._process.require_alive()
            if name == self._process.crash_in:
                self._hold(lambda: found(*args))
                self._process.die()
            try:
                return found(*args)
            finally:
                if name in EFFECTS:
                    self._process.effect(name)

        return call


class World:
    """The outside of an agent; `pivot`, `probe` and `repair` send it commands."""

    def __init__(self, *, targets: tuple[str, ...] = ("vda", "vdb")) -> None:
        self.clock = FakeClock()
        self.vm_id, self.job = VmId(new_id()), JobId(new_id())
        self.storage_domain = StorageDomainId(new_id())
        self.vms: list[FakeVm] = []
        self.storage = FakeStorage(
            self.storage_domain,
            lambda: self.others_open.union(*(vm.open_paths() for vm in self.vms)),
            lambda: set[str]().union(*(vm.leaves() for vm in self.vms)),
        )
        self.others_open: set[str] = set()
        self.travelling = ""
        self.vm = FakeVm(vm_id=self.vm_id, files=self.storage.files, filesystems=len(targets))
        self.vms.append(self.vm)
        self.guest = FakeGuest(self.vm)
        self.guard = FakeGuard(lambda _: self._thaw_by_guard())
        self.journal = SqliteJournal(Path(":memory:"), boot_id="boot-1", clock=self.clock)
        self.shutdowns = ShutdownWatch(lambda _: self.guest, self.journal, self.storage.image_state)
        self.journals = [self.journal]
        self.boot_id = "boot-1"
        self.attempt = 0
        self.locked = False
        self.verify_ms, self.switch_limit_ms = 300, 4000
        self.behind = timedelta(0)
        self.switches = tuple(self._disk(target) for target in targets)

    def _disk(self, target: str) -> DiskSwitch:
        old, new = self._volume(f"images/{target}/old.qcow2"), self._volume(f"images/{target}/new.qcow2")
        self.vm.add_disk(target, f"{ROOT}/{old.path}", f"{ROOT}/images/{target}/base.qcow2")
        self.storage.files[f"{ROOT}/{new.path}"] = FakeFile(parent=f"{ROOT}/{old.path}")
        return DiskSwitch(target=target, disk_id=disk_id(self.vm_id, target), old=old, new=new)

    def _volume(self, path: str) -> VolumeAt:
        at = self.storage_domain
        return VolumeAt(volume_id=VolumeId(new_id()), storage_domain_id=at, path=path, format=Format.QCOW2)

    # ---- paths --------------------------------------------------------------------------------------------------

    def old(self, number: int = 0) -> str:
        return f"{ROOT}/{self.switches[number].old.path}"

    def new(self, number: int = 0) -> str:
        return f"{ROOT}/{self.switches[number].new.path}"

    @property
    def news(self) -> set[str]:
        return {self.new(number) for number in range(len(self.switches))}

    @property
    def olds(self) -> set[str]:
        return {self.old(number) for number in range(len(self.switches))}

    # ---- commands -----------------------------------------------------------------------------------------------

    def deps(self, process: Process) -> Deps:
        return Deps(
            host_id=HostId("h1"),
            guest_of=lambda _: cast(Guest, Mortal(self.guest, process, self._hold)),
            storage=self.storage,
            guard=cast(Guard, Mortal(self.guard, process, self._hold)),
            journal=cast(Journal, Mortal(self.journal, process, self._hold)),
            vm_lock=self._vm_lock,
            shutdowns=self.shutdowns,
            clock=self.clock,
            boot_id=self.boot_id,
            libvirtd_instance=lambda: f"libvirtd-{self.vm.libvirtd}",
            image_users=lambda _: ("qemu-nbd (pid 4712)",),
            boottime_ms=self.clock.boottime_ms,
            verify_ms=self.verify_ms,
            switch_limit_ms=self.switch_limit_ms,
            qemu_user=lambda _: QemuUser(uid=107, gid=107),
            pause=self.clock.advance,
        )

    def _hold(self, call: Callable[[], object]) -> None:
        self.vm.in_flight = lambda: (call(), None)[1]

    @contextmanager
    def _vm_lock(self, _: VmId) -> Iterator[bool]:
        yield not self.locked

    def _thaw_by_guard(self) -> None:
        self.vm.is_frozen = self.vm.late_freeze = False

    def envelope(self, command: Check | CheckMerge | Pivot | Probe | Repair, attempt: int | None = None) -> Envelope:
        if attempt is None:
            self.attempt += 1
        return Envelope(
            v=SCHEMA_VERSION,
            sender="manager",
            to="host.h1",
            job=self.job,
            vm=self.vm_id,
            step=StepId(new_id()),
            attempt=self.attempt if attempt is None else attempt,
            issued_at=self.clock.now() + self.behind,
            deadline=self.clock.now() + timedelta(seconds=60),
            body=command,
        )

    def command(self, *, quiesce: bool = True, require: bool = False) -> Pivot:
        return Pivot(
            vm_id=self.vm_id,
            disks=self.switches,
            quiesce=quiesce,
            require_quiesce=require,
            freeze_limit_ms=5000,
            held_limit_ms=1000,
        )

    def pivot(
        self, process: Process | None = None, *, quiesce: bool = True, require: bool = False, attempt: int | None = None
    ) -> LeavesObserved:
        command = self.command(quiesce=quiesce, require=require)
        return pivot(self.envelope(command, attempt), command, self.deps(process or Process()))

    def probe(self, process: Process | None = None, *, attempt: int | None = None) -> LeavesObserved:
        command = Probe(vm_id=self.vm_id, disks=self.switches)
        return probe(self.envelope(command, attempt), command, self.deps(process or Process()))

    def repair(
        self, process: Process | None = None, *, attempt: int | None = None, undo: bool = False
    ) -> LeavesObserved:
        command = Repair(vm_id=self.vm_id, disks=self.switches, undo=undo)
        return repair(self.envelope(command, attempt), command, self.deps(process or Process()))

    def preflight(self, *, quiesce: bool = True, require: bool = False, limits: Limits | None = None) -> Checked:
        """Ask for a dry run; fail if it has any effect."""
        command = Check(
            vm_id=self.vm_id,
            disks=self.switches,
            quiesce=quiesce,
            require_quiesce=require,
            limits=limits or Limits(),
        )
        process = Process()
        envelope = replace(self.envelope(command, 0), job=None, attempt=0)
        checked = check(envelope, command, self.deps(process))
        assert process.effects == [], "a check has no effect"
        return checked

    def during(self, name: str, meddle: Callable[[], object]) -> None:
        """Do something right after the guest's method `name`, whenever that is called."""
        method = getattr(self.guest, name)

        def meddled(*args: object) -> object:
            result = method(*args)
            meddle()
            return result

        setattr(self.guest, name, meddled)

    # ---- the vm moves to another host -----------------------------------------------------------------------------

    def begin_migration(self, ends: Callable[[], object] | None = None) -> None:
        """Let somebody migrate the vm; `ends` is what becomes of it while a call of ours waits, and the guard's limit
        passes then."""
        if self.vm.job:
            return
        self.vm.job, self.travelling = "migration", self.vm.persistent

        def ended() -> None:
            self.guard.time_is_up()
            if ends is not None:
                ends()

        self.vm.job_ends = ended

    def fail_migration(self) -> None:
        self.vm.job, self.travelling = "", ""

    def arrive(self, *, leave_definition: bool = False) -> "World":
        """End the migration well; return the world as the agent of the other host has it. This one's goes on.

        A paused vm arrives paused, for whatever reason it was, and locks nothing until it runs (measured).
        """
        there = copy(self)
        vm = replace(self.vm, job="", job_ends=None, run=self.vm.run + 1, persistent=self.travelling, libvirtd=77)
        there.vm, there.guest, there.travelling, there.boot_id = vm, FakeGuest(vm), "", "boot-2"
        there.guard = FakeGuard(lambda _: there._thaw_by_guard())
        there.journal = SqliteJournal(Path(":memory:"), boot_id="boot-2", clock=self.clock)
        self.journals.append(there.journal)
        if vm.state is not VmState.RUNNING:
            vm.state, vm.holds_locks = VmState.PAUSED, False
        self.vms.append(vm)
        self.vm.disks = deepcopy(vm.disks)
        self.vm.power_off()
        self.vm.job, self.travelling, self.vm.moved_away = "", "", leave_definition
        if not leave_definition:
            self.guest.is_known, self.vm.persistent = False, ""
        return there

    # ---- what is true -------------------------------------------------------------------------------------------

    def check(self, seen: LeavesObserved) -> None:
        """Hold an answer against what really is so: each outcome's claims, and P2."""
        if self.vm.is_frozen:
            assert self.vm.state in (VmState.PAUSED_IO_ERROR, VmState.PAUSED), "the guest was left frozen"
            assert self.vm.mark or self.journal.frozen_records(), "nothing tells that it must be thawed once it runs"
        assert not self.vm.late_freeze, "the guest will freeze later"
        self.vm.end_call()
        persistent = set(sources_of(self.vm.persistent).values())
        match seen.outcome:
            case Outcome.ALL_NEW:
                assert not any(vm.is_active and set(vm.tops().values()) != self.news for vm in self.vms)
                assert persistent == self.news or not self.vm.persistent
                assert all(disk.live == disk.chain for disk in self.vm.disks.values()) or not self.vm.is_active
                assert self.vm.block_jobs == set()
            case Outcome.NONE | Outcome.NONE_NO_AGENT | Outcome.NONE_ROLLED_BACK:
                for vm in self.vms:
                    assert not self.news & vm.open_paths()
                    # Of what was committed there, a definition left behind elsewhere knows nothing.
                    stale = vm.moved_away and seen.outcome is Outcome.NONE_ROLLED_BACK
                    assert stale or not self.news & set(sources_of(vm.persistent).values())
                assert not self.news & set(sources_of(self.travelling).values()), "it goes with the migration"
                # Nobody knows of a commit where the vm has moved since; the volume is then kept: it is not empty.
                rolled_back = any(journal.commit_was_begun(self.vm_id, self.job) for journal in self.journals)
                assert rolled_back or not any(self.storage.files[path].has_data for path in self.news)
            case Outcome.NOT_HERE:
                assert not self.guest.is_known or not self.vm.is_active
            case Outcome.BAD | Outcome.UNKNOWN:
                assert seen.code
                assert seen.message
