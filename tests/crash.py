"""Arm the named crash points of the processes under test (common/crashpoints.py)."""

from pathlib import Path


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
