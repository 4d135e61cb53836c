"""A fleet in small: a livesnap, two hosts, guests whose writers never stop, and a storage domain that can be filled.

On its own Redis and SQLite, or on RabbitMQ and PostgreSQL.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.servers import PostgresServer, RabbitServer
from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec
from tests.chaos.parts import SUPERVISED, Child, Part, Unit
from tests.e2e.hosts import Member, joined
from tests.e2e.kit import Livesnap, Place
from tests.e2e.wires import GONE, QUEUES, purge
from tests.wait import eventually

STORAGE_MIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest: its number of disks, what its agent does, and its host. Of a slow one, a fault meets every part of a
    freeze."""

    name: str
    disks: int
    ga: AgentMode
    on_second: bool = False


GUESTS: Final = (
    Guest("one", 1, "normal"),
    Guest("two", 2, "normal"),
    Guest("slow", 1, "hookslow"),
    Guest("bare", 1, "none"),
    Guest("far", 1, "normal", on_second=True),
)
SHELF: Final = Guest("shelf", 1, "none")
"""The guest that is off (tests/chaos/trees.py)."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that a round may break."""

    place: Place
    livesnap: Livesnap
    second: Member
    fs: SmallFs
    crashes: Path
    guests: tuple[BedVm, ...]
    shelf: BedVm
    parts: Mapping[str, Part]
    rabbit: RabbitServer | None

    @property
    def hosts(self) -> tuple[IsolatedHost, IsolatedHost]:
        """The libvirtds."""
        return self.place.host, self.second.host

    def jobs(self) -> list[Any]:
        """Return the unfinished jobs."""
        return list(self.livesnap.ask("/v1/jobs?active=true") or [])

    def lose_messages(self) -> None:
        """Take every message away that the broker has; a broker that is away itself has none."""
        try:
            if self.rabbit is not None:
                purge(self.rabbit, (*QUEUES, "host.h2"))
            else:
                redis.Redis(unix_socket_path=str(self.livesnap.state_dir / "redis.sock"), socket_timeout=5).flushall()
        except GONE:
            return

    def revive(self) -> None:
        """Start again what has died and has no supervisor."""
        for part in self.parts.values():
            part.revive()

    def all_alive(self) -> bool:
        """Tell whether every process runs and livesnap knows every guest as running."""
        self.revive()
        if not all(part.pid() for part in self.parts.values()):
            return False
        seen = self.livesnap.ask("/v1/vms") or []
        running = {vm["name"] for vm in seen if vm["state"] == "running" and not vm["problem"]}
        return running >= {guest.name for guest in self.guests}

    def settle(self) -> None:
        """Wait until everything is as it was before any fault."""
        eventually(self.all_alive, timeout_s=120, what="every process and guest", interval_s=0.2)


@contextmanager
def world(*, production: bool = False) -> Iterator[World]:
    """Yield a world; everything in it ends with it."""
    with ExitStack() as stack:
        root = stack.enter_context(short_dir())
        host = stack.enter_context(IsolatedHost("a", root))
        fs = stack.enter_context(SmallFs(STORAGE_MIB, root / "storage", host.owner))
        place = Place(host=host, root=root, storage=fs.path)
        crashes = root / "crashes"
        crashes.mkdir()
        environment = {"LIVESNAP_CRASH_POINTS": str(crashes), "LIVESNAP_MIN_FREE_BYTES": str(64 * 1024)}
        rabbit = stack.enter_context(RabbitServer(root / "rabbit")) if production else None
        postgres = stack.enter_context(PostgresServer(root / "postgres")) if production else None
        options = ("--broker", rabbit.url, "--database", postgres.url) if rabbit and postgres else ()
        livesnap = stack.enter_context(place.livesnap(*options, environment=environment))
        second = stack.enter_context(joined(place, livesnap, "h2", environment=environment))
        parts: dict[str, Part] = {name: Child(livesnap, words) for name, words in SUPERVISED.items()}
        parts |= {"agent of h2": Unit(second.agent), "guard of h2": Unit(second.guard)}
        parts["broker"] = Unit(rabbit) if rabbit else Child(livesnap, "redis-server")
        parts |= {"database": Unit(postgres)} if postgres else {}
        made = World(
            place=place,
            livesnap=livesnap,
            second=second,
            fs=fs,
            crashes=crashes,
            guests=_guests(place, second.host),
            shelf=_shelf(place, livesnap),
            parts=parts,
            rabbit=rabbit,
        )
        made.settle()
        yield made


def _guests(place: Place, second: IsolatedHost) -> tuple[BedVm, ...]:
    """Return the guests, each writing; they boot side by side."""
    made = tuple(_guest(place.storage, second if each.on_second else place.host, each) for each in GUESTS)
    for guest in made:
        guest.wait_ready()
        if guest.spec.agent:
            guest.wait_agent()
        guest.wait_acks()
    return made


def _shelf(place: Place, livesnap: Livesnap) -> BedVm:
    """Return a guest that was written to before, between and after two snapshots, and is off since."""
    vm = _guest(place.storage, place.host, SHELF)
    vm.wait_ready()
    vm.wait_acks()
    livesnap.shows(vm)
    for _ in range(2):
        ended = livesnap.wait_for_end(livesnap.submit(vm)["id"])
        assert ended["state"] == "completed", ended
        vm.wait_acks()
    vm.destroy()
    livesnap.shows(vm, "off")
    return vm


def _guest(storage: Path, host: IsolatedHost, guest: Guest) -> BedVm:
    specs = []
    for letter in "ab"[: guest.disks]:
        path = make_disk(storage / f"{guest.name}-vd{letter}.qcow2", owner=host.owner, size_mib=32)
        specs.append(DiskSpec(path=path, target=f"vd{letter}"))
    spec = VmSpec(name=guest.name, disks=tuple(specs), ga=guest.ga, hook_s=1, agent=guest.ga != "none")
    vm = define_vm(host, spec)
    vm.start()
    return vm
