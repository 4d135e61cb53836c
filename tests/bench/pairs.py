"""Pairs of snapshots of real guests: ours, and the bare one, in turn.

Two guests of one kind stand beside each other, one for livesnap and one for the bare script, so that neither finds the
other's volumes in its chain and both chains grow alike. Who begins alternates too. After a few layers new guests are
started: depth costs time by itself (protocol.md, part B1), and that is not what is measured here.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import libvirt

from manager.cli.client import Client
from manager.cli.session import Server
from tests.bed.vm import BedVm
from tests.bench.budget import runs_within
from tests.bench.floor import bare_snapshot
from tests.e2e.kit import Livesnap, Place, place

LEAST = 3
"""Pairs that are taken however long that takes."""
LAYERS = 8
"""The most new layers that one guest gets."""
PACE_MS = 10
"""The writers' pause between two records: how finely a guest's own clock sees a freeze."""

Load = Literal["writer", "idle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One snapshot, in ms. `window`: from the freeze call to the confirmed thaw; `held`: from the freeze's return on.

    `gap`: the longest pause between two acknowledged writes on one disk, by the guest's own clock (0: it is idle).
    """

    latency: float
    window: float
    held: float
    gap: float
    steps: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One of ours and the bare one beside it."""

    ours: Taken
    bare: Taken


def pairs(count: int, *, disks: int, seconds: float, load: Load = "writer", warm_up: int = 1) -> Iterator[Pair]:
    """Yield so many pairs of quiesced snapshots, or LEAST and as many as there is time for.

    The first of new guests warm up and do not count.
    """
    with place() as here, here.livesnap() as livesnap, ExitStack() as guests:
        layers = LAYERS
        for number in runs_within(seconds, count, LEAST):
            if layers + 1 > LAYERS:
                guests.close()
                ours, bare = guests.enter_context(_two(here, livesnap, f"g{number}", disks, load))
                for _ in range(warm_up):
                    ours.take()
                    bare.take()
                layers = warm_up
            first, second = (ours, bare) if number % 2 else (bare, ours)
            taken = {side: side.take() for side in (first, second)}
            layers += 1
            yield Pair(ours=taken[ours], bare=taken[bare])


@contextmanager
def _two(here: Place, livesnap: Livesnap, name: str, disks: int, load: Load) -> Iterator[tuple["_Ours", "_Bare"]]:
    with ThreadPoolExecutor(2) as pool:  # both boot at once: two cores, and each takes 3 s
        guests = list(pool.map(lambda side: _guest(here, f"{name}{side}", disks, load), ("a", "b")))
    for vm in guests:
        livesnap.shows(vm)
    with here.host.connect() as connection:
        yield _Ours(guests[0], livesnap), _Bare(guests[1], connection, here)
    for vm in guests:
        vm.destroy()


def _guest(here: Place, name: str, disks: int, load: Load) -> BedVm:
    if load == "writer":
        return here.guest(name, disks=disks, pace_ms=PACE_MS)
    vm = here.guest(name, disks=disks, pace_ms=PACE_MS, control=True)
    vm.shell("killall writer; sync")
    return vm


class _Side:
    """A guest whose snapshots are taken in one way."""

    def __init__(self, vm: BedVm) -> None:
        self.vm = vm

    def take(self) -> Taken:
        """Take one snapshot and return what it took."""
        raise NotImplementedError

    def _gap(self, before: int) -> float:
        """Return the guest's longest pause since its console had `before` characters, some writes after it included."""
        if self.vm.spec.control:
            return 0.0
        for disk in self.vm.spec.disks:
            self.vm.wait_acks(more=3, target=disk.target)
        acks = [ack for ack in self.vm.acks() if ack.uptime_ms >= before]
        by_disk: dict[str, list[int]] = {}
        for ack in acks:
            by_disk.setdefault(ack.target, []).append(ack.uptime_ms)
        return float(max(b - a for times in by_disk.values() for a, b in pairwise(times)))

    def _uptime(self) -> int:
        """Return the guest's clock at its newest acknowledged write, 0 for an idle one."""
        acks = self.vm.acks()
        return 0 if self.vm.spec.control or not acks else acks[-1].uptime_ms


class _Ours(_Side):
    """By livesnap, through its API, with a client that holds the job's event stream."""

    def __init__(self, vm: BedVm, livesnap: Livesnap) -> None:
        super().__init__(vm)
        self._livesnap = livesnap
        url, token = ((livesnap.state_dir / name).read_text().strip() for name in ("url", "token"))
        self._client = Client(Server(url=url, token=token))

    def take(self) -> Taken:
        before, asked_at = self._uptime(), time.time()
        begun = time.perf_counter()
        job = self._client.post(f"/v1/vms/{self.vm.name}/snapshots", {}, key=uuid4().hex)
        accepted = time.perf_counter()
        ended = self._ended(job["id"])
        latency = (time.perf_counter() - begun) * 1000
        gap = self._gap(before)
        receipt = self._receipt(ended)
        steps = {"accepted": (accepted - begun) * 1000, **_timeline(ended, asked_at)}
        steps |= {name: receipt[f"{name}_ms"] for name in ("prepare", "freeze", "switch", "thaw", "held")}
        window = receipt["freeze_ms"] + receipt["held_ms"]
        return Taken(latency=latency, window=window, held=receipt["held_ms"], gap=gap, steps=steps)

    def _ended(self, job_id: str) -> Any:
        for event in self._client.events(job_id, after=0, limit_s=60):
            if event.kind == "job":
                assert event.data["state"] == "completed", event.data
                return event.data
        raise AssertionError(f"the event stream of job {job_id} ended before the job")

    def _receipt(self, job: Any) -> Any:
        (snapshot,) = [each for each in self._livesnap.snapshots(self.vm) if each["id"] == job["snapshot_id"]]
        assert snapshot["consistency"] == "filesystem", snapshot["consistency_reason"]
        return snapshot["receipt"]


def _timeline(job: Any, asked_at: float) -> dict[str, float]:
    """Return when each step began, in ms after the request, by the Manager's clock, which is this machine's."""
    return {
        f"at {line['step']}": (datetime.fromisoformat(line["at"]).timestamp() - asked_at) * 1000
        for line in job["timeline"]
    }


class _Bare(_Side):
    """By the bare script, on a connection that is open already."""

    def __init__(self, vm: BedVm, connection: libvirt.virConnect, here: Place) -> None:
        super().__init__(vm)
        self._handle = connection.lookupByName(vm.name)
        self._leaves: dict[str, Path] = {disk.target: disk.path for disk in vm.spec.disks}
        self._owner = here.host.owner
        self._number = 0

    def take(self) -> Taken:
        before = self._uptime()
        self._number += 1
        bare, self._leaves = bare_snapshot(self._handle, self._leaves, self._number, self._owner)
        return Taken(latency=bare.latency, window=bare.window, held=bare.held, gap=self._gap(before), steps=bare.steps)
