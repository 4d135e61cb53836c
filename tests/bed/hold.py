"""Holding a machine's QEMU at its start and at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bed.guest_image import file_lock
from tests.bed.paths import cache_dir
from tests.bed.process import run

SOURCE = Path(__file__).with_name("hold.c")


def hold_library() -> Path:
    """Return the library to preload into QEMU, built at the first call on this machine. Raises ToolFailed."""
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = cache_dir() / f"hold-{key}.so"
    with file_lock(cache_dir() / "hold.lock"):
        if not library.exists():
            half = library.with_suffix(".half")
            run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-pthread", "-o", half, SOURCE])
            half.chmod(0o755)
            half.rename(library)
    return library


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the QEMU of every machine that was given this file, until the `with` is left."""
    file.touch()
    try:
        yield
    finally:
        file.unlink()
