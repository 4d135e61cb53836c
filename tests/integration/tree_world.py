"""One machine's disks and snapshots under the whole product in one process: real images, libvirt, QEMU, SQL and signed
messages; only the broker is a list here, and no guest's code runs.

"Running" is a real machine of a real libvirtd that was started paused and stays so: its QEMU has the volumes open and
locked, and merges and switches them. What a guest would write is written by QEMU's own monitor, through the machine's
disk. What that leaves out, file systems, freezing and the first writes after a switch, is what tests/e2e is for.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, get_args

import libvirt_qemu

from common.clock import SystemClock
from common.errors import RequestRefused
from common.images.qcow2 import read_header
from common.messaging.keys import Keyring, SigningKey, write_public
from common.messaging.messages import Answer, CheckMerge, MergeDisks, Pivot, Probe, Redefine, Repair
from common.messaging.queues import host_queue, spm_queue
from common.messaging.shell import Shell
from common.messaging.wire import Sealed, unseal
from hostagent import places
from hostagent.block_jobs import LibvirtBlockJobs
from hostagent.inventory import Inventory, Sources
from hostagent.operations.merge import check_merge, merge
from hostagent.operations.pivot import pivot
from hostagent.operations.probe import probe
from hostagent.operations.redefine import redefine
from hostagent.operations.repair import repair
from hostagent.vm_locks import VmLockFiles
from manager.results import Results
from manager.store.session import Database
from manager.views import JobView
from spm.merges import Merges
from spm.settings import SpmSettings
from spm.worker import handlers as spm_handlers
from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.process import run
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.integration.manager_kit import Fleet, mount
from tests.integration.operations_kit import HOST, Bench, bench_on
from tests.integration.spm_kit import POOL
from tests.integration.tree_model import PLACES, Model
from tests.wait import eventually

NAME: Final = "tree"
DISK_MIB: Final = 1
PLACE_BYTES: Final = DISK_MIB * 2**20 // PLACES

_ENOUGH: Final = 400
"""So many turns no job takes: each is one message, or one timer."""


class ShiftedClock(SystemClock):
    """The time of day, and what a test has added to it: nobody waits for a timer."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self._ahead

    def advance(self, by: timedelta) -> None:
        self._ahead += by


class _Fleet(Fleet):
    """A Manager whose broker is a row of (queue, message)."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.queue: deque[tuple[str, Sealed]] = deque()
        super().__init__(*args, **more)

    def publish(self, queue: str, task: str, sealed: Sealed, readable: str) -> None:
        self.queue.append((queue, sealed))


class World:
    """The machine, and everybody who has a hand in it. `meanwhile` is called before each message is delivered."""

    def __init__(self, root: Path, bench: Bench) -> None:
        self.bench, self.kit = bench, bench.kit
        self.clock = ShiftedClock()
        self.database = Database(f"sqlite:///{root}/livesnap.sqlite")
        self.database.upgrade()
        keys = root / "keys"
        keys.mkdir()
        self.fleet = _Fleet(self.database, keys, self.clock)
        self.keyring = Keyring(keys)
        self.merges = Merges()
        self.vm = self._machine()
        self.inventory = self._inventory()
        self.shells = {
            host_queue(HOST): self._shell(host_queue(HOST), keys, self._host_handlers()),
            spm_queue(POOL): self._shell(spm_queue(POOL), keys, self._spm_handlers()),
        }
        self.results = Results(self.fleet.conductor, self.fleet.host_checks)
        self.raw = root / "raw"

    def close(self) -> None:
        self.merges.close()
        self.database.close()

    # ---- who is there -------------------------------------------------------------------------------------------

    def _machine(self) -> BedVm:
        owner = self.bench.host.owner
        paths = {target: self.kit.root / f"{NAME}-{target}.qcow2" for target in ("vda", "vdb")}
        disks = [
            DiskSpec(path=make_disk(path, owner=owner, fs=None, size_mib=DISK_MIB), target=target)
            for target, path in paths.items()
        ]
        return define_vm(self.bench.host, VmSpec(name=NAME, disks=tuple(disks), agent=False))

    def _inventory(self) -> Inventory:
        agent = self.bench.agent
        vm_locks = VmLockFiles(places.vm_locks_dir(self.bench.place.state_dir))
        sources = Sources(connection=agent.connection, journal=agent.journal, vm_locks=vm_locks, storage=agent.storage)
        return Inventory(HOST, agent.deps.boot_id, self.clock, sources)

    def _shell(self, me: str, keys: Path, handlers: Any) -> Shell:
        key = SigningKey.generate(keys / f"{me}.key", me)
        write_public(keys, key)
        return Shell(me, key, Keyring(keys), self.clock, handlers=handlers, publish=self.fleet.publish)

    def _spm_handlers(self) -> Any:
        return spm_handlers(self.kit.pool, SpmSettings(min_free_bytes=0), self.clock, self.merges)

    def _host_handlers(self) -> dict[type, Callable[[Any, Any], Answer]]:
        deps = replace(self.bench.agent.deps, clock=self.clock)

        def merging(act: Callable[..., Answer]) -> Callable[[Any, Any], Answer]:
            guest = self.bench.agent.guest_of
            return lambda envelope, command: act(
                envelope, command, deps, LibvirtBlockJobs(guest(command.vm_id).handle, command.vm_id)
            )

        return {
            Pivot: lambda envelope, command: pivot(envelope, command, deps),
            Redefine: lambda envelope, command: redefine(envelope, command, deps),
            Probe: lambda envelope, command: probe(envelope, command, deps),
            Repair: lambda envelope, command: repair(envelope, command, deps),
            MergeDisks: merging(merge),
            CheckMerge: merging(check_merge),
        }

    # ---- messages and timers ------------------------------------------------------------------------------------

    def report(self) -> None:
        """Let the host and the SPM tell what they see now."""
        root, free = str(self.kit.root), 1 << 40
        seen = mount(storage_domain_id=self.kit.id, root=root, free_bytes=free, total_bytes=2 * free)
        self.fleet.report_spm(seen, pool=POOL)
        report = self.inventory.look()
        self.fleet.reports.take_host(self.fleet.envelope(host_queue(HOST), report), report)

    def ends(self, job: JobView, *, meanwhile: Callable[[int], object] = lambda _: None, twice: float = 0.0) -> JobView:
        """Deliver messages, and let time pass where there are none, until a job has ended; return it.

        `meanwhile` is told how many were delivered before; every message whose number times `twice` is whole comes a
        second time.
        """
        for turn in range(_ENOUGH):
            shown = self.fleet.service.show_job(job.id)
            if shown.finished_at is not None or shown.state == "needs_operator":
                return shown
            meanwhile(turn)
            if self.fleet.queue:
                queue, sealed = self.fleet.queue.popleft()
                for _ in range(2 if twice and turn * twice % 1 == 0 else 1):
                    self._deliver(queue, sealed)
            else:
                self._let_time_pass()
        raise AssertionError(f"no end: {self.fleet.service.show_job(job.id)}")

    def cancel(self, job: JobView) -> None:
        """Cancel a job; one that has ended meanwhile is none the worse for it."""
        with suppress(RequestRefused):
            self.fleet.service.cancel_job(job.id)

    def _deliver(self, queue: str, sealed: Sealed) -> None:
        if queue in self.shells:
            self.shells[queue].handle(sealed.sender, sealed.body, sealed.signature)
            self.report()
            return
        envelope = unseal(sealed, self.keyring, me="manager")
        assert isinstance(envelope.body, get_args(Answer)), envelope.body
        self.results.take(envelope, envelope.body)

    def _let_time_pass(self) -> None:
        waits = [self.fleet.timers.sweep(), self.fleet.relay.sweep()]
        if not self.fleet.queue:
            self.clock.advance(min(waits))

    # ---- what is done to the machine ----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.vm.qemu_pid is not None

    def start(self) -> None:
        self.vm.start(paused=True)
        self.report()

    def stop(self) -> None:
        self.vm.destroy()
        eventually(lambda: not self.running, timeout_s=20, what="QEMU's end")
        self.report()

    def write(self, target: str, place: int, count: int, byte: int) -> None:
        """Write as the machine would, through QEMU's block layer."""
        command = f"write -P {byte} {place * PLACE_BYTES} {count * PLACE_BYTES}"
        if not self.running:
            run(["qemu-io", "-f", "qcow2", "-c", command, self.vm.sources(persistent=True)[target]])
            return
        self._on_disk(target, command)
        self._on_disk(target, "flush")

    def _on_disk(self, target: str, command: str) -> None:
        number = self.vm.spec.disks.index(next(disk for disk in self.vm.spec.disks if disk.target == target))
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        with self.vm.libvirt() as handle:
            said = libvirt_qemu.qemuMonitorCommand(
                handle, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            )
        assert not re.search("error|failed", said, re.IGNORECASE), said

    # ---- what there is ------------------------------------------------------------------------------------------

    def content(self, path: Path) -> bytes:
        """Return all that an image shows, with what it stands on."""
        run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, self.raw])
        return self.raw.read_bytes()

    def check(self, model: Model) -> None:
        """Everything that is kept shows what the model says, and nothing else is there."""
        shown = self.fleet.service.show_vm(NAME)
        assert (shown.problem, shown.busy_with) == ("", None), shown
        assert (shown.preview.snapshot_name if shown.preview else "") == model.previewed
        snapshots = {each.name: each for each in self.fleet.service.list_snapshots(NAME)}
        assert snapshots.keys() == model.points.keys()
        halves = {name for name, each in snapshots.items() if each.state == "half_merged"}
        assert halves == model.halves
        assert {each.state for each in snapshots.values()} <= {"ok", "half_merged"}
        self.check_leaves(model)
        for name, snapshot in snapshots.items():
            for disk in snapshot.disks if name not in halves else ():
                point = model.points[name][disk.target]
                self._same(model, disk.target, point, self.kit.root / disk.path, f"snapshot {name}")
        self._check_storage(model)

    def check_leaves(self, model: Model) -> None:
        """The machine's disks show what they should, and both definitions are where the record says."""
        shown = self.fleet.service.show_vm(NAME)
        recorded = {disk.target: self.kit.root / disk.chain[-1].path for disk in shown.disks}
        assert {target: Path(path) for target, path in self.vm.sources(persistent=True).items()} == recorded
        if self.running:
            # Until it boots again, libvirt may know a leaf by the name that it once found in a header.
            assert {target: Path(path).resolve() for target, path in self.vm.sources().items()} == recorded
        for target, path in recorded.items():
            self._same(model, target, model.disks[target].leaf, path, "the leaf")
        for disk in shown.preview.disks if shown.preview else ():
            (path,) = [*self.kit.root.glob(f"images/*/{disk.kept_volume_id}.qcow2")] or [self.first(disk.target)]
            kept = model.disks[disk.target].kept
            assert kept is not None
            self._same(model, disk.target, kept, path, "the kept leaf")

    def first(self, target: str) -> Path:
        """Return the image that a disk began with."""
        return next(disk.path for disk in self.vm.spec.disks if disk.target == target)

    def _same(self, model: Model, target: str, point: int, path: Path, what: str) -> None:
        wanted = b"".join(bytes([byte]) * PLACE_BYTES for byte in model.disks[target].shows[point])
        found = self.content(path)
        if found != wanted:
            at = next(number for number, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
            raise AssertionError(f"{what}, {target}: {path.name} differs from the model at byte {at}")

    def _check_storage(self, model: Model) -> None:
        """As many volumes as the model has points, each of them legal, each above another by a relative name."""
        made = sorted(self.kit.root.glob("images/*/*.qcow2"))
        points = sum(len(disk.parents) for disk in model.disks.values())
        assert len(made) == points - len(model.disks), f"{len(made)} volumes for {points} points"
        for path in made:
            assert path.with_suffix(".json").exists(), f"{path} has no metadata"
            assert '"illegal"' not in path.with_suffix(".json").read_text(), f"{path} is marked"
            assert not read_header(path).backing_name.startswith("/")


@contextmanager
def world() -> Iterator[World]:
    """Yield a world; everything in it ends with it."""
    with short_dir() as root, IsolatedHost("a", root) as host, bench_on(root, host) as bench:
        made = World(root, bench)
        try:
            made.report()
            yield made
        finally:
            made.close()
