"""The operations in this process, on a real guest, with the real journal, locks and storage and a real guard process.

Run as a module it is the process that a test lets die in the middle: `python -m tests.integration.operations_kit FILE`.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.ids import HostId, JobId, StepId, VmId, new_id
from common.messaging.messages import DiskSwitch, Format, LeavesObserved, Pivot, Probe, Repair, VolumeAt
from common.messaging.wire import SCHEMA_VERSION, Envelope
from hostagent import places, processes, vm_xml
from hostagent.connection import Connection
from hostagent.guard import AGAIN_AFTER_S
from hostagent.guard_client import GuardClient
from hostagent.guest import LibvirtGuest
from hostagent.io_errors import IoErrors
from hostagent.journal import SqliteJournal
from hostagent.operations.deps import Deps
from hostagent.operations.pivot import pivot
from hostagent.operations.probe import probe
from hostagent.operations.repair import repair
from hostagent.ports import Guest
from hostagent.qemu_user import QemuUsers
from hostagent.shutdowns import ShutdownWatch
from hostagent.storage import MountedStorage, image_state
from hostagent.vm_locks import VmLockFiles
from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost, shared_dir
from tests.bed.paths import short_dir
from tests.bed.process import CLEAN_ENV, outcome
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.crash import crash_at
from tests.integration.host_kit import ROOT, GuardProcess
from tests.integration.spm_kit import SpmKit
from tests.wait import eventually

HOST = HostId("h1")
Command = Pivot | Probe | Repair


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an agent finds everything."""

    uri: str
    state_dir: Path
    storage: Path


class AgentParts:
    """What one agent process holds open."""

    def __init__(self, place: Place) -> None:
        self.connection = Connection(place.uri)
        self.io_errors = IoErrors()
        self.io_errors.attach(self.connection)
        self.connection.start()
        assert self.connection.wait(10)
        self.storage = MountedStorage({"main": place.storage}, HOST)
        self.guard = GuardClient(places.guard_socket(place.state_dir))
        boot_id = processes.boot_id()
        self.journal = SqliteJournal(places.journal_file(place.state_dir), boot_id=boot_id, clock=SystemClock())
        self.deps = Deps(
            host_id=HOST,
            guest_of=self.guest_of,
            storage=self.storage,
            guard=self.guard,
            journal=self.journal,
            vm_lock=VmLockFiles(places.vm_locks_dir(place.state_dir)),
            shutdowns=ShutdownWatch(self.guest_of, self.journal, image_state),
            clock=SystemClock(),
            boot_id=boot_id,
            libvirtd_instance=self.connection.libvirtd_instance,
            qemu_user=QemuUsers(self.connection),
        )

    def guest_of(self, vm: VmId) -> LibvirtGuest:
        """Return a machine of this host, as libvirt has it."""
        return LibvirtGuest(self.connection, vm, self.io_errors)

    def close(self) -> None:
        self.guard.close()
        self.connection.stop()
        self.storage.close()
        self.journal.close()


def carry_out(envelope: Envelope, deps: Deps) -> LeavesObserved:
    """Do what the worker does with an envelope that has passed the shell."""
    match envelope.body:
        case Pivot() as command:
            return pivot(envelope, command, deps)
        case Probe() as command:
            return probe(envelope, command, deps)
        case Repair() as command:
            return repair(envelope, command, deps)
        case _:
            raise AssertionError(envelope.body)


class Bench:
    """A host with a guard, a storage domain, and machines to pivot."""

    def __init__(self, root: Path, host: IsolatedHost, storage: Path) -> None:
        self.host = host
        self.kit = SpmKit(storage, host_alive=False)
        self.place = Place(uri=host.uri, state_dir=root / "state", storage=storage)
        self.place.state_dir.mkdir()
        environment = {
            **CLEAN_ENV,
            "LIVESNAP_LIBVIRT_URI": host.uri,
            "LIVESNAP_STATE_DIR": str(self.place.state_dir),
        }
        self.guard = GuardProcess(root, environment)
        self.guard.start()
        self.agent = AgentParts(self.place)
        self.attempt = 0
        self._root = root
        self._volumes: dict[str, VolumeAt] = {}

    def close(self) -> None:
        self.agent.close()
        self.guard.close()
        self.kit.close()

    def boot(self, name: str, *, disks: int = 1, **options: Any) -> BedVm:
        """Boot a vm with the usual disks; its writer and agent are up."""
        targets = [f"vd{letter}" for letter in "abcdefgh"[:disks]]
        paths = {target: self.kit.root / f"{name}-{target}.qcow2" for target in targets}
        specs = [DiskSpec(path=make_disk(paths[target], owner=self.host.owner), target=target) for target in targets]
        return self.boot_with(name, specs, **options)

    def boot_with(self, name: str, disks: Iterable[DiskSpec], **options: Any) -> BedVm:
        """Boot a vm with these disks; its writer and agent are up."""
        vm = define_vm(self.host, VmSpec(name=name, disks=tuple(disks), **options))
        vm.start()
        vm.wait_ready()
        vm.wait_agent()
        return vm

    def switches(self, vm: BedVm, *targets: str) -> tuple[DiskSwitch, ...]:
        """Make a new leaf above each disk's present one, or those of `targets`, as the SPM does."""
        self.attempt += 1
        found = self.intended(vm, *targets)
        self.kit.create(*found, attempt=self.attempt, vm=VmId(vm.uuid))
        self._volumes.update({str(self.kit.file(disk.new)): disk.new for disk in found})
        return found

    def intended(self, vm: BedVm, *targets: str) -> tuple[DiskSwitch, ...]:
        """Return the switches of a snapshot, of all disks or of `targets`, whose new leaves are not made yet."""
        found = []
        for target, (source, image_format) in vm_xml.leaves(vm.xml()).items():
            if targets and target not in targets:
                continue
            inside = str(Path(source).relative_to(self.kit.root))
            old = self._volumes.get(source) or self.kit.at(inside, Format(image_format))
            found.append(self.kit.switch(old, target, vm=VmId(vm.uuid)))
        return tuple(found)

    def paths(self, disks: tuple[DiskSwitch, ...]) -> tuple[dict[str, str], dict[str, str]]:
        """Return old and new path of each target."""
        old = {disk.target: str(self.kit.file(disk.old)) for disk in disks}
        return old, {disk.target: str(self.kit.file(disk.new)) for disk in disks}

    def envelope(self, body: Command, job: JobId) -> Envelope:
        """Wrap a command as the Manager does; the machine's attempt rises with each."""
        self.attempt += 1
        now = SystemClock().now()
        return Envelope(
            v=SCHEMA_VERSION,
            sender="manager",
            to=f"host.{HOST}",
            job=job,
            vm=body.vm_id,
            step=StepId(new_id()),
            attempt=self.attempt,
            issued_at=now,
            deadline=now + timedelta(seconds=60),
            body=body,
        )

    def pivot(
        self, vm: BedVm, disks: tuple[DiskSwitch, ...], *, quiesce: bool = True, freeze_limit_ms: int = 10_000
    ) -> Pivot:
        """Return the command."""
        return Pivot(
            vm_id=VmId(vm.uuid),
            disks=disks,
            quiesce=quiesce,
            require_quiesce=False,
            freeze_limit_ms=freeze_limit_ms,
            held_limit_ms=5_000,
        )

    def ask(self, body: Command, job: JobId, guest: Guest | None = None, **changed: Any) -> LeavesObserved:
        """Carry it out in this process; `guest` stands in for the real one of that vm, `changed` for parts of Deps."""
        if guest is not None:
            changed["guest_of"] = lambda _: guest
        return carry_out(self.envelope(body, job), replace(self.agent.deps, **changed))

    def die_in(self, point: str, body: Command, job: JobId) -> None:
        """Carry it out in a process of its own, which kills itself at a crash point; raise if it lives on."""
        order = self._root / f"{new_id()}.order"
        order.write_bytes(pickle.dumps((self.place, self.envelope(body, job))))
        armed, hit = crash_at(point, self._root / new_id())
        environment = {**CLEAN_ENV, **armed, "PYTHONPATH": str(ROOT)}
        code, said = run_child(order, environment)
        assert hit.exists(), f"{point} was not reached ({code}): {said}"
        # The guard thaws for an agent that has just died, and twice again: another freeze by then would be cut short.
        quiet_at = time.monotonic() + 2 * sum(AGAIN_AFTER_S)
        eventually(lambda: time.monotonic() > quiet_at, timeout_s=5, what="the guard's last thaw")


def run_child(order: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run the process that carries out `order`; return its exit status and what it printed."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    return outcome([*words, sys.executable, "-m", "tests.integration.operations_kit", order], ok=range(-64, 256))


@contextmanager
def bench() -> Iterator[Bench]:
    """Yield a bench; everything ends with it."""
    with short_dir() as root, IsolatedHost("a", root) as host, bench_on(root, host) as made:
        yield made


@contextmanager
def bench_on(root: Path, host: IsolatedHost) -> Iterator[Bench]:
    """Yield a bench on this host, whose storage domain is `storage` below `root`: whatever may be mounted there."""
    made = Bench(root, host, shared_dir(root / "storage", host))
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    """Carry out the order in the file that is named on the command line; write the answer's outcome to its place."""
    place, envelope = pickle.loads(Path(sys.argv[1]).read_bytes())
    parts = AgentParts(place)
    seen = carry_out(envelope, parts.deps)
    sys.stdout.write(json.dumps({"outcome": seen.outcome}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
