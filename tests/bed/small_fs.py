"""A tiny mounted file system that a test can fill up: real ENOSPC for real guests."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.bed.need import need
from tests.bed.paths import Owner, give
from tests.bed.process import ToolFailed, run


class SmallFs:
    """An ext4 file system of `mib` MiB on a loop device, mounted at `path` while the `with` block runs. Only for root.

    Raises ToolFailed where loop devices do not work; `SmallFs.reason()` says it beforehand, for a skip.
    """

    def __init__(self, mib: int, path: Path, owner: Owner) -> None:
        self.path = path
        self._mib = mib
        self._owner = owner
        self._image = path.with_name(path.name + ".img")

    @staticmethod
    def reason() -> str | None:
        """Return why this cannot work here, or None."""
        return need("loop", "mke2fs", "mount")

    def __enter__(self) -> Self:
        with self._image.open("wb") as image:
            image.truncate(self._mib * 2**20)
        # no journal and no reserve: nearly all of it is the test's, and "full" means full for root too
        run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", self._image])
        self.path.mkdir(parents=True, exist_ok=True)
        run(["mount", "-o", "loop", self._image, self.path])
        give(self.path, self._owner)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            run(["umount", self.path])
        except ToolFailed:
            # A guest still has a volume open here. Detach: the loop device goes with the last user.
            run(["umount", "--lazy", self.path])
        self._image.unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        """How much can still be written."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Take all space but `leave_bytes` away."""
        with (self.path / "filler").open("ab") as filler:
            while (room := self.free_bytes - leave_bytes) > 0:
                try:
                    os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, max(room // 2, 4096))
                except OSError:
                    break
        os.sync()

    def free(self) -> None:
        """Give back what `fill` took."""
        with suppress(FileNotFoundError):
            (self.path / "filler").unlink()
