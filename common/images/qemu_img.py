"""The only place that runs qemu-img: `create`, `commit`, and `rebase -u`, which only writes a header.

Everything else that is asked of an image is answered by our own parser (`common.images.qcow2`) and by file locks
(`common.images.locks`). Formats are always explicit, the backing file is not opened (`-u` and an explicit size), file
names cannot be taken for options or protocols, and the process has limits, a timeout and LC_ALL=C. A commit takes as
long as its data: it runs on its own, and takes no lock itself. It is given the descriptors that hold the caller's image
locks, so that these last as long as it does, whatever becomes of the caller.
"""

import os
import re
import resource
import subprocess
import threading
from collections.abc import Callable, Sequence
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
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image below the storage domain's root."""

    path: str
    format: Format

    def options(self, prefix: str = "") -> str:
        """Return QEMU's options that open it as exactly that, without a lock of its own."""
        name = f"./{self.path}".replace(",", ",,")
        driver, file = f"{prefix}driver={self.format}", f"{prefix}file."
        return f"{driver},{file}driver=file,{file}filename={name},{file}locking=off"


def change_backing(root: Path, image: Image, backing_name: str, backing_format: Format) -> None:
    """Write another backing file into the header of a qcow2 image whose lock the caller holds; nothing else is opened.

    Both backing files must show the same. Raises StorageError. A crash leaves the old name or the new one.
    """
    words = ["rebase", "--image-opts", "-q", "-u", "-b", local_name(backing_name), "-F", backing_format]
    _run([*words, image.options()], root, _TIME_LIMIT)


class Commit:
    """A commit that runs: it ends with the upper image empty, or it has failed. `ended` is called once it is over."""

    def __init__(self, child: subprocess.Popen[bytes], root: Path, ended: Callable[[], object]) -> None:
        """Watch a process that was just started."""
        self._child = child
        self._root = root
        self._ended = ended
        self._said = b""
        self.percent = 0.0
        self._threads = [
            threading.Thread(target=act, name=f"commit-{child.pid}", daemon=True) for act in (self._listen, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, limit: timedelta) -> bool:
        """Wait that long at most; tell whether it is over, and everything about it known."""
        self._threads[1].join(limit.total_seconds())
        return not self._threads[1].is_alive()

    def error(self) -> StorageError | None:
        """Return what went wrong with a commit that is over; None proves nothing: look whether the image is empty."""
        status = self._child.returncode
        if status == 0:
            return None
        said = self._said.decode(errors="replace").strip() or f"ended with status {status}"
        return _translated(said, ["commit", "", ""], self._root)

    def stop(self) -> None:
        """End it; both images stay as they are then. What stands on the upper one shows the same as before."""
        self._child.kill()
        self.wait(_KILL_WAIT)

    def _listen(self) -> None:
        """Follow its progress. With our end of the pipe gone, its next word ends it: nobody waits for it any more."""
        assert self._child.stdout is not None
        while chunk := os.read(self._child.stdout.fileno(), 4096):
            if found := _PERCENT.findall(chunk):
                self.percent = float(found[-1])

    def _watch(self) -> None:
        assert self._child.stderr is not None
        self._said = self._child.stderr.read(4096)
        self._child.wait()
        self._threads[0].join()
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()
        self._ended()


def begin_commit(
    root: Path, top: Image, base: Image, *, locks: Sequence[int], bytes_per_s: int, ended: Callable[[], object]
) -> Commit:
    """Begin to write what `top` holds into `base`, its backing file, and then to empty `top`.

    `locks` are the descriptors that hold the image locks of both. At every moment `top` above `base` shows the same;
    doing it again after a crash goes on. Raises StorageError if it cannot be started.
    """
    limit = ["-r", str(bytes_per_s)] if bytes_per_s else []
    words = ["commit", "-p", *limit, "--image-opts", f"{top.options()},{base.options('backing.')}"]
    try:
        child = subprocess.Popen(
            ["qemu-img", *words],
            cwd=root,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(locks),
        )
    except OSError as error:
        raise StorageError("qemu_img_failed", f"starting qemu-img in {root}: {error}") from error
    _limit(child.pid, cpu=False)
    return Commit(child, root, ended)


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


def _limit(pid: int, *, cpu: bool = True) -> None:
    """Limit memory and processor time from outside: a hook between fork and exec is not safe in a threaded process."""
    limits = [(resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES), *([(resource.RLIMIT_CPU, _CPU_SECONDS)] if cpu else [])]
    for kind, value in limits:
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
