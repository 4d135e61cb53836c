"""A running livesnap and a guest whose agent does as a test says, also in the middle of a freeze."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.bed.vm import BedVm
from tests.crash import arm_stop, stopped_at
from tests.e2e.kit import Livesnap, Place, place, writer_went_on

Mode = Literal["auto", "require", "best-effort", "never"]
FREEZE_LIMIT_S, HELD_LIMIT_S = 2, 4
NO_AGENT = (True, "none_no_agent")
UNTOUCHED = (True, "none")
QUIESCED = (True, "all_new")
UNQUIESCED = (False, "all_new")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one request came to: the command's exit status, the job, and the snapshot if there is one."""

    status: int
    job: Any
    snapshot: Any

    @property
    def pivots(self) -> list[tuple[bool, str]]:
        """What the host was asked, quiesced or not, and what came of it."""
        return [(step["quiesce"], step["outcome"]) for step in self.job["attempts"] if step["step"] == "pivoting"]

    def reason(self, number: int = 0) -> str:
        """Why a pivot ended as it did."""
        asked = [step for step in self.job["attempts"] if step["step"] == "pivoting"]
        return str(asked[number]["reason"])

    def check_failed(self, code: str, *pivots: tuple[bool, str]) -> None:
        """Nothing was taken, and the job says why."""
        assert (self.status, self.job["state"]) == (1, "rolled_back"), self.job
        assert self.job["error"]["code"] == code
        assert self.job["error"]["hint"]
        assert self.pivots == list(pivots)
        assert self.snapshot is None

    def check_taken(self, label: tuple[str, str], *pivots: tuple[bool, str]) -> None:
        """The snapshot was taken, and says what it is."""
        assert (self.status, self.job["state"], self.job["error"]) == (0, "completed", None), self.job
        assert (self.snapshot["consistency"], self.snapshot["consistency_reason"]) == label
        assert self.pivots == list(pivots)


@dataclass(kw_only=True)
class Scene:
    """A running livesnap, and a guest whose agent does as told."""

    here: Place
    livesnap: Livesnap
    vm: BedVm
    crashes: Path
    agent: str = field(default="normal")

    def set_agent(self, mode: str) -> None:
        """Have the guest's agent behave so from now on (tests/bed/guest/agent.sh)."""
        if mode != self.agent:
            self.vm.shell(f"agent {mode}")
            self.agent = mode
            if mode != "none":
                self.vm.wait_agent()

    def take(self, mode: Mode, *words: str, vm: str = "web") -> Told:
        """Ask for a snapshot by the command line and return what it came to."""
        said = self.livesnap.run("snapshot", "create", vm, "--quiesce", mode, *words, "--json")
        return self.told(said.status, said.json)

    def told(self, status: int, job: Any) -> Told:
        """Return what a job that is over came to."""
        taken = job["state"] == "completed"
        snapshot = self.livesnap.json("snapshot", "show", job["snapshot_id"]) if taken else None
        return Told(status=status, job=job, snapshot=snapshot)

    @contextmanager
    def stopped(self, point: str, mode: Mode, *words: str) -> Iterator[Any]:
        """Start a snapshot, run the body while the host agent stands still at a point of it; yield the job."""
        arm_stop(self.crashes, point)
        job = self.livesnap.json("snapshot", "create", "web", "--quiesce", mode, *words, "--no-wait")
        with stopped_at(point, self.crashes, self.livesnap.pid_of("hostagent.worker")):
            yield job

    def end_of(self, job: Any) -> Told:
        """Wait for the end of a job and return what it came to."""
        said = self.livesnap.run("job", "wait", job["id"], "--json")
        return self.told(said.status, said.json)

    def check_guest(self) -> None:
        """The guest is not frozen, its writers go on and have lost nothing, and both definitions agree."""
        for target in ("vda", "vdb"):
            writer_went_on(self.vm, target=target)
        assert self.vm.sources() == self.vm.sources(persistent=True)

    @contextmanager
    def nothing_changed(self) -> Iterator[None]:
        """Fail unless machine and storage are afterwards as before."""
        sources, volumes = self.vm.sources(), self.here.volumes()
        yield
        assert self.vm.sources() == self.vm.sources(persistent=True) == sources
        assert self.here.volumes() == volumes


@contextmanager
def opened() -> Iterator[Scene]:
    """Yield a scene with one guest, `web`, and the limits above, given as a user of `standalone` gives them."""
    with place() as here:
        crashes = here.root / "crashes"
        crashes.mkdir()
        environment = {
            "LIVESNAP_CRASH_POINTS": str(crashes),
            "LIVESNAP_FREEZE_LIMIT_S": str(FREEZE_LIMIT_S),
            "LIVESNAP_HELD_LIMIT_S": str(HELD_LIMIT_S),
        }
        with here.livesnap(environment=environment) as livesnap:
            vm = here.guest("web", disks=2, control=True)
            livesnap.shows(vm)
            yield Scene(here=here, livesnap=livesnap, vm=vm, crashes=crashes)
