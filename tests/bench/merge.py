"""Live merge: a running machine's newest snapshot is deleted, so that QEMU copies its leaf's data down; against
`virsh blockcommit --active --pivot`.

Two guests of one kind, one for each side. Each has a second disk that no file system is on; before every merge the
whole amount is written to it, so that every cluster is allocated in the leaf and in the base alike.
"""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from manager.cli.client import Client
from manager.cli.session import Server
from tests.bed.disks import make_disk, make_overlay
from tests.bed.need import tool
from tests.bed.process import CLEAN_ENV
from tests.bed.vm import SNAPSHOT_FLAGS, BedVm
from tests.bench.budget import runs_within
from tests.bench.row import Row, Target
from tests.bench.stats import medians
from tests.e2e.kit import Livesnap, Place, place

RUNS = 5
QUICK_RUNS = 2
SECONDS = 55
SIZE_MIB = 1024
QUICK_MIB = 64
TARGET = "vdb"
DEVICE = "virtio-disk1"
"""What libvirt calls the second disk."""
CHUNK_MIB = 32
SWITCH = (
    "<domainsnapshot><disks><disk name='vda' snapshot='no'/><disk name='vdb' snapshot='external'>"
    "<driver type='qcow2'/><source file='{path}'/></disk></disks></domainsnapshot>"
)
LIMIT = Target(measure="ratio", limit=1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What one deletion took, in ms, and when each of its steps began."""

    took: float
    steps: dict[str, float]


def rows(*, quick: bool, times: float) -> Iterator[Row]:
    """Measure merges of one size, ours and the bare one in turn."""
    runs, size_mib = (QUICK_RUNS, QUICK_MIB) if quick else (round(RUNS * times), SIZE_MIB)
    ours: list[Merged] = []
    floor: list[float] = []
    with place() as here, here.livesnap() as livesnap, _guests(here, livesnap, size_mib) as (told, bare):
        side = _Ours(livesnap, told)
        for number in runs_within(
            SECONDS * times, runs + 1, QUICK_RUNS + 1
        ):  # the first pair writes to the bases for the first time, and does not count
            for is_ours in (True, False) if number % 2 else (False, True):
                if is_ours:
                    ours.append(side.merge(size_mib))
                else:
                    floor.append(_bare(here, bare, number, size_mib))
    yield Row(
        key="live-merge",
        ours=[each.took for each in ours[1:]],
        floor=floor[1:],
        targets=(LIMIT,),
        steps=medians([each.steps for each in ours[1:]]),
        notes=[f"{size_mib} MiB"],
    )


class _Ours:
    """Deletions through the API, with a client that holds the job's event stream."""

    def __init__(self, livesnap: Livesnap, vm: BedVm) -> None:
        self._livesnap, self._vm = livesnap, vm
        url, token = ((livesnap.state_dir / name).read_text().strip() for name in ("url", "token"))
        self._client = Client(Server(url=url, token=token))

    def merge(self, size_mib: int) -> Merged:
        """Take a snapshot, let the guest write, and delete it."""
        body = {"disks": [TARGET], "quiesce": "never"}
        taken = self._ended(self._client.post(f"/v1/vms/{self._vm.name}/snapshots", body, key=uuid4().hex))
        _write(self._vm, size_mib)
        begun = time.perf_counter()
        job = self._client.post("/v1/snapshots/delete", {"snapshots": [taken["snapshot_id"]]}, key=uuid4().hex)
        ended = self._ended(job)
        took = (time.perf_counter() - begun) * 1000
        steps = {f"until {line['step']}": 0.0 for line in ended["timeline"]}
        for line in ended["timeline"]:
            steps[f"until {line['step']}"] += line["ms"]
        return Merged(took=took, steps=steps)

    def _ended(self, job: Any) -> Any:
        for event in self._client.events(job["id"], after=0, limit_s=300):
            if event.kind == "job":
                assert event.data["state"] == "completed", event.data
                return event.data
        raise AssertionError(f"the event stream of job {job['id']} ended before the job")


def _bare(here: Place, vm: BedVm, number: int, size_mib: int) -> float:
    """Do the same with an overlay of our own and virsh; return what virsh took, in ms."""
    leaf = Path(vm.sources()[TARGET])
    overlay = make_overlay(here.storage / f"bare-{number}.qcow2", backing=leaf, owner=here.host.owner)
    with vm.libvirt() as handle:
        handle.snapshotCreateXML(SWITCH.format(path=overlay), SNAPSHOT_FLAGS)
    _write(vm, size_mib)
    words = [tool("virsh"), "-q", "-c", here.host.uri, "blockcommit", vm.name, TARGET, "--active", "--pivot"]
    begun = time.perf_counter()
    subprocess.run(words, check=True, env=CLEAN_ENV, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    took = (time.perf_counter() - begun) * 1000
    assert Path(vm.sources()[TARGET]) == leaf
    overlay.unlink()
    return took


def _write(vm: BedVm, size_mib: int) -> None:
    """Write so much to the disk through QEMU, as the guest would at the speed of a processor, and sync it.

    The guest itself is idle: it takes half a minute for a GiB here.
    """
    (device,) = (each["qdev"] for each in vm.monitor("query-block") if f"/{DEVICE}/" in each.get("qdev", ""))
    for start in range(0, size_mib, CHUNK_MIB):
        command = f'qemu-io -d {device} "write -P 7 {start}M {CHUNK_MIB}M"'
        said = vm.monitor("human-monitor-command", **{"command-line": command})
        assert not said, said  # it complains here, and tells of its success elsewhere
    leaf = Path(vm.sources()[TARGET])
    subprocess.run([tool("sync"), "-f", str(leaf)], check=True)
    assert leaf.stat().st_blocks * 512 >= size_mib << 20, f"{leaf} has less than {size_mib} MiB"


@contextmanager
def _guests(here: Place, livesnap: Livesnap, size_mib: int) -> Iterator[tuple[BedVm, BedVm]]:
    """Yield two idle guests, each with the second disk."""

    def boot(name: str) -> BedVm:
        path = make_disk(here.storage / f"{name}-data.qcow2", owner=here.host.owner, fs=None, size_mib=size_mib)
        disk = (
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' error_policy='stop'/>"
            f"<source file='{path}'/><target dev='{TARGET}' bus='virtio'/></disk>"
        )
        vm = here.guest(name, pace_ms=200, control=True, odd_disks=(disk,))
        vm.shell("killall writer; sync")
        livesnap.shows(vm)
        return vm

    with ThreadPoolExecutor(2) as pool:
        told, bare = pool.map(boot, ("told", "bare"))
    yield told, bare
    for vm in (told, bare):
        vm.destroy()
