"""File locks that belong to an open file (Linux's OFD locks), and QEMU's image lock, which is made of them.

QEMU marks an image in use by read locks on single bytes: from 100 the permissions that it has, from 200 those it
denies to others (QEMU: docs/system/qemu-block-drivers, "Disk image file locking"). A write lock on bytes 100 to 299
therefore fails for every use of the file, as a backing file too, and while it is held QEMU cannot open the file
(measured with QEMU 7.2). It opens no image format (P8) and goes with the process that held it.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import HeaderRefused

# linux/fcntl.h; Python's fcntl module has no names for them before 3.13.
_F_OFD_GETLK, _F_OFD_SETLK, _F_OFD_SETLKW = 36, 37, 38
# struct flock with 64-bit offsets: type, whence, start, length (0: to the end, however far), pid (must be 0).
_FLOCK = struct.Struct("hhqqi4x")
_BUSY = frozenset({errno.EAGAIN, errno.EACCES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of bytes that a lock covers; `length` 0 means to the end of the file."""

    start: int
    length: int


IMAGE = Span(start=100, length=200)
"""Every byte that QEMU's image lock can use."""
WRITING = Span(start=101, length=1)
"""QEMU's permission to write (BLK_PERM_WRITE): held on a running or paused machine's leaf, not on a backing file, nor
on an image that is read; after a migration only once the machine has run (measured with QEMU 7.2)."""
WHOLE = Span(start=0, length=0)
"""For files that exist only to be locked: the lease, a host's own lock."""


def try_lock(fd: int, span: Span, *, shared: bool = False) -> bool:
    """Take the lock on an open file, return False if somebody else holds one that conflicts. Raises OSError.

    It lasts until the last descriptor of this open file is closed. A shared lock needs a descriptor open for reading,
    an exclusive one open for writing.
    """
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _request(span, fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def wait_lock(fd: int, span: Span) -> None:
    """Take the exclusive lock, however long it takes. Raises OSError."""
    fcntl.fcntl(fd, _F_OFD_SETLKW, _request(span, fcntl.F_WRLCK))


def is_held(fd: int, span: Span) -> bool:
    """Tell whether somebody else holds any lock in that range, without taking one; read-only descriptors will do."""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _request(span, fcntl.F_WRLCK))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


@contextmanager
def opened(path: Path, *, writable: bool) -> Iterator[int]:
    """Yield a descriptor of a regular file. Raises HeaderRefused for links, devices and pipes, and OSError."""
    # Non-blocking: opening a pipe that somebody put there must not hang the process before fstat can refuse it.
    access = os.O_RDWR if writable else os.O_RDONLY
    try:
        fd = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise HeaderRefused("header_refused", f"{path} is not a regular file: {error.strerror}") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise HeaderRefused("header_refused", f"{path} is not a regular file")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def image_lock(path: Path) -> Iterator[int | None]:
    """Hold QEMU's image lock against everybody; yields a read-write descriptor, or None if the image is in use.

        with image_lock(path) as fd:
            if fd is None: ...   # somebody has it open: touch nothing

    Raises OSError (FileNotFoundError for a missing file) and HeaderRefused for what is no regular file.
    """
    with opened(path, writable=True) as fd:
        yield fd if try_lock(fd, IMAGE) else None


def image_is_locked(path: Path, span: Span = IMAGE) -> bool:
    """Tell whether anybody, on any host, holds QEMU's image lock on the file. Raises OSError, HeaderRefused."""
    with opened(path, writable=False) as fd:
        return is_held(fd, span)


def lock_file(path: Path, span: Span = WHOLE, *, shared: bool = False) -> int | None:
    """Open (creating it) and lock a file that exists only to be locked; return the descriptor that holds the lock.

    None: somebody else holds it. The caller keeps the descriptor for as long as the lock is to last. Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if try_lock(fd, span, shared=shared):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _request(span: Span, kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, span.start, span.length, 0)
