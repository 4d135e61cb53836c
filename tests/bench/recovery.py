"""How long what has died is missed: by the guest, by a job's next step, by the jobs of a broker that was away.

There is no floor. Real guests; crash points of the product kill each process in the middle of a snapshot, and every
job must end well. The guest's pause is counted from the kill to the guest's next acknowledged write.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from tests.bench.budget import runs_within
from tests.bench.row import Row, Target
from tests.crash import arm
from tests.e2e.kit import place
from tests.e2e.scene import AGENT, SPM, Scene, opened
from tests.e2e.test_spm_standby import standing_by
from tests.wait import eventually

RUNS = {"agent-killed-frozen": 10, "libvirtd-killed-too": 5, "spm-killed": 5, "broker-back": 5}
QUICK_RUNS, LEAST = 2, 3
SECONDS = 11
"""For each of the four."""
TARGETS = {
    "agent-killed-frozen": Target(measure="p95", limit=150),
    "libvirtd-killed-too": Target(measure="p95", limit=1500),
    "spm-killed": Target(measure="p95", limit=1000),
    "broker-back": Target(measure="p95", limit=5000),
}
PACE_MS = 10
POLL_S = 0.001
FROZEN = "host.pivot.frozen"
ENVIRONMENT = {"LIVESNAP_PROBE_PATIENCE_S": "1"}


def rows(*, quick: bool, times: float) -> Iterator[Row]:
    """Measure each of the four, on one livesnap with one guest."""
    with place() as here, opened(here, environment=ENVIRONMENT, pace_ms=PACE_MS) as scene:
        each: dict[str, Callable[[Scene], float]] = {
            "agent-killed-frozen": agent_killed,
            "libvirtd-killed-too": libvirtd_killed_too,
            "spm-killed": spm_killed,
            "broker-back": broker_back,
        }
        for name, kill in each.items():
            runs = QUICK_RUNS if quick else round(RUNS[name] * times)
            took = [kill(scene) for _ in runs_within(SECONDS * times, runs, min(runs, LEAST))]
            yield Row(key=f"recovery/{name}", ours=took, targets=(TARGETS[name],), notes=_notes(scene))


def _notes(scene: Scene) -> list[str]:
    gaps = scene.notes.pop("gaps", ())
    told = ", ".join(f"{gap} ms" for gap in gaps)
    return [f"by the guest's clock, its longest pauses, freeze and all: {told}"] if gaps else []


def agent_killed(scene: Scene) -> float:
    """Kill the agent while the guest is frozen; return from the kill to the guest's next write, in ms."""
    before = scene.vm.acks()[-1].uptime_ms
    hit = arm(scene.crashes, FROZEN)
    job = scene.livesnap.submit(scene.vm)
    died_at = _died_at(hit)
    took = (_next_write(scene, after=died_at) - died_at) * 1000
    _settle(scene, job, before)
    return took


def libvirtd_killed_too(scene: Scene) -> float:
    """Kill both; return from libvirtd's return to the guest's next write, in ms: without it nobody can thaw."""
    before = scene.vm.acks()[-1].uptime_ms
    hit = arm(scene.crashes, FROZEN)
    job = scene.livesnap.submit(scene.vm)
    died_at = _died_at(hit)
    scene.here.host.kill9()
    scene.here.host.start()
    back_at = time.time()
    took = max(0.0, _next_write(scene, after=died_at) - back_at) * 1000
    _settle(scene, job, before)
    return took


def spm_killed(scene: Scene) -> float:
    """Kill the active SPM; return from its death to the end of the standby's first task, in ms."""
    with standing_by(scene) as standby:
        hit = arm(scene.crashes, "spm.create.linked")
        with scene.livesnap.nothing_restarted():
            job = scene.livesnap.submit(scene.vm)
            ended = scene.livesnap.wait_for_end(job["id"])
        assert standby.is_active
        made_at = next(datetime.fromisoformat(line["at"]) for line in ended["timeline"] if line["step"] == "pivoting")
        took = (made_at.timestamp() - hit.stat().st_ctime) * 1000
    assert scene.ends_well(job)["state"] == "completed"
    return took


def broker_back(scene: Scene) -> float:
    """Kill the broker with a job in flight, and let it be away; return from its answer to the job's end, in ms."""
    socket = scene.livesnap.state_dir / "redis.sock"
    with scene.held(AGENT, SPM):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, "creating_volumes")
        with scene.livesnap.nothing_restarted():
            os.kill(scene.livesnap.pid_of("redis-server"), signal.SIGKILL)
            time.sleep(3)  # as long as a restart of a machine's service takes: publishers meet a broker that is away
    back_at = eventually(lambda: _answers(socket), timeout_s=30, what="the broker", interval_s=0.01)
    ended = scene.livesnap.wait_for_end(job["id"])
    took = (datetime.fromisoformat(ended["finished_at"]).timestamp() - back_at) * 1000
    assert scene.ends_well(job)["state"] == "completed"
    return took


def _answers(socket: Path) -> float:
    """Return now if Redis answers by its socket, else 0."""
    with redis.Redis(unix_socket_path=str(socket)) as client:
        try:
            return time.time() if client.ping() else 0.0
        except redis.ConnectionError:
            return 0.0


def _died_at(hit: Path) -> float:
    """Wait for a death, and return when it was, in s since 1970."""
    eventually(hit.exists, timeout_s=60, what=f"a death at {hit.stem}", interval_s=POLL_S)
    return hit.stat().st_ctime


def _next_write(scene: Scene, *, after: float) -> float:
    """Return when the guest's console grew for the first time after a moment: no write is acknowledged while frozen."""
    console = scene.vm.console_path

    def grown() -> float:
        last = console.stat().st_mtime
        return last if last > after else 0.0

    return eventually(grown, timeout_s=60, what="a write of the guest", interval_s=POLL_S)


def _settle(scene: Scene, job: Any, before: int) -> None:
    """Wait for a good end with nothing left; note the longest pause since then by the guest's own clock."""
    scene.ends_well(job)
    by_disk: dict[str, list[int]] = {}
    for ack in scene.vm.acks():
        if ack.uptime_ms >= before:
            by_disk.setdefault(ack.target, []).append(ack.uptime_ms)
    longest = max(later - earlier for times in by_disk.values() for earlier, later in pairwise(times))
    scene.notes.setdefault("gaps", []).append(longest)
