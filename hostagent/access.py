"""Whether the user that QEMU runs as may open a volume read-write: tried, where this process can act as that user.

Owner and mode alone prove nothing on storage where a server maps users (root squashing), where access lists count, or
that is mounted read-only. A trial opens the file and closes it again; it writes nothing.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import StorageError
from hostagent.as_user import CannotAct, acting_as
from hostagent.ports import Access, QemuUser

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_READ_WRITE, _ENTER = 0o6, 0o1


def require_open(path: Path, user: QemuUser) -> Access:
    """Return how QEMU's user may open a file read-write. Raises StorageError(volume_permission), OSError."""
    by_mode = _mode_allows(path, user)
    try:
        denied = acting_as(user, lambda: _denial(path))
        if denied is None:
            return Access(how=f"opened read-write as {user}", by_mode=by_mode)
        closed = acting_as(user, lambda: _closed_folder(path))
    except CannotAct as cannot:
        if by_mode:
            return Access(how=f"owner and mode let {user} open it (not tried: {cannot})")
        raise _refused(path, user, "by owner and mode") from None
    # libvirt does so only as root, and only where root has its power: not on storage that squashes root, where a file
    # of root's cannot be opened by us either.
    if not closed and denied.errno == errno.EACCES and user.is_given_files and _is_roots(path):
        return Access(how=f"root owns it, and libvirt gives it to {user} (dynamic_ownership)")
    raise _refused(path, user, f"{closed} is closed to it" if closed else str(denied.strerror))


def require_way(folder: Path, user: QemuUser) -> None:
    """Raise StorageError(volume_permission) unless QEMU's user may enter a folder and all above it."""
    inside = folder / "a new volume"
    try:
        closed = acting_as(user, lambda: _closed_folder(inside))
    except CannotAct:
        closed = next((above for above in reversed(inside.parents) if not _may(above.stat(), user, _ENTER)), None)
    if closed:
        raise _refused(inside.parent, user, f"{closed} is closed to it")


def _refused(path: Path, user: QemuUser, why: str) -> StorageError:
    return StorageError("volume_permission", f"{user} may not open {path}: {why}")


def _denial(path: Path) -> OSError | None:
    """Return why the calling thread's user may not open the file read-write, None if it may."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in _DENIED:
            return error
        raise
    return None


def _closed_folder(path: Path) -> Path | None:
    """Return the topmost folder above a file that the calling thread's user may not enter."""
    for folder in reversed(path.parents):
        try:
            os.stat(f"{folder}/.")
        except PermissionError:
            return folder
    return None


def _is_roots(path: Path) -> bool:
    return path.stat().st_uid == 0 and os.geteuid() == 0 and _denial(path) is None


def _mode_allows(path: Path, user: QemuUser) -> bool:
    return all(_may(status, user, wanted) for status, wanted in _wanted(path))


def _wanted(path: Path) -> Iterator[tuple[os.stat_result, int]]:
    yield from ((folder.stat(), _ENTER) for folder in path.parents)
    yield path.stat(), _READ_WRITE


def _may(status: os.stat_result, user: QemuUser, wanted: int) -> bool:
    """Apply the classic mode bits: only the first class that fits counts; root may do everything."""
    shift = 6 if status.st_uid == user.uid else 3 if status.st_gid in (user.gid, *user.groups) else 0
    return user.uid == 0 or (status.st_mode >> shift) & wanted == wanted
