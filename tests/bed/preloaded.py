"""Small libraries that are loaded into a process before its C library, built from the sources beside this file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.bed.guest_image import file_lock
from tests.bed.paths import cache_dir
from tests.bed.process import run


def preloaded(name: str) -> Path:
    """Return the library made from `name`.c, built at the first call on this machine. Raises ToolFailed."""
    source = Path(__file__).with_name(f"{name}.c")
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    library = cache_dir() / f"{name}-{key}.so"
    with file_lock(cache_dir() / f"{name}.lock"):
        if not library.exists():
            half = library.with_suffix(".half")
            run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-pthread", "-o", half, source])
            half.chmod(0o755)
            half.rename(library)
    return library


def wrong_clock(ahead_s: int) -> dict[str, str]:
    """Return the environment of a process that takes it to be that many seconds later than it is (negative: earlier).

    Our own, since libfaketime makes sleeping fail in a process whose clock is behind (clock_nanosleep, EINVAL).
    """
    return {"LD_PRELOAD": str(preloaded("wrong_clock")), "BED_CLOCK_S": str(ahead_s)}
