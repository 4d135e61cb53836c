"""The process behind tests/bed/failing_fs.py: `python -m tests.bed.failing_fs_server SOURCE MOUNT SWITCH`.

Passes everything through to the folder SOURCE, but a write fails whose path (relative) matches the file SWITCH. That
has three lines: an errno, a pattern, and a second pattern, which counts as soon as a write has failed by the first. No
such file, no failures. Locks are left out on purpose: without a lock method of ours the kernel keeps them itself,
open-file-description locks (QEMU's) included.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mfusepy import FUSE, FuseOSError, Operations, fuse_get_context

_STAT = ("st_atime", "st_mtime", "st_ctime", "st_dev", "st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid")
_STATVFS = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize")


class Passthrough(Operations):  # type: ignore[misc]
    """A folder, seen through FUSE. Paths begin with a slash; `fh` is a descriptor of this process."""

    use_ns = True

    def __init__(self, source: Path, switch: Path) -> None:
        self._source = source
        self._switch = switch
        self._tripped = ""

    def _real(self, path: str) -> str:
        return f"{self._source}{path}"

    def _require_write(self, path: str) -> None:
        """Raise the errno of the switch if this path is one of those that fail."""
        try:
            switch = self._switch.read_text()
        except FileNotFoundError:
            return
        number, first, second = switch.split("\n")
        name = path.lstrip("/")
        if re.fullmatch(first, name):
            self._tripped = switch
            raise FuseOSError(int(number))
        if self._tripped == switch and re.fullmatch(second, name):
            raise FuseOSError(int(number))

    def _give_to_caller(self, path: str) -> None:
        uid, gid, _ = fuse_get_context()
        os.lchown(self._real(path), uid, gid)

    # ---- files ------------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        fd = os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._give_to_caller(path)
        return fd

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._require_write(path)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._require_write(path)
        os.truncate(self._real(path) if fh is None else fh, length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        self._require_write(path)
        if mode:
            raise FuseOSError(errno.EOPNOTSUPP)
        os.posix_fallocate(fh, offset, size)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    # ---- names ------------------------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._real(path)) if fh is None else os.fstat(fh)
        known = {name: getattr(found, name) for name in _STAT}
        times = {name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return {**known, **times, "st_blocks": found.st_blocks}

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        # An entry without an inode number counts as deleted.
        found = {name: os.lstat(f"{self._real(path)}/{name}") for name in (".", "..", *os.listdir(self._real(path)))}
        return [(name, {"st_ino": seen.st_ino, "st_mode": seen.st_mode}, 0) for name, seen in found.items()]

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path), mode)
        self._give_to_caller(path)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._real(source), self._real(target), follow_symlinks=False)
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real(old), self._real(new))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.lchown(self._real(path), uid, gid)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._real(path))
        return {name: getattr(found, name) for name in _STATVFS}


def main() -> None:
    """Serve until the mount point is unmounted."""
    source, mount, switch = (Path(word) for word in sys.argv[1:])
    serve: Callable[..., object] = FUSE
    # allow_other: QEMU runs as another user; default_permissions: the kernel then checks modes as everywhere else;
    # no caching of names and attributes: a hard link's two names must agree at once.
    serve(
        Passthrough(source, switch),
        str(mount),
        foreground=True,
        nothreads=True,
        allow_other=True,
        default_permissions=True,
        use_ino=True,
        hard_remove=True,
        attr_timeout=0,
        entry_timeout=0,
    )


if __name__ == "__main__":
    main()
