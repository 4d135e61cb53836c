"""Room set aside for deletions: a storage domain without a free byte must still let go of what was made on it.

The mark, the trash and the tombstone take a block each. Without them a snapshot that failed because its storage domain
is full would hold its machine until somebody made room (measured on ext4: every deletion ended with ENOSPC).
"""

import os
from pathlib import Path

from common import logs
from common.images.files import storage_errors
from common.images.layout import RESERVE_FILE
from common.units import KIB

RESERVE_BYTES = 256 * KIB
"""Twenty deletions with the usual blocks of 4 KiB."""

_BLOCK_UNIT = 512  # of st_blocks, whatever the file system's own is (stat(2))
_log = logs.get()


def keep(root: Path) -> None:
    """Make sure that the room is set aside, as far as there is any. Raises StorageError, storage_full among others."""
    with storage_errors(f"setting room aside in {root / RESERVE_FILE}"):
        fd = os.open(root / RESERVE_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_blocks * _BLOCK_UNIT < RESERVE_BYTES:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
        finally:
            os.close(fd)


def release(root: Path) -> None:
    """Give the room back to the file system. Raises StorageError; a missing file is fine."""
    with storage_errors(f"giving back the room of {root / RESERVE_FILE}"):
        try:
            fd = os.open(root / RESERVE_FILE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.ftruncate(fd, 0)
            os.fsync(fd)  # a journalling file system gives freed blocks out again only after its commit
        finally:
            os.close(fd)
    _log.warning("reserve.released", root=str(root))
