"""A fleet in small: a livesnap, a host, guests whose writers never stop, and a storage domain that can be filled."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec
from tests.e2e.kit import Livesnap, Place
from tests.wait import eventually

STORAGE_MIB: Final = 1024
PROCESSES: Final = {
    "manager": "manager.worker",
    "api": "manager.api",
    "spm": "spm.worker",
    "agent": "hostagent.worker",
    "guard": "hostagent.guard",
    "broker": "redis-server",
}
"""What the supervisor starts again when it dies, by the words of its command line."""
GUESTS: Final[Mapping[str, tuple[int, AgentMode]]] = {
    "one": (1, "normal"),
    "two": (2, "normal"),
    "slow": (1, "hookslow"),
    "bare": (1, "none"),
}
"""Name, number of disks, and what the guest's agent does: of a slow one, a fault meets every part of a freeze."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that a round may break."""

    place: Place
    livesnap: Livesnap
    fs: SmallFs
    crashes: Path
    guests: tuple[BedVm, ...]

    def jobs(self) -> list[Any]:
        """Return the unfinished jobs."""
        return list(self.livesnap.ask("/v1/jobs?active=true") or [])

    def all_alive(self) -> bool:
        """Tell whether every process runs and livesnap knows every guest as running."""
        try:
            for words in PROCESSES.values():
                self.livesnap.pid_of(words)
        except AssertionError:
            return False
        seen = self.livesnap.ask("/v1/vms") or []
        running = {vm["name"] for vm in seen if vm["state"] == "running" and not vm["problem"]}
        return running >= {guest.name for guest in self.guests}

    def settle(self) -> None:
        """Wait until everything is as it was before any fault."""
        eventually(self.all_alive, timeout_s=120, what="every process and guest", interval_s=0.2)


@contextmanager
def world() -> Iterator[World]:
    """Yield a world; everything in it ends with it."""
    with ExitStack() as stack:
        root = stack.enter_context(short_dir())
        host = stack.enter_context(IsolatedHost("a", root))
        fs = stack.enter_context(SmallFs(STORAGE_MIB, root / "storage", host.owner))
        place = Place(host=host, root=root, storage=fs.path)
        crashes = root / "crashes"
        crashes.mkdir()
        environment = {"LIVESNAP_CRASH_POINTS": str(crashes), "LIVESNAP_MIN_FREE_BYTES": str(64 * 1024)}
        livesnap = stack.enter_context(place.livesnap(environment=environment))
        guests = tuple(_guest(place, name, disks, ga) for name, (disks, ga) in GUESTS.items())
        for guest in guests:
            guest.wait_ready()
            if guest.spec.agent:
                guest.wait_agent()
            guest.wait_acks()
        made = World(place=place, livesnap=livesnap, fs=fs, crashes=crashes, guests=guests)
        made.settle()
        yield made


def _guest(place: Place, name: str, disks: int, ga: AgentMode) -> BedVm:
    specs = []
    for letter in "ab"[:disks]:
        path = make_disk(place.storage / f"{name}-vd{letter}.qcow2", owner=place.host.owner, size_mib=32)
        specs.append(DiskSpec(path=path, target=f"vd{letter}"))
    vm = define_vm(place.host, VmSpec(name=name, disks=tuple(specs), ga=ga, hook_s=1, agent=ga != "none"))
    vm.start()
    return vm
