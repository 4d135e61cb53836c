"""A running livesnap with crash points and one guest, whose processes a test may kill, hold and let go in any step."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.ids import VmId, disk_id
from tests.bed.vm import BedVm
from tests.crash import arm
from tests.e2e.kit import Livesnap, Place, writer_went_on
from tests.wait import eventually

AGENT, SPM, MANAGER = "hostagent.worker", "spm.worker", "manager.worker"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A running livesnap with crash points, and one guest. `notes` is what a test writes down on its way."""

    here: Place
    livesnap: Livesnap
    vm: BedVm
    crashes: Path
    notes: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Hold processes meanwhile, known by the words of their command lines: they live, and do nothing."""
        pids = [self.livesnap.pid_of(name) for name in names]
        with ExitStack() as let_go:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
                let_go.callback(_let_go, pid)
            yield

    def is_back(self, name: str) -> None:
        """Wait until a process that has died runs again."""

        def runs() -> bool:
            with suppress(AssertionError):
                return self.livesnap.pid_of(name) > 0
            return False

        eventually(runs, timeout_s=30, what=f"{name} to be started again")

    def reaches(self, job: Any, state: str, *, waiting_for: str = "", timeout_s: float = 60) -> Any:
        """Wait until a job is in a state, and says that it waits for that; return it."""

        def reached() -> Any:
            shown = self.livesnap.job(job["id"])
            return shown if shown["state"] == state and waiting_for in shown["waiting_for"] else None

        what = f"job {job['id']} to be {state}, waiting for {waiting_for!r}: {self.livesnap.job(job['id'])}"
        return eventually(reached, timeout_s=timeout_s, what=what, interval_s=0.05)

    def cancel(self, job: Any) -> Any:
        """Cancel a job, and return it as the API shows it then."""
        cancelled = self.livesnap.ask(f"/v1/jobs/{job['id']}/cancel", {})
        assert cancelled is not None, "the API does not answer, or refuses"
        return cancelled

    def ends_well(self, job: Any) -> Any:
        """Wait for the end of a job; fail unless it is a good and truthful one, with nothing left; return the job."""
        ended = self.livesnap.wait_for_end(job["id"])
        assert ended["state"] in ("completed", "rolled_back"), ended
        self.check_nothing_is_left(ended)
        return ended

    @contextmanager
    def dead_agent(self, point: str) -> Iterator[Any]:
        """Yield a job whose host agent has died at `point`; it starts again, and finds all that, after the `with`."""
        hit = arm(self.crashes, point)
        with self.livesnap.nothing_restarted():
            job = self.livesnap.submit(self.vm)
            eventually(hit.exists, timeout_s=60, what="the agent's death")
            yield job

    def crash_once(self, point: str, job: Any) -> Any:
        """Wait for the end of a job during which `point` was armed; check that it was hit, and return the job."""
        ended = self.livesnap.wait_for_end(job["id"])
        assert (self.crashes / f"{point}.hit").exists(), f"{point} was not reached; {ended['timeline']}"
        self.check_nothing_is_left(ended)
        return ended

    def check_nothing_is_left(self, job: Any) -> None:
        """No frozen guest, no lost write, no volume without an owner, both definitions on the leaf on record."""
        writer_went_on(self.vm)
        live = self.vm.sources()
        assert live == self.vm.sources(persistent=True)
        self.livesnap.shows_on(self.vm, live)
        snapshots = self.livesnap.snapshots(self.vm)
        assert (job["snapshot_id"] in [snapshot["id"] for snapshot in snapshots]) == (job["state"] == "completed")
        used = {Path(path) for path in live.values()}
        used |= {self.here.storage / disk["path"] for snapshot in snapshots for disk in snapshot["disks"]}
        mine = {disk_id(VmId(self.vm.uuid), disk.target) for disk in self.vm.spec.disks}
        volumes = {self.here.storage / path for path in self.here.volumes() if path.split("/")[1] in mine}
        assert volumes <= used, f"volumes without an owner: {volumes - used}"


def _let_go(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextmanager
def opened(here: Place, *options: str, environment: Mapping[str, str] | None = None, **guest: Any) -> Iterator[Scene]:
    """Yield a scene with one guest, on Redis and SQLite unless `options` say otherwise."""
    crashes = here.root / "crashes"
    crashes.mkdir()
    points = {"LIVESNAP_CRASH_POINTS": str(crashes)}
    with here.livesnap(*options, environment={**points, **(environment or {})}) as livesnap:
        vm = here.guest("target", disks=2, **guest)
        livesnap.shows(vm)
        yield Scene(here=here, livesnap=livesnap, vm=vm, crashes=crashes)
