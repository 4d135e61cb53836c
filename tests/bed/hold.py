"""Holding a machine's QEMU at its start and at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bed.preloaded import preloaded


def hold_library() -> Path:
    """Return the library to preload into QEMU. Raises ToolFailed."""
    return preloaded("hold")


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the QEMU of every machine that was given this file, until the `with` is left."""
    file.touch()
    try:
        yield
    finally:
        file.unlink()
