"""A second SPM beside a running livesnap, as in a fleet: it takes over from a dead one, and not from a stopped one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.bed.process import CLEAN_ENV, Daemon
from tests.crash import arm
from tests.e2e.scene import SPM, Scene
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.own_backends,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("steady"),
]

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 5.0


class Standby(Daemon):
    """An SPM with the settings and the key of the instance's own."""

    def __init__(self, scene: Scene) -> None:
        self._settings = scene.livesnap.state_dir / "settings" / "spm.toml"
        self._folder = scene.livesnap.state_dir
        self._before = 0
        super().__init__("the standby", scene.here.root / "standby.log")

    def start(self) -> None:
        """Start, and wait until it stands by."""
        self._before = len(self.log.read_text()) if self.log.exists() else 0
        words = ["-A", "spm.worker", "worker", "-P", "threads", "-c", "2", "-n", "standby@test", "-l", "WARNING"]
        environment = {**CLEAN_ENV, "LIVESNAP_CONFIG": str(self._settings), "PYTHONPATH": str(ROOT)}
        self._spawn([sys.executable, "-m", "celery", *words], env=environment, cwd=self._folder)
        eventually(lambda: self._says("lease.wait"), timeout_s=60, what=f"a standby: {self.log}")

    @property
    def is_active(self) -> bool:
        """Tell whether it has taken over."""
        return self._says("spm.active")

    def _says(self, word: str) -> bool:
        return word in self.log.read_text()[self._before :]


@contextmanager
def standing_by(scene: Scene) -> Iterator[Standby]:
    """Yield a standby; when it ends, the instance's own SPM is the active one again."""
    before = len(scene.livesnap.log("spm"))
    with Standby(scene) as standby:
        yield standby
        took_over = standby.is_active
    scene.is_back(SPM)
    if took_over:  # else the next standby may be quicker than this one's successor, which has only just begun to start
        eventually(lambda: "spm.active" in scene.livesnap.log("spm")[before:], timeout_s=60, what="an active SPM")


def test_a_standby_carries_on_when_the_active_spm_dies(steady: Scene) -> None:
    """Nobody starts the dead one again meanwhile. From its death to the next step of the job."""
    with standing_by(steady) as standby:
        hit = arm(steady.crashes, "spm.create.linked")
        with steady.livesnap.nothing_restarted():
            job = steady.livesnap.submit(steady.vm)
            ended = steady.livesnap.wait_for_end(job["id"])
        assert standby.is_active
        died_at = hit.stat().st_ctime
        made_at = next(datetime.fromisoformat(line["at"]) for line in ended["timeline"] if line["step"] == "pivoting")
        took_s = made_at.timestamp() - died_at
        assert 0 < took_s < WITHIN_S * busyness(), f"{took_s} s, load {os.getloadavg()}"
        assert steady.ends_well(job)["state"] == "completed"


def busyness() -> float:
    """Return how many times as long everything takes because others use this machine too, 1 on an idle one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_a_stopped_spm_is_waited_for(steady: Scene) -> None:
    with standing_by(steady) as standby:
        with steady.held(SPM):
            job = steady.livesnap.submit(steady.vm)
            waiting = steady.reaches(job, "creating_volumes", waiting_for="the SPM of pool default")
            assert waiting["error"] is None
            assert not standby.is_active
        assert steady.ends_well(job)["state"] == "completed"
        assert not standby.is_active
