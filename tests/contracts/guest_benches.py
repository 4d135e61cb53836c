"""What the contract of `Guest` is tried on: a real vm on a real libvirtd, and the fake of the pure tests.

Both have two disks, each a leaf above a base, and an agent; a bench can also do what the outside world does to a vm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from common.ids import VmId, new_id
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.connection import Connection
from hostagent.guest import LibvirtGuest
from hostagent.io_errors import IoErrors
from hostagent.ports import Guest
from tests.bed.disks import make_disk, make_overlay
from tests.bed.failing_fs import FailingFs
from tests.bed.host import IsolatedHost, shared_dir
from tests.bed.migration import migrating
from tests.bed.paths import new_dir, short_dir
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec
from tests.fakes.guest import FakeGuest
from tests.fakes.storage import FakeFile
from tests.fakes.vm import Agent, FakeVm
from tests.wait import eventually

TARGETS = ("vda", "vdb")


class Bench(Protocol):
    """A vm, and what others than livesnap do to it."""

    guest: Guest

    def new_leaf(self, target: str) -> str: ...
    def unwritable_leaf(self, target: str) -> str: ...
    def leak(self, path: str) -> None: ...
    def switch_behind_libvirt(self, target: str, path: str) -> None: ...
    def pause(self) -> None: ...
    def suspend_by_guest(self) -> None: ...
    def wake_up(self) -> None: ...
    def power_off(self) -> None: ...
    def start(self) -> None: ...
    def start_block_job(self, target: str) -> None: ...
    def migrating(self) -> AbstractContextManager[None]: ...
    def move_away(self) -> None: ...
    def kill_libvirtd(self) -> None: ...
    def start_libvirtd(self) -> None: ...
    def other_guest(self, agent: str) -> Guest: ...
    def unknown_guest(self) -> Guest: ...


class FakeBench:
    """The fake, with the same disks; `kind` makes it of a vm."""

    def __init__(self, kind: Callable[[FakeVm], FakeGuest] = FakeGuest) -> None:
        self._files: dict[str, FakeFile] = {}
        self.vm = FakeVm(vm_id=VmId(new_id()), files=self._files, filesystems=2)
        for target in TARGETS:
            self.vm.add_disk(target, f"/s/{target}-leaf.qcow2", f"/s/{target}-base.qcow2")
        self.guest: Guest = kind(self.vm)

    def new_leaf(self, target: str) -> str:
        path = f"/s/{new_id()}.qcow2"
        self._files[path] = FakeFile(parent=self.vm.tops()[target])
        return path

    def unwritable_leaf(self, target: str) -> str:
        path = self.new_leaf(target)
        self._files[path].is_full = True
        return path

    def leak(self, path: str) -> None:
        self.vm.loose["leaked"] = path

    def switch_behind_libvirt(self, target: str, path: str) -> None:
        self.vm.disks[target].chain.insert(0, path)

    def pause(self) -> None:
        self.vm.state = VmState.PAUSED

    def suspend_by_guest(self) -> None:
        self.vm.state = VmState.PMSUSPENDED

    def wake_up(self) -> None:
        self.vm.state = VmState.RUNNING

    def power_off(self) -> None:
        self.vm.power_off()

    def start(self) -> None:
        self.vm.boot()

    def start_block_job(self, target: str) -> None:
        self.vm.block_jobs.add(target)

    @contextmanager
    def migrating(self) -> Iterator[None]:
        self.vm.job = "migration"
        yield
        self.vm.job = ""

    def move_away(self) -> None:
        self.vm.power_off()
        self.vm.moved_away = True

    def kill_libvirtd(self) -> None:
        self.vm.libvirt_is_up = False

    def start_libvirtd(self) -> None:
        self.vm.restart_libvirtd()
        self.vm.libvirt_is_up = True

    def other_guest(self, agent: str) -> Guest:
        modes = {"absent": Agent.MISSING, "block": Agent.MISSING, "hookfail": Agent.FREEZE_FAILS}
        vm = FakeVm(vm_id=VmId(new_id()), files={}, agent=modes[agent])
        vm.add_disk("vda", "/s/other.qcow2")
        return FakeGuest(vm)

    def unknown_guest(self) -> Guest:
        return FakeGuest(FakeVm(vm_id=VmId(new_id()), files={}), is_known=False)


class RealBench:
    """A vm of the test bed, shared by the tests of a module; every test finds it running and thawed."""

    def __init__(self, host: IsolatedHost, storage: Path) -> None:
        self._host = host
        self._other_host = IsolatedHost("b", host.dir.parent)
        self._storage = storage
        self._connection = Connection(host.uri)
        self._io_errors = IoErrors()
        self._io_errors.attach(self._connection)
        self._connection.start()
        self._failing: FailingFs | None = None
        assert self._connection.wait(10)
        self._others: dict[str, Guest] = {}
        self.vm = self._define("contract", "normal", TARGETS)
        self.vm.start()
        self.vm.wait_ready()
        self.vm.wait_agent()
        self.guest: Guest = self._guest_of(self.vm)

    def close(self) -> None:
        self._connection.stop()
        self._other_host.close()
        if self._failing:
            self._failing.close()

    def reset(self) -> None:
        """Bring the vm back to running, with an agent that answers."""
        if not self._host.alive:
            self.start_libvirtd()
        if self.guest.state() is VmState.OFF:
            self.start()
        if self.guest.state() is VmState.PAUSED:
            self.guest.resume()
        self.vm.wait_agent()
        self.guest.thaw(5000)

    def _define(self, name: str, ga: AgentMode, targets: tuple[str, ...], *, channel: bool = True) -> BedVm:
        disks = tuple(DiskSpec(path=self._disk(f"{name}-{target}"), target=target) for target in targets)
        return define_vm(self._host, VmSpec(name=name, disks=disks, ga=ga, agent=channel, load="idle", suspend=True))

    def _disk(self, name: str) -> Path:
        owner = self._host.owner
        base = make_disk(self._storage / f"{name}-base.qcow2", owner=owner)
        return make_overlay(self._storage / f"{name}-leaf.qcow2", backing=base, owner=owner)

    def _guest_of(self, vm: BedVm) -> Guest:
        return LibvirtGuest(self._connection, VmId(vm.uuid), self._io_errors)

    def new_leaf(self, target: str) -> str:
        leaf = Path(self._top(target))
        return str(make_overlay(self._storage / f"{new_id()}.qcow2", backing=leaf, owner=self._host.owner))

    def unwritable_leaf(self, target: str) -> str:
        if self._failing is None:
            real, seen = (self._storage.parent / name for name in ("real", "failing"))
            self._failing = FailingFs(new_dir(real, self._host.owner), seen, self._host.owner)
            self._failing.start()
        self._failing.heal()
        path = self._failing.path / f"{new_id()}.qcow2"
        make_overlay(path, backing=Path(self._top(target)), owner=self._host.owner)
        self._failing.fail(path.name)
        return str(path)

    def _top(self, target: str) -> str:
        return vm_xml.sources(self.guest.live_xml() or self.guest.persistent_xml())[target]

    def leak(self, path: str) -> None:
        self._open(path, f"leak-{new_id()[:8]}")

    def _open(self, path: str, node: str) -> None:
        file = {"driver": "file", "filename": path}
        self.vm.monitor("blockdev-add", **{"driver": "qcow2", "node-name": node, "backing": None, "file": file})

    def switch_behind_libvirt(self, target: str, path: str) -> None:
        """Do what libvirtd had done and not noted when it was killed."""
        node = f"behind-{new_id()[:8]}"
        top = next(n.node_name for n in self.guest.qemu_nodes() if n.device == target and n.depth == 0)
        self._open(path, node)
        self.vm.monitor("blockdev-snapshot", node=top.replace("-storage", "-format"), overlay=node)

    def pause(self) -> None:
        self.vm.pause()

    def suspend_by_guest(self) -> None:
        with self.vm.libvirt() as handle:
            handle.pMSuspendForDuration(0, 0, 0)  # VIR_NODE_SUSPEND_TARGET_MEM
        eventually(lambda: self.guest.state() is VmState.PMSUSPENDED, timeout_s=20, what="the guest to sleep")

    def wake_up(self) -> None:
        with self.vm.libvirt() as handle:
            handle.pMWakeup(0)

    def power_off(self) -> None:
        self.vm.destroy()

    def start(self) -> None:
        boots = self.vm.console().count("GUEST READY")
        self.vm.start()
        self.vm.wait_ready(boots=boots + 1)

    def start_block_job(self, target: str) -> None:
        """Start an active commit of the leaf, which stays at work until it is pivoted or aborted."""
        chain = vm_xml.chains(self.guest.live_xml())[target]
        with self.vm.libvirt() as handle:
            handle.blockCommit(target, chain[1], None, 0, 4)  # VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        eventually(
            lambda: vm_xml.mirror(self.guest.live_xml(), target) is not None, timeout_s=5, what="the block job to show"
        )

    @contextmanager
    def migrating(self) -> Iterator[None]:
        with migrating(self.vm, self._neighbour()):
            yield

    def move_away(self) -> None:
        """Migrate, and let the definition here stay; there, the vm is stopped and undefined."""
        there = self.vm.migrate_to(self._neighbour(), leave_definition=True)
        there.destroy()
        there.undefine()

    def _neighbour(self) -> IsolatedHost:
        if not self._other_host.alive:
            self._other_host.start()
        return self._other_host

    def kill_libvirtd(self) -> None:
        self._host.kill9()
        eventually(lambda: not self._connection.is_up, timeout_s=5, what="the loss of the connection")

    def start_libvirtd(self) -> None:
        self._host.start()
        assert self._connection.wait(10)

    def other_guest(self, agent: str) -> Guest:
        if agent not in self._others:
            self._others[agent] = self._boot_other(agent)
        return self._others[agent]

    def _boot_other(self, agent: str) -> Guest:
        modes: dict[str, AgentMode] = {"absent": "none", "block": "block", "hookfail": "hookfail"}
        vm = self._define(agent, modes[agent], ("vda",), channel=agent != "absent")
        vm.start()
        if agent != "absent":
            vm.wait_agent()
        return self._guest_of(vm)

    def unknown_guest(self) -> Guest:
        return LibvirtGuest(self._connection, VmId(new_id()))


@contextmanager
def real_bench() -> Iterator[RealBench]:
    """Boot a host and its vm, and end both."""
    with short_dir() as root, IsolatedHost("a", root) as host:
        bench = RealBench(host, shared_dir(root / "s", host))
        try:
            yield bench
        finally:
            bench.close()
