"""A storage domain with room for one new volume's header and for nothing of what the guest writes into it.

The one set-up for "the pivot succeeds and the first write fails": every cluster of the guest's own disk is allocated,
so the previous leaf takes writes on a file system that is full, and a new leaf above it cannot grow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.units import KIB
from tests.bed.disks import make_disk
from tests.bed.failing_fs import FailingFs
from tests.bed.host import IsolatedHost
from tests.bed.paths import give
from tests.bed.process import run
from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec

FS_MIB: Final = 160
"""Two guests' disks and what they leave; nearly all of it is holes."""
DISK_MIB: Final = 64

ROOM_BYTES: Final = 232 * KIB
"""What `fill` leaves. Measured on ext4: a new qcow2 volume takes 193 KiB with blocks of 1 KiB (196 KiB with 4 KiB); its
metadata, its parent's, and the disk's folder take a block each. QEMU needs 64 KiB for its first L2 table and as much
for the first cluster of data. 204, 260 and 320 KiB were tried: in all three the volume is made, and the first write
fails."""

MIN_FREE: Final = {"LIVESNAP_MIN_FREE_BYTES": str(64 * KIB)}
"""The environment in which livesnap does not refuse beforehand. Its default of 64 MiB is there to prevent all this."""


@dataclass(frozen=True, kw_only=True)
class FullDisk:
    """The storage domain `small` on a file system of its own, mounted."""

    fs: SmallFs
    host: IsolatedHost
    failing: FailingFs | None = None

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self.failing.path if self.failing else self.fs.path

    @property
    def option(self) -> tuple[str, str]:
        """What `livesnap standalone` must be told to use it."""
        return "--storage-domain", f"small={self.path}"

    def guest(self, name: str, *, ga: AgentMode = "normal", hook_s: float = 2) -> BedVm:
        """Define and start a guest whose disk can be written everywhere without another byte of room."""
        template = make_disk(self.path / "template", owner=self.host.owner, size_mib=DISK_MIB)
        disk = self.path / f"{name}-vda.qcow2"
        # -S 0 makes no holes. Preallocation would leave extents "unwritten", whose conversion may need room.
        run(["qemu-img", "convert", "-S", "0", "-f", "qcow2", "-O", "qcow2", template, disk])
        template.unlink()
        disk.chmod(0o600)
        give(disk, self.host.owner)
        # `stop` is QEMU's policy that a fleet must have: the guest waits for room instead of hearing of an error.
        disks = (DiskSpec(path=disk, error_policy="stop"),)
        vm = define_vm(self.host, VmSpec(name=name, disks=disks, ga=ga, hook_s=hook_s))
        vm.start()
        return vm

    def fill(self, *, leave_bytes: int = ROOM_BYTES) -> None:
        """Take all room away but for one new volume."""
        self.fs.fill(leave_bytes=leave_bytes)

    def volumes(self) -> set[str]:
        """Return the volumes that livesnap has made and not deleted, relative to the storage domain."""
        return {str(path.relative_to(self.path)) for path in self.path.glob("images/*/*.qcow2")}


@contextmanager
def full_disk(folder: Path, host: IsolatedHost) -> Iterator[FullDisk]:
    """Mount the file system below `folder` while the `with` block runs; `SmallFs.reason()` says why it cannot work."""
    with SmallFs(FS_MIB, folder / "small", host.owner) as fs:
        yield FullDisk(fs=fs, host=host)


@contextmanager
def full_or_failing_disk(folder: Path, host: IsolatedHost) -> Iterator[FullDisk]:
    """The same, seen through another file system that can be told to answer writes with an error (`failing`)."""
    with full_disk(folder, host) as small, FailingFs(small.fs.path, folder / "failing", host.owner) as failing:
        yield FullDisk(fs=small.fs, host=host, failing=failing)
