"""Chains of real images on a storage domain, and the merges of their volumes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from common.ids import VmId, disk_id
from common.images.metadata import VolumeMetadata
from common.messaging.merging import DiskMerge, FinishMerge, MarkMerge, MergeSeen, MergeState, MergeVolumes, Way
from common.messaging.messages import Format, VolumeAt, VolumesDeleted
from spm.merges import Merges
from spm.operations.merge_volumes import finish_merge, mark_merge, merge_volumes
from tests.bed.process import run
from tests.integration.spm_kit import SpmKit, write_data

PLACES = 16
"""Each volume of a chain writes to two of so many places of one MiB, so that it hides half of what its parent wrote."""


class Chain:
    """One disk's chain in a kit, base first: every volume has written a pattern of its own over half of the last."""

    def __init__(self, kit: SpmKit, depth: int, *, target: str = "vda", base_format: Format = Format.QCOW2) -> None:
        """Make it: an adopted base and `depth` volumes above."""
        self.kit = kit
        self.target = target
        self.disk = disk_id(kit.vm, target)
        base = kit.image(f"{target}.{base_format}", image_format=base_format)
        self.volumes: list[VolumeAt] = [base]
        self._write(base, 0)
        for number in range(1, depth + 1):
            switch = kit.switch(self.volumes[-1], target)
            kit.create(switch)
            self.volumes.append(switch.new)
            self._write(switch.new, number)

    def _write(self, volume: VolumeAt, number: int) -> None:
        for place in (number, number + 1):
            command = f"write -P {0x11 + number} {place}M 1M"
            write_data(self.kit.file(volume), command, volume.format)

    def branch(self, number: int) -> VolumeAt:
        """Let another volume stand on one of the chain, as after a revert."""
        switch = self.kit.switch(self.volumes[number], self.target)
        self.kit.create(switch)
        self._write(switch.new, number + 7)
        return switch.new

    def merge(self, number: int, *, way: Way = Way.CHAIN, above: tuple[VolumeAt, ...] | None = None) -> DiskMerge:
        """Return the merge of volume `number` into the one below it."""
        leaf = number == len(self.volumes) - 1
        return DiskMerge(
            target=self.target,
            disk_id=self.disk,
            base=self.volumes[number - 1],
            top=self.volumes[number],
            way=way,
            leaf=leaf,
            above=above if above is not None else tuple(self.volumes[number + 1 : number + 2]),
        )

    def content(self, volume: VolumeAt) -> bytes:
        """Return what a volume shows, with everything below it."""
        return content(self.kit.file(volume), volume.format)

    def metadata(self, number: int) -> VolumeMetadata:
        """Return the metadata of a volume."""
        return self.kit.metadata(self.volumes[number], self.disk)


def content(path: Path, image_format: str = "qcow2") -> bytes:
    """Return what an image shows, zeros at its end left out."""
    raw = path.with_name(f"{path.name}.raw")
    run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw])
    shown = raw.read_bytes().rstrip(b"\0")
    raw.unlink()
    return shown


def backing_of(path: Path) -> str:
    """Return the backing name in the header, as qemu-img reads it."""
    said = subprocess.run(
        ["qemu-img", "info", "-U", "-f", "qcow2", path], capture_output=True, text=True, check=True, timeout=60
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith("backing file:")]
    return lines[0].removeprefix("backing file: ").split(" (actual")[0] if lines else ""


class MergeBench:
    """An SPM in this process that marks, merges and finishes."""

    def __init__(self, kit: SpmKit) -> None:
        """Work on the kit's storage domain."""
        self.kit = kit
        self.ended: list[VmId] = []
        self.merges = Merges(self.ended.append)
        self.attempt = 10

    def mark(self, *disks: DiskMerge, undo: bool = False, min_free_bytes: int = 0) -> MergeSeen:
        """Mark, by a new attempt."""
        command = MarkMerge(vm_id=self.kit.vm, disks=disks, undo=undo)
        return mark_merge(command, self._next(), self.kit.pool, min_free_bytes=min_free_bytes)

    def look(self, *disks: DiskMerge, bytes_per_s: int = 0, abort: bool = False) -> MergeSeen:
        """Begin or look, by a new attempt."""
        command = MergeVolumes(vm_id=self.kit.vm, disks=disks, bytes_per_s=bytes_per_s, abort=abort)
        return merge_volumes(command, self._next(), self.kit.pool, self.merges, min_free_bytes=0)

    def merge(self, *disks: DiskMerge) -> MergeSeen:
        """Merge to the end."""
        while (seen := self.look(*disks)).state is MergeState.RUNNING:
            pass  # each look waits a moment itself
        return seen

    def finish(self, *disks: DiskMerge, committed: tuple[DiskMerge, ...] = ()) -> VolumesDeleted:
        """Finish, by a new attempt."""
        ids = tuple(disk.top.volume_id for disk in committed)
        command = FinishMerge(vm_id=self.kit.vm, disks=disks, committed=ids)
        return finish_merge(command, self._next(), self.kit.pool, self.kit.clock)

    def _next(self) -> int:
        self.attempt += 1
        return self.attempt
