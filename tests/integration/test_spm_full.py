"""A storage domain without a free byte: nothing is made there, and what was made can still be deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import StorageError
from common.images.metadata import VolumeState
from common.messaging.merging import MergeState
from spm.backends.file_reserve import RESERVE_BYTES
from spm.operations.purge import purge
from tests.bed.small_fs import SmallFs
from tests.integration.merge_kit import Chain, MergeBench, content
from tests.integration.spm_kit import SpmKit, write_data

pytestmark = pytest.mark.needs("qemu-img", "loop", "mke2fs", "mount")
GRACE = timedelta(days=1)


@dataclass(kw_only=True)
class Full:
    """A storage domain on a file system of its own, with its reserve, and that file system."""

    kit: SpmKit
    fs: SmallFs

    @property
    def reserve_bytes(self) -> int:
        """How much room is set aside now."""
        path = self.kit.root / "spm.reserve"
        return path.stat().st_blocks * 512 if path.exists() else 0


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    with ExitStack() as stack:
        fs = stack.enter_context(SmallFs(8, tmp_path / "small", (0, 0)))
        kit = SpmKit(fs.path)
        stack.callback(kit.close)
        purge(kit.pool, kit.clock, GRACE)  # what an SPM does when it begins
        yield Full(kit=kit, fs=fs)


def test_room_is_set_aside(full: Full) -> None:
    assert full.reserve_bytes >= RESERVE_BYTES


def test_made_volumes_can_be_deleted(full: Full) -> None:
    kit = full.kit
    switches = [kit.switch(kit.image(f"web-{target}.qcow2", size_mib=1), target) for target in ("vda", "vdb")]
    kit.create(*switches)
    full.fs.fill()
    assert full.fs.free_bytes == 0

    answer = kit.delete(*switches, attempt=2)

    assert set(answer.gone) == {switch.new.volume_id for switch in switches}
    assert len(kit.trash()) == 2
    assert {kit.metadata(switch.new).state for switch in switches} == {VolumeState.DELETED}


def test_a_creation_that_found_no_room_is_cleaned_up(full: Full) -> None:
    kit = full.kit
    switch = kit.switch(kit.image("web.qcow2", size_mib=1))
    full.fs.fill()
    before = kit.everything()
    with pytest.raises(StorageError) as failed:
        kit.create(switch)
    assert failed.value.code == "storage_full"
    assert kit.everything() == before

    assert kit.delete(switch, attempt=2).gone == (switch.new.volume_id,)

    assert kit.metadata(switch.new).state is VolumeState.DELETED, "a tombstone, so that a late creation is refused"
    assert kit.trash() == []


def test_the_reserve_comes_back_with_the_room(full: Full) -> None:
    kit = full.kit
    switch = kit.switch(kit.image("web.qcow2", size_mib=1))
    full.fs.fill()
    kit.delete(switch, attempt=1)
    assert full.reserve_bytes == 0
    full.fs.fill()
    purge(kit.pool, kit.clock, GRACE)
    assert full.reserve_bytes < RESERVE_BYTES
    full.fs.free()
    purge(kit.pool, kit.clock, GRACE)
    assert full.reserve_bytes >= RESERVE_BYTES


def test_a_merge_that_runs_out_of_room_leaves_a_working_chain_and_goes_on_once_there_is_some(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fs = stack.enter_context(SmallFs(40, tmp_path / "small", (0, 0)))
        kit = SpmKit(fs.path)
        stack.callback(kit.close)
        bench = MergeBench(kit)
        stack.callback(bench.merges.close)
        chain = Chain(kit, 2)
        for place in range(4, 12):
            write_data(kit.file(chain.volumes[1]), f"write -P 0x6{place % 8} {place}M 1M")
        before = [content(kit.file(volume), volume.format) for volume in chain.volumes[1:]]
        merge = chain.merge(1)
        assert bench.look(merge, bytes_per_s=2**20).state is MergeState.RUNNING
        fs.fill()
        failed = bench.merge(merge)
        assert (failed.state, failed.code, failed.begun) == (MergeState.IDLE, "storage_full", True)
        fs.free()
        assert [chain.content(volume) for volume in chain.volumes[1:]] == before
        assert bench.merge(merge).state is MergeState.MERGED
        assert bench.finish(merge).kept == ()
        assert chain.content(chain.volumes[0]) == before[0]
        assert chain.content(chain.volumes[2]) == before[1]
