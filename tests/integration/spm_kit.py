"""A registered storage domain in a temporary folder, real images on it, and a Pool of it in this process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.ids import (
    DiskId,
    HostId,
    PoolId,
    SnapshotId,
    VmId,
    VolumeId,
    adopted_volume_id,
    disk_id,
    new_id,
)
from common.images.layout import host_lock_path, volume_path
from common.images.locks import lock_file
from common.images.metadata import VolumeMetadata, find
from common.messaging.messages import (
    CreateVolumes,
    DeleteVolumes,
    DiskSwitch,
    Format,
    VolumeAt,
    VolumesCreated,
    VolumesDeleted,
)
from spm.operations.create_volumes import create_volumes
from spm.operations.delete_volumes import delete_volumes
from spm.operations.register_storage_domain import register_storage_domain
from spm.pool import Pool
from tests.bed.process import run

POOL = PoolId("p1")
MIB = 2**20
PROMPT = b"qemu-io> "


class TurnedClock:
    """A clock that stands until a test turns it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Return the moment at which it stands."""
        return self._now

    def turn(self, by: timedelta) -> None:
        """Move it on."""
        self._now += by


class SpmKit:
    """One storage domain, one vm, and an SPM's pool; a host's lock is held unless `host_alive` is false."""

    def __init__(self, root: Path, *, host_alive: bool = True, read_only_bases: tuple[str, ...] = ()) -> None:
        self.root = root
        self.root.mkdir(exist_ok=True)
        self.identity = register_storage_domain(root, root.name, POOL, read_only_bases=read_only_bases)
        self.id = self.identity.storage_domain_id
        self.pool = Pool(POOL, {root.name: root})
        self.clock = TurnedClock()
        self.vm = VmId(new_id())
        self._host_lock: int | None = None
        if host_alive:
            self.revive_host()

    def revive_host(self) -> None:
        """Let a host hold its own lock here."""
        self._host_lock = lock_file(self.root / host_lock_path(HostId("h1")), shared=True)
        assert self._host_lock is not None

    def kill_host(self) -> None:
        """Let go of the host's lock, as its death does."""
        if self._host_lock is not None:
            os.close(self._host_lock)
            self._host_lock = None

    def close(self) -> None:
        """Release everything that is held."""
        self.pool.close()
        self.kill_host()

    def image(
        self, path: str, *, size_mib: int = 16, image_format: Format = Format.QCOW2, options: tuple[str, ...] = ()
    ) -> VolumeAt:
        """Make an image that livesnap does not know yet, and return it as it will be adopted."""
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        run(["qemu-img", "create", "-q", "-f", image_format, *options, full, f"{size_mib}M"])
        return self.at(path, image_format)

    def overlay(self, path: str, backing: str, *, backing_format: Format | None = Format.QCOW2) -> VolumeAt:
        """Make an overlay as somebody else would; `backing` is the name in its header."""
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        explicit = ["-F", backing_format] if backing_format else []
        if backing_format is None:
            forge_backing(full, backing)
        else:
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, *explicit, full, "16M"])
        return self.at(path)

    def at(self, path: str, image_format: Format = Format.QCOW2) -> VolumeAt:
        """Return an image that livesnap does not know yet as it will be adopted."""
        return VolumeAt(
            volume_id=adopted_volume_id(self.id, path), storage_domain_id=self.id, path=path, format=image_format
        )

    def switch(self, old: VolumeAt, target: str = "vda", *, vm: VmId | None = None) -> DiskSwitch:
        """Return a disk's switch to a new leaf above `old`."""
        disk = disk_id(vm or self.vm, target)
        volume_id = VolumeId(new_id())
        new = VolumeAt(
            volume_id=volume_id,
            storage_domain_id=old.storage_domain_id,
            path=volume_path(disk, volume_id),
            format=Format.QCOW2,
        )
        return DiskSwitch(target=target, disk_id=disk, old=old, new=new)

    def creation(self, *disks: DiskSwitch, vm: VmId | None = None) -> CreateVolumes:
        """Return the command that makes these leaves."""
        return CreateVolumes(vm_id=vm or self.vm, snapshot_id=SnapshotId(new_id()), disks=disks)

    def create(self, *disks: DiskSwitch, attempt: int = 1, vm: VmId | None = None) -> VolumesCreated:
        """Make these leaves."""
        return self.carry_out(self.creation(*disks, vm=vm), attempt)

    def carry_out(self, command: CreateVolumes, attempt: int = 1, *, min_free_bytes: int = 0) -> VolumesCreated:
        """Carry out a creation."""
        return create_volumes(command, attempt, self.pool, min_free_bytes=min_free_bytes)

    def delete(
        self, *disks: DiskSwitch, attempt: int = 2, committed: tuple[VolumeId, ...] = (), **more: Any
    ) -> VolumesDeleted:
        """Delete these leaves; `more` may name the `vm`, and what is `abandoned`."""
        command = DeleteVolumes(**{"vm_id": more.pop("vm", self.vm), "disks": disks, "committed": committed, **more})
        return delete_volumes(command, attempt, self.pool, self.clock)

    def file(self, volume: VolumeAt) -> Path:
        """Return where a volume lies."""
        return self.root / volume.path

    def metadata(self, volume: VolumeAt, disk: DiskId | None = None) -> VolumeMetadata:
        """Return a volume's metadata, which must be there."""
        found = find(self.root, volume, disk)
        assert found is not None
        return found

    def trash(self) -> list[Path]:
        """Return the files in the trash."""
        return sorted(path for path in (self.root / "trash").rglob("*") if path.is_file())

    def everything(self) -> dict[str, bytes]:
        """Return every file below the root with its content."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}


def forge_backing(path: Path, backing: str) -> None:
    """Make an overlay whose header has a backing name but no format, as old versions of qemu-img made them."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", backing, path, "16M"])
    raw = bytearray(path.read_bytes())
    at = raw.index(0xE2792ACA.to_bytes(4, "big"))
    raw[at : at + 4] = (0x12345678).to_bytes(4, "big")  # an unknown extension, which readers skip
    path.write_bytes(raw)


def write_data(path: Path, command: str = "write -P 0x5a 0 64k", image_format: str = "qcow2") -> None:
    """Write to an image as a machine would, through QEMU's own block layer."""
    # A leaf that stands alone in a test: its backing chain is opened too.
    run(["qemu-io", "-f", image_format, "-c", command, path])


@contextmanager
def in_use(path: Path, *, image_format: str = "qcow2", read_only: bool = False) -> Iterator[None]:
    """Have QEMU's block layer hold the image and its backing files open, in a process of its own, for the block."""
    words = ["qemu-io", *(["-r"] if read_only else []), "-f", image_format, str(path)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        # It asks for a command when the whole chain is open; the leaf is locked before its backing files are.
        assert holder.stdout.read(len(PROMPT)) == PROMPT, f"qemu-io could not open {path}"
        yield
    finally:
        holder.stdin.close()
        holder.wait(10)
        holder.stdout.close()
