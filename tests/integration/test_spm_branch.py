"""A snapshot is gone back to: leaves above a volume in the middle of a chain, and the deletion of what holds data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import HeaderRefused, RequestRefused, StorageError
from common.ids import VolumeId, new_id
from common.images.layout import volume_path
from common.images.metadata import Legality, VolumeState
from common.images.qcow2 import read_header
from common.messaging.messages import DiskSwitch, Kept
from spm.operations.purge import purge
from tests.bed.process import run
from tests.integration.spm_kit import SpmKit, in_use, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")
GRACE = timedelta(days=1)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    kit = SpmKit(tmp_path / "main")
    yield kit
    kit.close()


@pytest.fixture
def later(kit: SpmKit) -> DiskSwitch:
    """Return a disk with two layers above its image, the upper of which holds data: its present leaf."""
    first = kit.switch(kit.image("web.qcow2"))
    kit.create(first)
    second = kit.switch(first.new)
    kit.create(second, attempt=2)
    write_data(kit.file(second.new))
    return second


def branch(kit: SpmKit, leaf: DiskSwitch) -> DiskSwitch:
    """Return the way from a leaf to a new one above the image that the disk began with."""
    base = kit.at("web.qcow2")
    volume_id = VolumeId(new_id())
    new = replace(leaf.new, volume_id=volume_id, path=volume_path(leaf.disk_id, volume_id))
    return replace(leaf, old=leaf.new, new=new, over=base)


def given_up(kit: SpmKit, leaf: DiskSwitch, *, attempt: int = 9) -> object:
    """Delete a leaf that the user has given up; return why it is kept, None if it is gone."""
    answer = kit.delete(leaf, attempt=attempt, abandoned=(leaf.new.volume_id,))
    assert (answer.gone, len(answer.kept)) in (((leaf.new.volume_id,), 0), ((), 1))
    return answer.kept[0].why if answer.kept else None


def require_untouched(kit: SpmKit, leaf: DiskSwitch) -> None:
    known = kit.metadata(leaf.new)
    assert (known.state, known.legality) == (VolumeState.EXISTS, Legality.LEGAL)
    assert kit.file(leaf.new).is_file()
    assert kit.trash() == []


# ---- a new leaf on a branch -------------------------------------------------------------------------------------


def test_a_leaf_stands_on_the_snapshots_volume_and_not_on_the_present_one(kit: SpmKit, later: DiskSwitch) -> None:
    before = kit.everything()
    away = branch(kit, later)
    first = kit.create(away, attempt=3)
    made = kit.metadata(away.new)
    assert made.parent == away.over
    header = read_header(kit.file(away.new))
    assert (kit.file(away.new).parent / header.backing_name).resolve() == (kit.root / "web.qcow2").resolve()
    assert header.size_bytes == read_header(kit.root / "web.qcow2").size_bytes
    assert [found.parent_id for found in first.created] == [away.parent.volume_id]
    after = kit.everything()
    made_names = {away.new.path, away.new.path.replace(".qcow2", ".json")}
    assert {name for name in after if after[name] != before.get(name)} == made_names


def test_making_it_again_is_success_and_above_another_it_is_refused(kit: SpmKit, later: DiskSwitch) -> None:
    away = branch(kit, later)
    command = kit.creation(away)
    first = kit.carry_out(command, 3)
    before = kit.everything()
    assert kit.carry_out(command, 3) == first
    with pytest.raises(StorageError) as other:
        kit.carry_out(replace(command, disks=(replace(away, over=None),)), 3)
    assert other.value.code == "volume_exists"
    assert kit.everything() == before


def test_a_kept_leaf_is_never_made(kit: SpmKit, later: DiskSwitch) -> None:
    with pytest.raises(RequestRefused):
        kit.create(replace(branch(kit, later), kept=True), attempt=3)


def test_a_snapshots_volume_whose_header_was_changed_is_refused(kit: SpmKit, later: DiskSwitch) -> None:
    away = replace(branch(kit, later), over=later.old)
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "elsewhere.qcow2", kit.file(later.old)])
    with pytest.raises(HeaderRefused):
        kit.create(away, attempt=3)


# ---- what holds data, and is given up ---------------------------------------------------------------------------


def test_data_goes_only_where_the_command_names_the_volume(kit: SpmKit, later: DiskSwitch) -> None:
    assert [kept.why for kept in kit.delete(later, attempt=4).kept] == [Kept.NOT_EMPTY]
    other = kit.delete(later, attempt=5, abandoned=(VolumeId(new_id()),))
    assert [kept.why for kept in other.kept] == [Kept.NOT_EMPTY]
    require_untouched(kit, later)
    content = kit.file(later.new).read_bytes()
    assert given_up(kit, later) is None
    (trashed,) = kit.trash()
    assert (trashed.read_bytes(), trashed.name.split(".")[2]) == (content, "abandoned")
    assert kit.metadata(later.new).state is VolumeState.DELETED
    before = kit.everything()
    assert given_up(kit, later) is None
    assert kit.everything() == before


@pytest.mark.parametrize("read_only", [False, True], ids=["read-write", "read-only"])
def test_it_is_kept_while_somebody_has_it_open(kit: SpmKit, later: DiskSwitch, read_only: bool) -> None:
    with in_use(kit.file(later.new), read_only=read_only):
        assert given_up(kit, later) is Kept.IN_USE
    require_untouched(kit, later)


def test_it_is_kept_while_a_volume_of_ours_stands_on_it(kit: SpmKit, later: DiskSwitch) -> None:
    kit.create(kit.switch(later.new), attempt=3)
    assert given_up(kit, later) is Kept.IN_USE
    require_untouched(kit, later)


@pytest.mark.parametrize("place", ["clones/other.qcow2", "images/deep/er/still/and/so/on.qcow2"])
def test_it_is_kept_while_somebodys_clone_stands_on_it(kit: SpmKit, later: DiskSwitch, place: str) -> None:
    """Nobody has the clone open, and livesnap has never heard of it: only its header says so."""
    clone = kit.overlay(place, str(kit.file(later.new)))
    assert given_up(kit, later) is Kept.IN_USE
    require_untouched(kit, later)
    kit.file(clone).unlink()
    assert given_up(kit, later, attempt=10) is None


def test_it_is_kept_where_locks_prove_nothing_and_where_it_is_immutable(kit: SpmKit, later: DiskSwitch) -> None:
    kit.kill_host()
    assert given_up(kit, later) is Kept.LOCKING_UNPROVEN
    kit.revive_host()
    kit.pool.backend(kit.id).store(replace(kit.metadata(later.new), immutable=True))
    assert given_up(kit, later, attempt=10) is Kept.IN_USE
    require_untouched(kit, later)


def test_given_up_and_never_written_it_waits_in_the_trash_all_the_same(kit: SpmKit, later: DiskSwitch) -> None:
    away = branch(kit, later)
    kit.create(away, attempt=3)
    assert given_up(kit, away) is None
    assert [path.name.split(".")[2] for path in kit.trash()] == ["empty"]


def test_it_can_be_had_back_for_the_grace_time_whatever_room_is_missing(kit: SpmKit, later: DiskSwitch) -> None:
    assert given_up(kit, later) is None
    assert purge(kit.pool, kit.clock, GRACE, min_free_bytes=1 << 62) == 0
    kit.clock.turn(GRACE - timedelta(seconds=1))
    assert purge(kit.pool, kit.clock, GRACE) == 0
    kit.clock.turn(timedelta(seconds=2))
    assert purge(kit.pool, kit.clock, GRACE) == 1
    assert kit.trash() == []
