"""The lease of a storage domain: only who holds it changes anything there.

`<root>/spm.lease` is locked (an OFD lock: it goes with its process, also after kill -9, measured 7 ms later) and holds
the epoch, which every new holder raises. The lease keeps order between SPMs. It is not what keeps data safe: a process
can be stopped right after it looked, so creation and deletion stand on link(2), generations and image locks
(`protocol.md`, A4).
"""

import os
from pathlib import Path

from common import logs
from common.errors import LivesnapError, NotReady
from common.images.files import code_of, storage_errors
from common.images.layout import LEASE_FILE
from common.images.locks import WHOLE, try_lock, wait_lock

_log = logs.get()
_MAX_BYTES = 64


class Lease:
    """A held lease. The lock lasts as long as this process, or until `release`."""

    def __init__(self, path: Path, fd: int, epoch: int) -> None:
        """Keep an already locked descriptor; use `take` or `wait_for`."""
        self._path = path
        self._fd = fd
        self.epoch = epoch

    def require(self) -> None:
        """Return if the lease is still ours.

        Raises LivesnapError(lease_lost) if its file was replaced or names another epoch, NotReady when storage does
        not answer.
        """
        try:
            mine, there = os.fstat(self._fd), os.stat(self._path)
            same = (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
            epoch = _read_epoch(self._fd)
        except FileNotFoundError:
            same, epoch = False, 0
        except OSError as error:
            code = code_of(error)
            raise NotReady("storage_unavailable", f"reading {self._path}: {error} ({code})") from error
        if not same or epoch != self.epoch:
            seen = f"epoch {epoch}" if same else "another file"
            raise LivesnapError("lease_lost", f"{self._path} was ours with epoch {self.epoch}, now {seen} is there")

    def release(self) -> None:
        """Let a standby take over."""
        os.close(self._fd)


def take(root: Path, *, at_least: int = 1) -> Lease | None:
    """Take the lease now and raise the epoch; None if another process holds it. Raises StorageError."""
    with storage_errors(f"taking the lease of {root}"):
        fd = _open(root)
        try:
            if try_lock(fd, WHOLE):
                return _begin(root, fd, at_least)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None


def wait_for(root: Path, *, at_least: int = 1) -> Lease:
    """Stand by until the lease is free, then take it and raise the epoch. Raises StorageError.

    The signals that end a process end this waiting too.
    """
    taken = take(root, at_least=at_least)
    if taken is not None:
        return taken
    _log.info("lease.wait", root=str(root))
    with storage_errors(f"waiting for the lease of {root}"):
        fd = _open(root)
        try:
            wait_lock(fd, WHOLE)
            return _begin(root, fd, at_least)
        except BaseException:
            os.close(fd)
            raise


def _open(root: Path) -> int:
    return os.open(root / LEASE_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _begin(root: Path, fd: int, at_least: int) -> Lease:
    """Make the new epoch durable before anything is done under it."""
    epoch = max(_read_epoch(fd) + 1, at_least)
    line = f"epoch {epoch:020d}\n".encode()
    os.pwrite(fd, line, 0)
    os.ftruncate(fd, len(line))
    os.fsync(fd)
    _log.info("lease.taken", root=str(root), epoch=epoch)
    return Lease(root / LEASE_FILE, fd, epoch)


def _read_epoch(fd: int) -> int:
    """Return the epoch in the file: 0 for a new one, or one that a power cut left unreadable."""
    words = os.pread(fd, _MAX_BYTES, 0).split()
    if len(words) == 2 and words[0] == b"epoch" and words[1].isdigit():
        return int(words[1])
    return 0
