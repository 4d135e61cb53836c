"""What lies on storage, and what a lost database gets back."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from common.ids import SnapshotId, VmId, derived_id
from common.messaging.surveys import BrokenDocument, StrayFile
from tests.unit.manager.doctor.scene import (
    BASE,
    DB,
    DB_DISK,
    FIRST,
    H1,
    H2,
    LEAF,
    NOW,
    ONE,
    SECOND,
    WEB,
    WEB_DISK,
    Scene,
    adopted,
    file,
    layers,
    metadata,
    volume,
)

ORPHAN = volume("orphan")


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ---- volumes that nobody needs -----------------------------------------------------------------------------------


def test_an_orphan_goes_to_the_trash_once_every_host_has_proven_it(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF)
    found = scene.only("volume_orphan")
    assert found.mend is not None
    plan = found.mend.plan
    assert (plan.hosts, plan.want, plan.commit_back, plan.adopt) == ((H2, H1), "off_new", False, ())
    assert [(disk.old, disk.new) for disk in plan.delete] == [(LEAF, ORPHAN)]
    assert plan.disks == plan.delete


@pytest.mark.parametrize(
    ("against", "says"),
    [
        ({"is_empty": False}, "may hold data"),
        ({"is_created": False}, "did not make it"),
        ({"parent_id": None}, "not known"),
        ({"vm_id": VmId(derived_id("nobody"))}, "not known"),
    ],
    ids=str,
)
def test_one_that_is_not_provably_an_orphan_is_left_to_an_operator(
    scene: Scene, against: dict[str, Any], says: str
) -> None:
    scene.add(ORPHAN, LEAF, **against)
    found = scene.only("volume_unowned")
    assert found.mend is None
    assert says in found.seen


def test_no_orphan_goes_while_a_host_is_silent(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF)
    scene.silent = {"host h2": "it did not answer"}
    assert [(each.code, each.mend) for each in scene.findings()] == [("not_seen", None), ("volume_unowned", None)]


def test_no_orphan_goes_where_locks_prove_nothing(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF)
    scene.storage = replace(scene.storage, locking_is_proven=False)
    assert scene.only("volume_unowned").mend is None


def test_no_orphan_goes_that_another_volume_stands_on(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF)
    scene.strays = [StrayFile(file=file("images/x/y.qcow2", ORPHAN, is_locked=False))]
    codes = {each.code: each.mend for each in scene.findings()}
    assert codes == {"volume_unowned": None, "file_unknown": None}


@pytest.mark.parametrize("where", ["live", "persistent", "snapshot", "leaf", "kept"])
def test_what_a_machine_or_the_record_needs_is_no_orphan(scene: Scene, where: str) -> None:
    scene.add(ORPHAN, BASE, disk=DB_DISK) if where == "leaf" else scene.add(ORPHAN, BASE)
    if where == "live":
        scene.hosts[H2][WEB] = replace(scene.hosts[H1][DB], vm_id=VmId(derived_id("other")))
        scene.hosts[H2][WEB] = replace(scene.hosts[H2][WEB], disks=_disks(ORPHAN))
    elif where == "persistent":
        off = replace(scene.hosts[H1][WEB], is_active=False, disks=_disks(ORPHAN, live=False))
        scene.hosts[H2][WEB] = off
    elif where == "snapshot":
        scene.on_record(ORPHAN, WEB_DISK, BASE)
        kept = replace(scene.snapshots[FIRST], disks=((WEB_DISK, ORPHAN.volume_id, LEAF.volume_id),))
        scene.snapshots[SnapshotId(derived_id("kept"))] = kept
    elif where == "kept":  # web1 shows a snapshot for trial, and comes back to it
        scene.on_record(ORPHAN, WEB_DISK, BASE)
        scene.kept = frozenset({ORPHAN.volume_id})
    else:
        scene.on_record(ORPHAN, DB_DISK, BASE)
        disk = scene.disks[DB_DISK]
        scene.disks[DB_DISK] = replace(disk, leaf=ORPHAN.volume_id)
    assert not [each for each in scene.findings() if each.code.startswith("volume_")]


def _disks(of: Any, *, live: bool = True) -> Any:
    from tests.unit.manager.doctor.scene import chain

    return chain(layers(of, BASE)) if live else chain((), layers(of))


def test_an_orphan_of_a_machine_that_a_job_holds_may_be_its_new_leaf(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF)
    scene.strays = [StrayFile(file=file(volume("being made"), LEAF))]
    scene.unsettled = frozenset({WEB})
    assert scene.findings() == ()


# ---- marks, missing files and documents --------------------------------------------------------------------------


@pytest.mark.parametrize("of", [LEAF, ONE], ids=["leaf", "snapshot"])
def test_an_illegal_mark_on_what_is_needed_is_taken_back(scene: Scene, of: Any) -> None:
    scene.document(of, is_illegal=True)
    found = scene.only("volume_illegal")
    assert found.mend is not None
    (adoption,) = found.mend.plan.adopt
    assert (adoption.volume, adoption.parent) == (of, ONE if of is LEAF else BASE)
    assert (found.mend.plan.hosts, found.mend.plan.delete) == ((), ())


def test_an_illegal_orphan_is_an_orphan(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF, is_illegal=True)
    assert scene.only("volume_orphan").mend is not None


def test_a_missing_file_names_what_is_broken_without_it(scene: Scene) -> None:
    scene.lose_file(ONE)
    found = scene.only("volume_missing")
    assert found.mend is None
    assert "web1/second" in found.seen


def test_a_missing_leaf(scene: Scene) -> None:
    scene.lose_file(LEAF)
    assert "leaf of web1" in scene.only("volume_missing").seen


def test_a_volume_on_record_of_which_nothing_is_left(scene: Scene) -> None:
    del scene.seen[ONE.path]
    assert "web1/second" in scene.only("volume_missing").seen


def test_a_volume_on_record_below_a_tombstone(scene: Scene) -> None:
    scene.document(ONE, is_deleted=True)
    scene.lose_file(ONE)
    found = scene.only("volume_deleted")
    assert found.mend is None
    assert "web1/second" in found.seen


def test_a_deletion_that_was_cut_short(scene: Scene) -> None:
    scene.add(ORPHAN, LEAF, is_illegal=True)
    scene.lose_file(ORPHAN)
    scene.trash(ORPHAN)
    found = scene.only("tombstone_missing")
    assert found.mend is not None
    assert [disk.new for disk in found.mend.plan.delete] == [ORPHAN]


def test_what_is_needed_and_in_the_trash_is_an_operators_matter(scene: Scene) -> None:
    scene.lose_file(ONE)
    scene.trash(ONE)
    found = scene.only("volume_missing")
    assert found.mend is None
    assert "trash" in found.seen


def test_metadata_that_is_gone_is_written_anew(scene: Scene) -> None:
    scene.seen.pop(LEAF.path)
    scene.strays = [StrayFile(file=file(LEAF, ONE))]
    found = scene.only("metadata_missing")
    assert found.mend is not None
    (adoption,) = found.mend.plan.adopt
    assert (adoption.volume, adoption.parent, adoption.snapshot_id) == (LEAF, ONE, SECOND)


def test_but_not_where_header_and_record_differ(scene: Scene) -> None:
    scene.seen.pop(ONE.path)
    scene.strays = [StrayFile(file=file(ONE, "else.qcow2"))]
    codes = {each.code: each.mend for each in scene.findings()}
    assert codes["metadata_missing"] is None


def test_a_document_that_cannot_be_read(scene: Scene) -> None:
    scene.storage = replace(scene.storage, broken=(BrokenDocument(path="images/x/y.json", problem="not JSON"),))
    assert scene.only("metadata_broken").mend is None


# ---- strangers ---------------------------------------------------------------------------------------------------


def test_a_file_that_nobody_knows_is_never_touched(scene: Scene) -> None:
    scene.strays = [StrayFile(file=file("images/x/notes.txt", is_locked=False))]
    assert scene.only("file_unknown").mend is None


@pytest.mark.parametrize(("hours", "codes"), [(0, []), (2, ["file_unfinished"])])
def test_a_temporary_file_is_told_once_it_is_old(scene: Scene, hours: int, codes: list[str]) -> None:
    left = file("images/x/.y.tmp", is_locked=False, modified_at=NOW - timedelta(hours=hours, minutes=5))
    scene.strays = [StrayFile(file=left, is_temporary=True)]
    assert [each.code for each in scene.findings()] == codes


# ---- a record that knows less than storage -----------------------------------------------------------------------


@pytest.fixture
def lost(scene: Scene) -> Scene:
    """The database is a new one, to which the host has reported its machines: what runs became the leaf on record."""
    taken_for = adopted(LEAF.path)
    scene.volumes = {}
    scene.snapshots = {}
    scene.on_record(taken_for, WEB_DISK, None, is_created=False)
    scene.on_record(adopted("db.qcow2"), DB_DISK, None)
    scene.disks[WEB_DISK] = replace(scene.disks[WEB_DISK], leaf=taken_for.volume_id)
    return scene


def test_a_lost_record_comes_back_from_the_metadata(lost: Scene) -> None:
    found = lost.only("record_lost")
    assert found.mend is not None
    plan = found.mend.plan
    assert [each.volume for each in plan.lost] == [BASE, ONE, LEAF]
    assert [each.parent_id for each in plan.lost] == [None, BASE.volume_id, ONE.volume_id]
    assert plan.leaves == ((WEB_DISK, LEAF.volume_id),)
    assert plan.replaced == (adopted(LEAF.path).volume_id,)
    assert (plan.hosts, plan.adopt, plan.delete) == ((), (), ())
    snapshots = {each.id: [(disk.old, disk.new) for disk in each.disks] for each in found.mend.snapshots}
    assert snapshots == {FIRST: [(BASE, ONE)], SECOND: [(ONE, LEAF)]}


def test_an_old_copy_of_the_database_gets_what_is_newer(scene: Scene) -> None:
    """It has the first snapshot; since then the second was taken, and its leaf is not the one on record."""
    del scene.snapshots[SECOND]
    del scene.volumes[LEAF.volume_id]
    scene.on_record(taken_for := adopted(LEAF.path), WEB_DISK, None, is_created=False)
    scene.disks[WEB_DISK] = replace(scene.disks[WEB_DISK], leaf=taken_for.volume_id)
    found = scene.only("record_lost")
    assert found.mend is not None
    assert [each.id for each in found.mend.snapshots] == [SECOND]


def test_an_old_copy_whose_machine_has_moved_on_is_adopted_by_its_own_ids(scene: Scene) -> None:
    """The leaf on record is the one before: what stands above it is a volume of ours, and keeps its id."""
    del scene.snapshots[SECOND]
    del scene.volumes[LEAF.volume_id]
    scene.disks[WEB_DISK] = replace(scene.disks[WEB_DISK], leaf=ONE.volume_id)
    found = scene.only("leaf_foreign")
    assert found.mend is not None
    assert [disk.new for disk in found.mend.plan.disks] == [LEAF]


def test_a_snapshot_that_was_dropped_does_not_come_back(lost: Scene) -> None:
    lost.dropped = frozenset({SECOND})
    found = lost.only("record_lost")
    assert found.mend is not None
    assert [each.id for each in found.mend.snapshots] == [FIRST]


def test_a_leftover_of_a_lost_record_is_no_snapshot(lost: Scene) -> None:
    lost.add(ORPHAN, LEAF, snapshot_id=SnapshotId(derived_id("never")))
    codes = {each.code for each in lost.findings()}
    assert codes == {"record_lost", "volume_orphan"}


def test_two_disks_share_one_document_folder(lost: Scene) -> None:
    """A base that belongs to another machine's disk goes on record with that disk."""
    lost.document(BASE, vm_id=DB, disk_id=DB_DISK)
    found = lost.only("record_lost")
    assert found.mend is not None
    assert found.mend.plan.lost[0].disk_id == DB_DISK
    assert metadata(BASE, None).disk_id != DB_DISK
