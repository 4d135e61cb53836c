"""DeleteVolumes and purge on real files: deletion is the only act that can destroy data, so most of it is refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import LivesnapError, RequestRefused, StaleAttempt
from common.images.locks import image_lock
from common.images.metadata import Legality, VolumeState
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
def leaf(kit: SpmKit) -> DiskSwitch:
    """Return a disk whose new leaf was made by attempt 1."""
    switch = kit.switch(kit.image("web.qcow2"))
    kit.create(switch)
    return switch


def require_untouched(kit: SpmKit, leaf: DiskSwitch) -> None:
    """The volume is in its place, legal, and nothing is in the trash."""
    known = kit.metadata(leaf.new)
    assert (known.state, known.legality) == (VolumeState.EXISTS, Legality.LEGAL)
    assert kit.file(leaf.new).is_file()
    assert kit.trash() == []


def test_unused_empty_leaf_goes_to_the_trash(kit: SpmKit, leaf: DiskSwitch) -> None:
    content = kit.file(leaf.new).read_bytes()
    answer = kit.delete(leaf, attempt=2)
    assert (answer.gone, answer.kept) == ((leaf.new.volume_id,), ())
    known = kit.metadata(leaf.new)
    assert (known.state, known.legality, known.generation) == (VolumeState.DELETED, Legality.ILLEGAL, 2)
    assert not kit.file(leaf.new).exists()
    assert [path.read_bytes() for path in kit.trash()] == [content]
    assert kit.file(leaf.old).is_file()


def test_repeating_is_success_and_changes_nothing(kit: SpmKit, leaf: DiskSwitch) -> None:
    first = kit.delete(leaf, attempt=2)
    before = kit.everything()
    assert kit.delete(leaf, attempt=2) == first
    assert kit.everything() == before


def test_never_made_volume_gets_a_tombstone(kit: SpmKit) -> None:
    switch = kit.switch(kit.image("web.qcow2"))
    answer = kit.delete(switch, attempt=3)
    assert answer.gone == (switch.new.volume_id,)
    known = kit.metadata(switch.new)
    assert (known.state, known.generation) == (VolumeState.DELETED, 3)


def test_lower_attempt_is_refused_and_touches_nothing(kit: SpmKit, leaf: DiskSwitch) -> None:
    kit.delete(leaf, attempt=5)
    before = kit.everything()
    with pytest.raises(StaleAttempt) as refused:
        kit.delete(leaf, attempt=4)
    assert refused.value.highest == 5
    assert kit.everything() == before


def test_one_stale_volume_refuses_the_whole_command(kit: SpmKit, leaf: DiskSwitch) -> None:
    other = kit.switch(kit.image("data.qcow2"), "vdb")
    kit.create(other, attempt=9)
    with pytest.raises(StaleAttempt):
        kit.delete(leaf, other, attempt=2)
    require_untouched(kit, leaf)


@pytest.mark.parametrize("read_only", [False, True], ids=["read-write", "read-only"])
def test_open_volume_is_kept(kit: SpmKit, leaf: DiskSwitch, read_only: bool) -> None:
    with in_use(kit.file(leaf.new), read_only=read_only):
        answer = kit.delete(leaf)
    assert [kept.why for kept in answer.kept] == [Kept.IN_USE]
    require_untouched(kit, leaf)
    assert kit.metadata(leaf.new).generation == 2
    assert kit.delete(leaf, attempt=3).gone == (leaf.new.volume_id,)


def test_volume_below_somebodys_overlay_is_kept(kit: SpmKit, leaf: DiskSwitch) -> None:
    """`qemu-img info` calls a backing file in use free; the lock does not (protocol.md, V10)."""
    overlay = kit.overlay("foreign.qcow2", leaf.new.path)
    with in_use(kit.file(overlay)):
        assert [kept.why for kept in kit.delete(leaf).kept] == [Kept.IN_USE]
    require_untouched(kit, leaf)


def test_volume_below_another_on_record_is_kept_though_nobody_has_it_open(kit: SpmKit, leaf: DiskSwitch) -> None:
    kit.create(kit.switch(leaf.new), attempt=2)
    assert [kept.why for kept in kit.delete(leaf, attempt=3).kept] == [Kept.IN_USE]
    require_untouched(kit, leaf)


@pytest.mark.parametrize("command", ["write 0 1", "write -z 0 64k", "write -c 0 64k", "discard 0 64k"])
def test_volume_with_guest_data_is_kept(kit: SpmKit, leaf: DiskSwitch, command: str) -> None:
    if command.startswith("discard"):
        write_data(kit.file(leaf.old))  # a hole punched over the base's data is data too
    write_data(kit.file(leaf.new), command)
    content = kit.file(leaf.new).read_bytes()
    answer = kit.delete(leaf)
    assert [kept.why for kept in answer.kept] == [Kept.NOT_EMPTY]
    require_untouched(kit, leaf)
    assert kit.file(leaf.new).read_bytes() == content


def test_committed_volume_goes_with_its_data(kit: SpmKit, leaf: DiskSwitch) -> None:
    write_data(kit.file(leaf.new))
    answer = kit.delete(leaf, committed=(leaf.new.volume_id,))
    assert answer.gone == (leaf.new.volume_id,)
    assert ".committed." in kit.trash()[0].name


def test_committed_volume_that_is_open_is_kept_all_the_same(kit: SpmKit, leaf: DiskSwitch) -> None:
    with in_use(kit.file(leaf.new)):
        answer = kit.delete(leaf, committed=(leaf.new.volume_id,))
    assert [kept.why for kept in answer.kept] == [Kept.IN_USE]
    require_untouched(kit, leaf)


def test_without_a_living_host_nothing_is_deleted(kit: SpmKit, leaf: DiskSwitch) -> None:
    kit.kill_host()
    assert [kept.why for kept in kit.delete(leaf, attempt=2).kept] == [Kept.LOCKING_UNPROVEN]
    require_untouched(kit, leaf)
    kit.revive_host()
    assert kit.delete(leaf, attempt=3).gone == (leaf.new.volume_id,)


def test_broken_header_counts_as_data(kit: SpmKit, leaf: DiskSwitch) -> None:
    with kit.file(leaf.new).open("r+b") as file:
        file.write(b"garbage!")
    assert [kept.why for kept in kit.delete(leaf).kept] == [Kept.NOT_EMPTY]
    require_untouched(kit, leaf)


def test_file_without_metadata_is_deleted_like_any_other(kit: SpmKit, leaf: DiskSwitch) -> None:
    """What a creation that was killed after link(2) leaves."""
    kit.file(leaf.new).with_suffix(".json").unlink()
    assert kit.delete(leaf).gone == (leaf.new.volume_id,)
    assert len(kit.trash()) == 1


def test_several_disks_are_judged_one_by_one(kit: SpmKit, leaf: DiskSwitch) -> None:
    other = kit.switch(kit.image("data.qcow2"), "vdb")
    kit.create(other)
    write_data(kit.file(other.new))
    answer = kit.delete(leaf, other)
    assert answer.gone == (leaf.new.volume_id,)
    assert [(kept.volume_id, kept.why) for kept in answer.kept] == [(other.new.volume_id, Kept.NOT_EMPTY)]


@pytest.mark.parametrize("path", ["livesnap.json", "web.qcow2", "spm.lease"])
def test_nothing_but_the_volume_itself_can_be_named(kit: SpmKit, leaf: DiskSwitch, path: str) -> None:
    wrong = replace(leaf, new=replace(leaf.new, path=path))
    before = kit.everything()
    with pytest.raises(RequestRefused):
        kit.delete(wrong)
    assert kit.everything() == before


def test_link_in_the_volumes_place_is_not_followed(kit: SpmKit, leaf: DiskSwitch, tmp_path: Path) -> None:
    precious = tmp_path / "precious.qcow2"
    kit.file(leaf.new).rename(precious)
    kit.file(leaf.new).symlink_to(precious)
    with pytest.raises(LivesnapError):
        kit.delete(leaf)
    assert precious.is_file()
    assert kit.metadata(leaf.new).legality is Legality.LEGAL


def test_qemu_cannot_open_a_volume_while_we_hold_it(kit: SpmKit, leaf: DiskSwitch) -> None:
    """What makes `held` worth more than `tested`: a call of libvirt's still in flight fails instead of winning."""
    path = kit.file(leaf.new)
    with image_lock(path) as fd:
        assert fd is not None
        said = run(["qemu-io", "-f", "qcow2", "-c", "read 0 1", path], ok=(1,))
    assert said is not None
    run(["qemu-io", "-f", "qcow2", "-c", "read 0 1", path])


def test_leaf_that_no_vm_could_write_to_does_not_wait_in_the_trash(kit: SpmKit, leaf: DiskSwitch) -> None:
    answer = kit.delete(leaf, committed=(leaf.new.volume_id,))
    assert answer.gone == (leaf.new.volume_id,)
    assert kit.trash() == []
    assert kit.metadata(leaf.new).state is VolumeState.DELETED
    assert kit.delete(leaf, committed=(leaf.new.volume_id,)) == answer


# ---- purge ------------------------------------------------------------------------------------------------------


def test_trash_is_purged_after_the_grace_period(kit: SpmKit, leaf: DiskSwitch) -> None:
    kit.delete(leaf)
    assert purge(kit.pool, kit.clock, GRACE) == 0
    kit.clock.turn(GRACE)
    assert purge(kit.pool, kit.clock, GRACE) == 1
    assert kit.trash() == []
    assert kit.metadata(leaf.new).state is VolumeState.DELETED


def test_purge_removes_committed_data(kit: SpmKit, leaf: DiskSwitch) -> None:
    write_data(kit.file(leaf.new))
    kit.delete(leaf, committed=(leaf.new.volume_id,))
    kit.clock.turn(GRACE)
    assert purge(kit.pool, kit.clock, GRACE) == 1


def test_where_room_is_missing_what_was_never_written_is_purged_at_once(kit: SpmKit, leaf: DiskSwitch) -> None:
    written = kit.switch(kit.image("data.qcow2"), "vdb")
    kit.create(written)
    write_data(kit.file(written.new))
    kit.delete(leaf, written, committed=(written.new.volume_id,))
    (never_written,) = [path for path in kit.trash() if ".empty." in path.name]
    assert purge(kit.pool, kit.clock, GRACE) == 0
    with in_use(never_written):
        assert purge(kit.pool, kit.clock, GRACE, min_free_bytes=2**62) == 0
    assert purge(kit.pool, kit.clock, GRACE, min_free_bytes=2**62) == 1
    assert [".committed." in path.name for path in kit.trash()] == [True]


def test_purge_keeps_what_is_open_written_to_or_unproven(kit: SpmKit, leaf: DiskSwitch) -> None:
    kit.delete(leaf)
    kit.clock.turn(GRACE)
    trashed = kit.trash()[0]
    with in_use(trashed):
        assert purge(kit.pool, kit.clock, GRACE) == 0
    kit.kill_host()
    assert purge(kit.pool, kit.clock, GRACE) == 0
    kit.revive_host()
    write_data(trashed)
    assert purge(kit.pool, kit.clock, GRACE) == 0
    assert kit.trash() == [trashed]


def test_purge_leaves_foreign_files_in_the_trash_alone(kit: SpmKit) -> None:
    folder = kit.root / "trash" / "somebody"
    folder.mkdir()
    foreign = [folder / name for name in ("notes.txt", "a.20200101T000000Z.empty.qcow2", f"{kit.vm}.x.empty.qcow2")]
    for path in foreign:
        path.write_text("mine")
    kit.clock.turn(GRACE * 400)
    assert purge(kit.pool, kit.clock, GRACE) == 0
    assert kit.trash() == sorted(foreign)


def test_purge_sweeps_old_temporary_files(kit: SpmKit, leaf: DiskSwitch) -> None:
    litter = kit.file(leaf.new).with_name(f".{leaf.new.volume_id}.x.tmp")
    litter.write_bytes(b"half")
    kit.clock.turn(timedelta(days=-400))
    purge(kit.pool, kit.clock, GRACE)
    assert litter.exists()
    kit.clock.turn(timedelta(days=4000))
    purge(kit.pool, kit.clock, GRACE)
    assert not litter.exists()
    require_untouched(kit, leaf)
