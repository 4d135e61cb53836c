"""Small durable files, and storage's errors in our words.

Every document that livesnap keeps on a storage domain is replaced whole: a reader sees the old text or the new one,
after a power cut too.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import StorageError
from common.ids import new_id

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What a network file system answers when its server or its export is gone.
_AWAY = frozenset({errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH})


def code_of(error: OSError) -> str:
    """Return our stable code for what the operating system said of a storage domain."""
    if error.errno in _FULL:
        return "storage_full"
    return "storage_unavailable" if error.errno in _AWAY else "storage_io_error"


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that says what was tried.

    with storage_errors(f"writing {path}"):
        ...
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(code_of(error), f"{action}: {error.strerror or error}{where}") from error


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, text: str, *, mode: int = 0o644, new: bool = False) -> None:
    """Replace the file by `text`: temporary file, fsync, rename, fsync of the folder. Raises OSError.

    With `new` the file must not exist, else FileExistsError: it is then linked, which never replaces. A crash leaves
    the old text or the new one, and perhaps a hidden `.tmp` beside it, which nobody reads.
    """
    temporary = path.with_name(f".{path.name}.{new_id()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        # The mode must not depend on the process's umask: hypervisors read these files as other users.
        os.fchmod(fd, mode)
        _write_all(fd, text.encode())
        os.fsync(fd)
        if new:
            os.link(temporary, path)
            os.unlink(temporary)
        else:
            os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_folder(path.parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
