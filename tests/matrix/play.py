"""Play one cell: begin its story, kill at its point, and hold job, machine, storage and label against each other."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash import arm, arm_stop
from tests.e2e.kit import place
from tests.e2e.scene import Scene, opened
from tests.matrix.cells import ITSELF, PROCESSES, Cell
from tests.matrix.stories import STORIES
from tests.wait import eventually

CELLS_PER_SCENE = 20
"""Then a new guest is made: each completed snapshot makes the chain longer, and from 20 volumes on that is felt."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """How a cell went: the job's last state, and what was not as it must be ('' for nothing)."""

    cell: Cell
    state: str
    problem: str
    seconds: float


@contextmanager
def scene_of(story: str) -> Iterator[Scene]:
    """Yield a livesnap of its own with the guest that a story needs."""
    with place() as here, opened(here, ga=STORIES[story].agent) as scene:
        yield scene


def play(scene: Scene, cell: Cell) -> Played:
    """Play a cell; whatever fails in it is its problem, and the scene is not to be used again."""
    began, state = time.monotonic(), "?"
    try:
        job = _played(scene, cell)
        state = job["state"]
        _check(scene, cell, job)
        problem = ""
    except (AssertionError, TimeoutError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Played(cell=cell, state=state, problem=problem, seconds=time.monotonic() - began)


def _played(scene: Scene, cell: Cell) -> Any:
    """Return the job at its end."""
    hit = scene.crashes / f"{cell.point}.hit"
    hit.unlink(missing_ok=True)
    begin = STORIES[cell.story].begin
    if cell.victim == ITSELF:
        job = begin(scene, lambda: arm(scene.crashes, cell.point))
    else:
        with ThreadPoolExecutor(1) as aside:  # the API may be who is held, and whoever asks it waits with it
            begun = aside.submit(begin, scene, lambda: arm_stop(scene.crashes, cell.point))
            eventually(hit.exists, timeout_s=90, what=f"{cell.point} to be reached")
            with _held(scene):
                _kill(scene, cell.victim)
            job = begun.result(timeout=90)
    ended = scene.livesnap.wait_for_end(job["id"], timeout_s=180)
    assert hit.exists(), f"{cell.point} was not reached; {ended['timeline']}"
    return ended


@contextmanager
def _held(scene: Scene) -> Iterator[None]:
    """Wait until the process at the point has stopped; let it go on after the `with`."""
    pid = eventually(lambda: next(_stopped(scene), 0), timeout_s=10, what="the process at the point to stop")
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # the API reaches points of the Manager too: it may have been the victim
            os.kill(pid, signal.SIGCONT)


def _stopped(scene: Scene) -> Iterator[int]:
    """Return the stopped processes of this livesnap."""
    session = json.loads((scene.livesnap.state_dir / "standalone.json").read_text())["session"]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session and _state(entry) == "T":
                yield int(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _state(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]


def _kill(scene: Scene, victim: str) -> None:
    if victim == "libvirtd":
        scene.here.host.kill9()
        scene.here.host.start()
    else:
        os.kill(scene.livesnap.pid_of(PROCESSES[victim]), signal.SIGKILL)


def _check(scene: Scene, cell: Cell, job: Any) -> None:
    for name in PROCESSES.values():
        scene.is_back(name)
    story = STORIES[cell.story]
    assert job["state"] in story.ends, f"{job['state']}: {job['error']}; {job['timeline']}"
    assert job["state"] == "completed" or job["error"]["code"], job
    story.check(scene, job)
