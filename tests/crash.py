"""Arm the named crash points of the processes under test (common/crashpoints.py)."""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.wait import eventually


def sampled(*points: str, suite: Collection[str]) -> list[Any]:
    """Return a test's parameters: the suite runs those in `suite`, `make matrix` all of them."""
    return [point if point in suite else pytest.param(point, marks=pytest.mark.matrix) for point in points]


def arm(folder: Path, point: str) -> Path:
    """Arm a point in a crash folder; return the file that is there once a process has died of it."""
    folder.mkdir(parents=True, exist_ok=True)
    hit = folder / f"{point}.hit"
    hit.unlink(missing_ok=True)
    (folder / point).touch()
    return hit


def crash_at(point: str, folder: Path) -> tuple[dict[str, str], Path]:
    """Return the environment of a process that is to die at `point`, and the file that is there once it has."""
    crashes = folder / "crash-points"
    return {"LIVESNAP_CRASH_POINTS": str(crashes)}, arm(crashes, point)


def arm_stop(folder: Path, point: str) -> None:
    """Have the process that reaches a point stop there; `stopped_at` waits for that."""
    arm(folder, f"{point}.stop")


@contextmanager
def stopped_at(point: str, folder: Path, pid: int) -> Iterator[None]:
    """Wait until the process `pid` has stopped at a point, run the body meanwhile, and let it go on."""
    hit = folder / f"{point}.hit"
    eventually(hit.exists, timeout_s=60, what=f"process {pid} at {point}")
    try:
        eventually(lambda: _is_stopped(pid), timeout_s=10, what=f"process {pid} to stop at {point}")
        yield
    finally:
        hit.unlink()
        os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
