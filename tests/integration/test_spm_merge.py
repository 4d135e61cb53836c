"""Cold merges on real images: every kept volume shows what it showed before, and nothing is lost on any way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from common.errors import StaleAttempt, StorageError
from common.images import qcow2
from common.images.locks import image_is_locked
from common.images.metadata import Legality, VolumeState
from common.messaging.merging import FinishMerge, MergeState, MergeVolumes, Way
from common.messaging.messages import Format, Kept
from spm.operations.merge_volumes import merge_volumes
from tests import crash
from tests.integration.merge_kit import Chain, MergeBench, backing_of
from tests.integration.spm_kit import SpmKit, in_use, write_data
from tests.wait import eventually

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

MERGE_POINTS = ("spm.merge.begun", "spm.merge.started", "spm.merge.committed")
FINISH_POINTS = (
    *("spm.merge.rebased", "spm.merge.recorded"),
    *("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned"),
)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    kit = SpmKit(tmp_path / "main")
    yield kit
    kit.close()


@pytest.fixture
def bench(kit: SpmKit) -> Iterator[MergeBench]:
    bench = MergeBench(kit)
    yield bench
    bench.merges.close()


def require_merged(chain: Chain, number: int, before: dict[int, bytes]) -> None:
    """Volume `number` is gone, the one below shows what it showed, and every other one what that one did."""
    gone = chain.metadata(number)
    assert gone.state is VolumeState.DELETED
    assert not chain.kit.file(chain.volumes[number]).exists()
    for other, shown in before.items():
        if other not in (number - 1, number):
            assert chain.content(chain.volumes[other]) == shown, f"volume {other}"
    assert chain.content(chain.volumes[number - 1]) == before[number]
    if number + 1 < len(chain.volumes):
        above = chain.metadata(number + 1)
        assert above.parent == chain.volumes[number - 1]
        named = backing_of(chain.kit.file(chain.volumes[number + 1]))
        assert not named.startswith("/")
        assert (chain.kit.file(chain.volumes[number + 1]).parent / named).samefile(
            chain.kit.file(chain.volumes[number - 1])
        )


def shown_by(chain: Chain) -> dict[int, bytes]:
    return {number: chain.content(volume) for number, volume in enumerate(chain.volumes)}


@pytest.mark.parametrize("base_format", [Format.QCOW2, Format.RAW])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_volume_is_merged_into_the_one_below(
    kit: SpmKit, bench: MergeBench, number: int, base_format: Format
) -> None:
    chain = Chain(kit, 3, base_format=base_format)
    before = shown_by(chain)
    merge = chain.merge(number)
    assert bench.mark(merge).state is MergeState.IDLE
    assert chain.metadata(number).legality is Legality.ILLEGAL

    seen = bench.merge(merge)
    assert seen.state is MergeState.MERGED
    assert seen.begun
    # Until it is finished, everything still stands as it did, and shows the same.
    assert shown_by(chain) == {**before, number - 1: before[number]}

    assert bench.finish(merge).gone == (merge.top.volume_id,)
    require_merged(chain, number, before)
    assert bench.finish(merge).gone == (merge.top.volume_id,)


def test_every_disk_of_a_deep_chain_is_merged_step_by_step_to_its_base(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 8)
    shown = chain.content(chain.volumes[-1])
    while len(chain.volumes) > 1:
        number = len(chain.volumes) // 2
        merge = chain.merge(number)
        bench.mark(merge)
        assert bench.merge(merge).state is MergeState.MERGED
        assert bench.finish(merge).kept == ()
        del chain.volumes[number]
        assert chain.content(chain.volumes[-1]) == shown


def test_four_disks_at_once(kit: SpmKit, bench: MergeBench) -> None:
    chains = [Chain(kit, 2, target=target) for target in ("vda", "vdb", "vdc", "vdd")]
    before = [shown_by(chain) for chain in chains]
    merges = [chain.merge(1) for chain in chains]
    bench.mark(*merges)
    assert bench.merge(*merges).state is MergeState.MERGED
    assert len(bench.finish(*merges).gone) == 4
    for chain, shown in zip(chains, before, strict=True):
        require_merged(chain, 1, shown)


def test_branches_above_stand_on_the_base_afterwards(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 3)
    branch = chain.branch(2)
    before, shown = shown_by(chain), chain.content(branch)
    merge = chain.merge(2)
    bench.mark(merge)
    assert bench.merge(merge).state is MergeState.MERGED
    assert bench.finish(merge).kept == ()
    require_merged(chain, 2, before)
    assert chain.content(branch) == shown


def test_the_end_of_a_branch_is_discarded_with_its_data(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 2)
    branch = chain.branch(1)
    before = shown_by(chain)
    merge = replace(chain.merge(2), top=branch, way=Way.DISCARD, leaf=False)
    bench.mark(merge)
    assert kit.metadata(branch).legality is Legality.LEGAL
    assert bench.finish(merge).gone == (branch.volume_id,)
    assert kit.metadata(branch).state is VolumeState.DELETED
    assert len(kit.trash()) == 1
    assert shown_by(chain) == before


@pytest.mark.parametrize("which", [0, 1])
def test_a_volume_that_somebody_uses_is_not_merged(kit: SpmKit, bench: MergeBench, which: int) -> None:
    chain = Chain(kit, 2)
    before = shown_by(chain)
    merge = chain.merge(1)
    with in_use(kit.file((merge.base, merge.top)[which])):
        seen = bench.look(merge)
        assert seen.state is MergeState.IN_USE
        assert not seen.begun
    assert shown_by(chain) == before


def test_data_written_between_merge_and_finish_keeps_the_volume(kit: SpmKit, bench: MergeBench) -> None:
    """The machine was started meanwhile: what it wrote is not in the base."""
    chain = Chain(kit, 1)
    merge = chain.merge(1)
    assert bench.merge(merge).state is MergeState.MERGED
    write_data(kit.file(merge.top), "write -P 0x77 9M 1M")
    shown = chain.content(merge.top)

    kept = bench.finish(merge).kept
    assert [each.why for each in kept] == [Kept.NOT_EMPTY]
    assert chain.content(merge.top) == shown
    assert chain.metadata(1).legality is Legality.LEGAL
    assert bench.merge(merge).state is MergeState.MERGED
    assert bench.finish(merge).kept == ()
    assert chain.content(merge.base) == shown


def test_what_stands_above_keeps_it_until_its_data_is_down(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 2)
    before = shown_by(chain)
    merge = chain.merge(1)
    assert [each.why for each in bench.finish(merge).kept] == [Kept.NOT_EMPTY]
    with in_use(kit.file(chain.volumes[2])):
        assert [each.why for each in bench.finish(merge).kept] == [Kept.IN_USE]
    assert shown_by(chain) == before


def test_shared_immutable_and_unexpected_volumes_are_refused_and_nothing_is_marked(
    kit: SpmKit, bench: MergeBench
) -> None:
    chain = Chain(kit, 3)
    branch = chain.branch(1)
    before = kit.everything()
    for merge, code in (
        (chain.merge(2), "volume_shared"),  # two volumes stand on its base
        (replace(chain.merge(3), base=chain.volumes[1]), "chain_unexpected"),
        (replace(chain.merge(2), top=chain.volumes[1], base=branch), "chain_unexpected"),
    ):
        with pytest.raises(StorageError) as refused:
            bench.mark(merge)
        assert refused.value.code == code
    base = kit.metadata(chain.volumes[0], chain.disk)
    kit.pool.backend(kit.id).store(replace(base, immutable=True))
    with pytest.raises(StorageError) as refused:
        bench.mark(chain.merge(1))
    assert refused.value.code == "volume_shared"
    kit.pool.backend(kit.id).store(base)
    assert kit.everything() == before


def test_room_is_checked_before(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 1)
    free = kit.pool.backend(kit.id).usage().free_bytes
    with pytest.raises(StorageError) as full:
        bench.mark(chain.merge(1), min_free_bytes=free)
    assert full.value.code == "storage_full"
    assert chain.metadata(1).legality is Legality.LEGAL


def test_a_slow_merge_shows_its_progress_and_can_be_ended(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 2)
    before = shown_by(chain)
    merge = chain.merge(2)
    seen = bench.look(merge, bytes_per_s=65536)
    assert seen.state is MergeState.RUNNING
    assert seen.disks[0].total_bytes > 2 * 2**20
    assert image_is_locked(kit.file(merge.base))

    def moved() -> bool:
        return bench.look(merge, bytes_per_s=65536).disks[0].done_bytes > 0

    eventually(moved, timeout_s=60, what="some progress")
    assert bench.ended == []
    stopped = bench.look(merge, abort=True)
    assert stopped.state is MergeState.IDLE
    assert stopped.begun
    eventually(lambda: bench.ended == [kit.vm], timeout_s=10, what="the end to be told")
    assert not image_is_locked(kit.file(merge.base))
    assert chain.content(merge.top) == before[2]
    assert bench.merge(merge).state is MergeState.MERGED
    assert bench.finish(merge).kept == ()
    require_merged(chain, 2, before)


def test_a_late_command_of_a_job_that_was_given_up_merges_nothing(kit: SpmKit, bench: MergeBench) -> None:
    chain = Chain(kit, 1)
    merge = chain.merge(1)
    bench.mark(merge)
    before = shown_by(chain)
    bench.mark(merge, undo=True)
    late = MergeVolumes(vm_id=kit.vm, disks=(merge,))
    with pytest.raises(StaleAttempt):
        merge_volumes(late, bench.attempt - 1, kit.pool, bench.merges, min_free_bytes=0)
    assert shown_by(chain) == before
    assert chain.metadata(1).legality is Legality.LEGAL


# ---- kill -9 ----------------------------------------------------------------------------------------------------


def carry_out(
    kit: SpmKit, command: MergeVolumes | FinishMerge, attempt: int, *, crash_at: str = ""
) -> subprocess.CompletedProcess[str]:
    """Carry the command out in an SPM of its own, which dies at a crash point if one is given."""
    kit.pool.close()  # lets go of the lease
    verb = "merge" if isinstance(command, MergeVolumes) else "finish"
    armed, hit = crash.crash_at(crash_at, kit.root.parent) if crash_at else ({}, kit.root / "never")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.spm_child", verb, str(kit.root), str(attempt)],
        input=TypeAdapter(type(command)).dump_json(command).decode(),
        env={**os.environ, **armed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert hit.exists() == bool(crash_at), done.stderr[-2000:]
    return done


def unlocked(chain: Chain) -> bool:
    return not any(image_is_locked(chain.kit.file(volume)) for volume in chain.volumes)


@pytest.mark.parametrize("point", MERGE_POINTS)
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.matrix)])
def test_killed_merge_is_completed_by_doing_it_again(kit: SpmKit, point: str, number: int) -> None:
    chain = Chain(kit, 2)
    before = shown_by(chain)
    merge = chain.merge(number)
    # Slow enough for the copying process to be in the midst of it when its SPM dies.
    command = MergeVolumes(vm_id=kit.vm, disks=(merge,), bytes_per_s=2**20)
    assert carry_out(kit, command, 5, crash_at=point).returncode == -signal.SIGKILL
    # Whoever copies holds the locks, and nobody else gets in; its next word ends it, as nobody listens.
    eventually(lambda: unlocked(chain), timeout_s=60, what="the orphan to end")
    assert chain.content(chain.volumes[-1]) == before[2]
    assert chain.content(merge.top) == before[number]

    assert carry_out(kit, replace(command, bytes_per_s=0), 6).stdout == "merged"
    assert carry_out(kit, FinishMerge(vm_id=kit.vm, disks=(merge,)), 7).stdout == "1"
    require_merged(chain, number, before)


@pytest.mark.parametrize(
    "point", crash.sampled(*FINISH_POINTS, suite=("spm.merge.rebased", "spm.delete.marked", "spm.delete.trashed"))
)
def test_killed_finish_is_completed_by_doing_it_again(kit: SpmKit, bench: MergeBench, point: str) -> None:
    chain = Chain(kit, 3)
    before = shown_by(chain)
    merge = chain.merge(2)
    assert bench.merge(merge).state is MergeState.MERGED
    command = FinishMerge(vm_id=kit.vm, disks=(merge,))
    assert carry_out(kit, command, 50, crash_at=point).returncode == -signal.SIGKILL
    assert chain.content(chain.volumes[-1]) == before[3]
    assert carry_out(kit, command, 50).stdout == "1"
    require_merged(chain, 2, before)


def test_an_image_killed_while_it_is_emptied_is_still_read_and_merged(kit: SpmKit, bench: MergeBench) -> None:
    """Emptying sets QEMU's dirty flag first; our parser must read such an image, and another commit repair it."""
    chain = Chain(kit, 1)
    merge = chain.merge(1)
    shown = chain.content(merge.top)
    path = kit.file(merge.top)
    raw = bytearray(path.read_bytes())
    raw[79] |= 1  # incompatible features, bit 0
    path.write_bytes(raw)
    assert qcow2.read_header(path).version == 3
    assert bench.merge(merge).state is MergeState.MERGED
    assert bench.finish(merge).kept == ()
    assert chain.content(merge.base) == shown
