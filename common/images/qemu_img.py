"""The only place that runs qemu-img, and it runs one command: `create`.

Everything else that is asked of an image is answered by our own parser (`common.images.qcow2`) and by file locks
(`common.images.locks`). Formats are always explicit, the backing file is not opened (`-u` and an explicit size), file
names cannot be taken for options or protocols, and the process has limits, a timeout and LC_ALL=C.
"""

import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from common.errors import StorageError
from common.images.chain import local_name
from common.messaging.messages import Format
from common.units import GIB, KIB

# Creating an image needs a fraction of these (measured: 0.1 GiB of address space, 5 ms); they stop a runaway.
_ADDRESS_SPACE_BYTES = 2 * GIB
_CPU_SECONDS = 30
_TIME_LIMIT = timedelta(seconds=60)
# A process stuck in the kernel (a dead NFS server) does not even die; then it is left to the kernel.
_KILL_WAIT = timedelta(seconds=2)
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_WORDS = {
    "No space left on device": "storage_full",
    "Disk quota exceeded": "storage_full",
    "Stale file handle": "storage_unavailable",
    "Transport endpoint is not connected": "storage_unavailable",
    "Input/output error": "storage_io_error",
    "Read-only file system": "storage_io_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A qcow2 volume to be made above another. `backing_name` is written to the header as it is, and not opened."""

    size_bytes: int
    backing_name: str
    backing_format: Format
    cluster_bytes: int = 64 * KIB
    extended_l2: bool = False


def create(root: Path, path: str, overlay: Overlay, *, time_limit: timedelta = _TIME_LIMIT) -> None:
    """Make the file `path` (relative to the storage domain's root) as an empty overlay; it must not be in use.

    Raises StorageError: storage_full, storage_unavailable, storage_io_error, or qemu_img_failed with qemu-img's words.
    A crash or an error leaves no file or a partial one: callers use a temporary name.
    """
    options = f"compat=1.1,cluster_size={overlay.cluster_bytes},extended_l2={'on' if overlay.extended_l2 else 'off'}"
    backing = ["-b", local_name(overlay.backing_name), "-F", overlay.backing_format]
    words = ["create", "-q", "-f", Format.QCOW2, "-o", options, "-u", *backing]
    _run([*words, f"./{path}", str(overlay.size_bytes)], root, time_limit)


def _run(words: Sequence[str], root: Path, time_limit: timedelta) -> None:
    """Run qemu-img in the storage domain's root. Raises StorageError."""
    try:
        child = subprocess.Popen(
            ["qemu-img", *words],
            cwd=root,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise StorageError("qemu_img_failed", f"starting qemu-img in {root}: {error}") from error
    _limit(child.pid)
    try:
        _, said = child.communicate(timeout=time_limit.total_seconds())
    except subprocess.TimeoutExpired:
        _kill(child)
        raise StorageError(
            "storage_io_error", f"qemu-img {words[0]} in {root} did not end within {time_limit.total_seconds():g} s"
        ) from None
    if child.returncode != 0:
        raise _translated(said.strip() or f"ended with status {child.returncode}", words, root)


def _limit(pid: int) -> None:
    """Limit memory and processor time from outside: a hook between fork and exec is not safe in a threaded process."""
    for kind, value in ((resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES), (resource.RLIMIT_CPU, _CPU_SECONDS)):
        try:
            resource.prlimit(pid, kind, (value, value))
        except ProcessLookupError:
            return  # it has ended already


def _kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    try:
        child.communicate(timeout=_KILL_WAIT.total_seconds())
    except subprocess.TimeoutExpired:
        if child.stderr is not None:
            child.stderr.close()


def _translated(said: str, words: Sequence[str], root: Path) -> StorageError:
    code = next((code for text, code in _WORDS.items() if text in said), "qemu_img_failed")
    return StorageError(code, f"qemu-img {words[0]} {words[-2]} in {root}: {said[-500:]}")
