"""A file system whose writes a test can make fail: EIO, or any other errno, for real guests on real QEMU."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from tests.bed.need import need
from tests.bed.paths import Owner, give
from tests.bed.process import CLEAN_ENV, Daemon, ToolFailed, run
from tests.wait import eventually

ROOT = Path(__file__).resolve().parents[2]

LEAVES = r"images/[^/]+/[^./][^/]*\.qcow2"
"""The volumes that livesnap has made, by the names that QEMU is told: the SPM writes to hidden temporary ones."""


class FailingFs(Daemon):
    """The folder `source` seen through FUSE, at `path`, while the `with` block runs. Only for root.

    The kernel keeps QEMU's locks (open-file-description locks work through it, as long as all go through this mount).
    """

    def __init__(self, source: Path, path: Path, owner: Owner) -> None:
        super().__init__(f"the failing file system at {path}", path.with_name(f"{path.name}.fuse.log"))
        self.path = path
        self._source = source
        self._switch = path.with_name(f"{path.name}.switch")
        self._owner = owner

    @staticmethod
    def reason() -> str | None:
        """Return why this cannot work here, or None."""
        return need("fuse")

    def start(self) -> None:
        """Mount it and return when it answers."""
        for folder in (self._source, self.path):
            folder.mkdir(parents=True, exist_ok=True)
            give(folder, self._owner)
        words: list[str | Path] = ["-m", "tests.bed.failing_fs_server", self._source, self.path, self._switch]
        self._spawn([sys.executable, *words], env={**CLEAN_ENV, "FUSE_LIBRARY_NAME": "fuse3"}, cwd=ROOT)
        eventually(self._is_mounted, timeout_s=10, what=self.what)

    def close(self) -> None:
        """Unmount it, by which its process ends."""
        if self.path.is_dir() and os.path.ismount(self.path):
            try:
                run(["umount", self.path])
            except ToolFailed:
                # A guest still has a volume open here. Detach: the process goes with the last user, or below.
                run(["umount", "--lazy", self.path])
        self.stop()

    def fail(self, paths: str = LEAVES, *, then: str = "", number: int = errno.EIO) -> None:
        """Let every write to a path that matches the pattern `paths` (relative, whole) fail from now on.

        Once one has failed, writes to paths that match `then` fail as well.
        """
        half = self._switch.with_suffix(".half")
        half.write_text(f"{number}\n{paths}\n{then}")
        half.rename(self._switch)

    def heal(self) -> None:
        """Let writes succeed again."""
        self._switch.unlink(missing_ok=True)

    def _is_mounted(self) -> bool:
        self.require_alive()
        return os.path.ismount(self.path)
