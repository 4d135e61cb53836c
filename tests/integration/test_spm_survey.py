"""A storage domain described by its SPM, and volumes that are given the metadata that they should have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import HeaderRefused, LivesnapError, RequestRefused, StaleAttempt, StorageError
from common.ids import JobId, SnapshotId, StepId, VolumeId, new_id
from common.images.metadata import Legality, Origin, write
from common.messaging.keys import SigningKey
from common.messaging.messages import Adoption, AdoptVolumes, DiskSwitch, Format, VolumeAt, VolumesInspected
from common.messaging.surveys import NamedFile, Spot, StorageSurveyed, SurveyStorage
from common.messaging.wire import SCHEMA_VERSION, Envelope, seal
from spm.operations import survey as survey_module
from spm.operations.adopt_volumes import adopt_volumes
from spm.operations.survey import survey
from tests.integration.spm_kit import SpmKit, in_use, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    made = SpmKit(tmp_path / "main")
    made.pool.backend(made.id)  # takes the lease, which is no part of a survey
    yield made
    made.close()


def look(kit: SpmKit, after: str = "", *named: NamedFile) -> StorageSurveyed:
    before = kit.everything()
    page = survey(SurveyStorage(storage_domain_id=kit.id, after=after, named=named), kit.pool)
    assert kit.everything() == before, "a survey has changed something"
    return page


# ---- looking -----------------------------------------------------------------------------------------------------


def test_a_volume_is_shown_with_its_metadata_and_its_file(kit: SpmKit) -> None:
    switch = kit.switch(base := kit.image("web.qcow2"))
    kit.create(switch)
    page = look(kit)
    assert (page.strays, page.broken, page.trash, page.following) == ((), (), (), "")
    assert page.locking_is_proven
    seen = {each.metadata.volume_id: each for each in page.volumes}
    leaf, adopted = seen[switch.new.volume_id], seen[base.volume_id]
    assert leaf.file is not None
    assert (leaf.file.is_empty, leaf.file.is_locked, leaf.file.size_bytes) == (True, False, 16 * 2**20)
    assert leaf.file.backing == Spot(storage_domain_id=kit.id, path="web.qcow2")
    assert (leaf.metadata.parent_id, leaf.metadata.is_created) == (base.volume_id, True)
    assert leaf.metadata.snapshot_id is not None
    assert adopted.file is not None, "an adopted volume is looked at where it lies, outside of images/"
    assert (adopted.metadata.is_created, adopted.file.backing) == (False, None)


def test_what_is_written_and_in_use_is_said_so(kit: SpmKit) -> None:
    switch = kit.switch(kit.image("web.qcow2"))
    kit.create(switch)
    write_data(kit.file(switch.new))
    with in_use(kit.file(switch.new)):
        (leaf,) = [each.file for each in look(kit).volumes if each.metadata.is_created]
    assert leaf is not None
    assert (leaf.is_empty, leaf.is_locked) == (False, True)


def test_marks_tombstones_and_the_trash(kit: SpmKit) -> None:
    gone, marked = kit.switch(kit.image("web.qcow2")), kit.switch(kit.at("web.qcow2"))
    kit.create(gone)
    kit.create(marked, attempt=2)
    kit.delete(gone, attempt=3)
    write(kit.root, replace(kit.metadata(marked.new), legality=Legality.ILLEGAL))
    page = look(kit)
    seen = {each.metadata.volume_id: each for each in page.volumes}
    assert (seen[gone.new.volume_id].metadata.is_deleted, seen[gone.new.volume_id].file) == (True, None)
    assert seen[marked.new.volume_id].metadata.is_illegal
    assert [(each.volume_id, each.deleted_at) for each in page.trash] == [(gone.new.volume_id, kit.clock.now())]


def test_strangers(kit: SpmKit) -> None:
    switch = kit.switch(kit.image("web.qcow2"))
    kit.create(switch)
    folder = kit.file(switch.new).parent
    (folder / f".{new_id()}.tmp").touch()
    (folder / "notes.txt").write_text("hello")
    (folder / "deep").mkdir()
    (folder / "deep" / "a.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 200)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / f"{new_id()}.json").write_text("{")
    os.mkfifo(folder / "pipe")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.qcow2")).touch()
    kit.file(switch.new).with_suffix(".json").unlink()

    page = look(kit)

    strays = {Path(each.file.path).name: each for each in page.strays}
    temporary = [name for name, each in strays.items() if each.is_temporary]
    assert len(temporary) == 1
    assert strays.keys() - set(temporary) == {
        *("notes.txt", "a.qcow2", "pipe", "??.qcow2"),
        f"{switch.new.volume_id}.qcow2",
    }
    assert strays["a.qcow2"].file.problem
    assert not strays[f"{switch.new.volume_id}.qcow2"].file.problem
    assert len(page.broken) == 1
    size_of(kit, page)


def size_of(kit: SpmKit, page: StorageSurveyed) -> int:
    """Return the size of an answer on the wire; fail if it cannot be sent."""
    envelope = Envelope(
        v=SCHEMA_VERSION,
        sender="spm.p1",
        to="manager",
        job=JobId(new_id()),
        vm=None,
        step=StepId(new_id()),
        attempt=0,
        issued_at=kit.clock.now(),
        deadline=kit.clock.now(),
        body=page,
    )
    key_file = kit.root.parent / "spm.key"
    key = SigningKey.load(key_file, "spm.p1") if key_file.exists() else SigningKey.generate(key_file, "spm.p1")
    return len(seal(envelope, key).body)


def test_named_files_are_looked_at_wherever_they_lie(kit: SpmKit) -> None:
    kit.image("web.qcow2")
    kit.overlay("snaps/web.1", "../web.qcow2")
    page = look(kit, "", NamedFile(path="snaps/web.1", format="qcow2"), NamedFile(path="gone", format="raw"))
    (seen,) = page.named
    assert seen.backing == Spot(storage_domain_id=kit.id, path="web.qcow2")
    assert (page.volumes, page.strays) == ((), ())


def test_a_name_that_leads_out_is_not_followed(kit: SpmKit, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    (kit.root / "inside").symlink_to(tmp_path / "secret")
    assert look(kit, "", NamedFile(path="inside", format="raw")).named == ()


def test_pages_follow_each_other_and_fit_into_a_message(kit: SpmKit) -> None:
    switch = kit.switch(kit.image("web.qcow2"))
    kit.create(switch)
    folder = kit.file(switch.new).parent
    names = {f"{'x' * 180}{number:04}.qcow2" for number in range(700)}
    for name in names:
        (folder / name).touch()
    found: list[str] = []
    after, pages = "", 0
    while True:
        page = look(kit, after)
        pages += 1
        assert size_of(kit, page) < 700_000
        found += [Path(each.file.path).name for each in page.strays]
        if not page.following:
            break
        assert page.following > after
        after = page.following
    assert pages > 2
    assert sorted(found) == sorted(names)
    assert survey_module.PAGE_BYTES < 700_000


# ---- adopting ----------------------------------------------------------------------------------------------------


def adopt(kit: SpmKit, *volumes: Adoption, attempt: int = 5) -> VolumesInspected:
    return adopt_volumes(AdoptVolumes(vm_id=kit.vm, volumes=volumes), attempt, kit.pool)


def foreign(kit: SpmKit, switch: DiskSwitch, path: str = "web.snap1") -> Adoption:
    """Return what somebody else has put above a leaf of ours."""
    made = kit.overlay(path, switch.new.path)
    return Adoption(volume=made, disk_id=switch.disk_id, parent=switch.new, snapshot_id=SnapshotId(new_id()))


@pytest.fixture
def switch(kit: SpmKit) -> DiskSwitch:
    made = kit.switch(kit.image("web.qcow2"))
    kit.create(made)
    return made


def test_a_foreign_volume_is_adopted_where_it_lies(kit: SpmKit, switch: DiskSwitch) -> None:
    wanted = foreign(kit, switch)
    content = kit.file(wanted.volume).read_bytes()
    (found,) = adopt(kit, wanted).found
    assert (found.volume, found.parent_id, found.origin) == (wanted.volume, switch.new.volume_id, "adopted")
    known = kit.metadata(wanted.volume, switch.disk_id)
    assert (known.snapshot_id, known.generation, known.immutable) == (wanted.snapshot_id, 5, False)
    assert kit.file(wanted.volume).read_bytes() == content
    assert adopt(kit, wanted, attempt=6).found == (found,), "it is safe to repeat"
    # and a snapshot can be taken above it
    above = kit.switch(wanted.volume)
    kit.create(above, attempt=7)
    assert kit.metadata(above.new).parent == wanted.volume


def test_two_that_stand_on_each_other(kit: SpmKit, switch: DiskSwitch) -> None:
    first = foreign(kit, switch)
    top = kit.overlay("web.snap2", "web.snap1")
    second = replace(first, volume=top, parent=first.volume)
    assert [found.volume for found in adopt(kit, first, second).found] == [first.volume, top]


def test_one_with_another_parent_is_refused_and_nothing_is_made(kit: SpmKit, switch: DiskSwitch) -> None:
    wanted = replace(foreign(kit, switch), parent=switch.old)
    before = kit.everything()
    with pytest.raises(HeaderRefused, match=r"web\.qcow2"):
        adopt(kit, wanted)
    assert kit.everything() == before


def test_one_that_is_not_there(kit: SpmKit, switch: DiskSwitch) -> None:
    wanted = replace(foreign(kit, switch), volume=kit.at("gone.qcow2"))
    with pytest.raises(StorageError, match="not there"):
        adopt(kit, wanted)


def test_one_under_an_id_that_is_not_its_own(kit: SpmKit, switch: DiskSwitch) -> None:
    wanted = foreign(kit, switch)
    with pytest.raises(RequestRefused):
        adopt(kit, replace(wanted, volume=replace(wanted.volume, volume_id=VolumeId(new_id()))))


def test_a_mark_is_taken_back(kit: SpmKit, switch: DiskSwitch) -> None:
    known = kit.metadata(switch.new)
    write(kit.root, replace(known, legality=Legality.ILLEGAL))
    wanted = Adoption(volume=switch.new, disk_id=switch.disk_id, parent=switch.old)
    adopt(kit, wanted)
    assert kit.metadata(switch.new) == replace(known, generation=5)


def test_metadata_that_was_lost_is_that_of_a_volume_of_ours(kit: SpmKit, switch: DiskSwitch) -> None:
    known = kit.metadata(switch.new)
    kit.file(switch.new).with_suffix(".json").unlink()
    snapshot = known.snapshot_id
    adopt(kit, Adoption(volume=switch.new, disk_id=switch.disk_id, parent=switch.old, snapshot_id=snapshot))
    assert kit.metadata(switch.new) == replace(known, generation=5, created_attempt=5)
    assert kit.metadata(switch.new).origin is Origin.CREATED


@pytest.mark.parametrize("case", ["stale", "deleted", "elsewhere"])
def test_what_is_refused(kit: SpmKit, switch: DiskSwitch, case: str) -> None:
    wanted = Adoption(volume=switch.new, disk_id=switch.disk_id, parent=switch.old)
    expected: tuple[type[LivesnapError], str] = StaleAttempt, "attempt 1 has acted"
    if case == "deleted":
        kit.delete(switch, attempt=2)
        expected = StorageError, "is deleted"
    elif case == "elsewhere":
        wanted = replace(wanted, volume=_moved(switch.new))
        expected = RequestRefused, "lies at"
    before = kit.everything()
    with pytest.raises(expected[0], match=expected[1]):
        adopt(kit, wanted, attempt=0 if case == "stale" else 5)
    assert kit.everything() == before


def _moved(volume: VolumeAt) -> VolumeAt:
    return replace(volume, path="elsewhere.qcow2", format=Format.QCOW2)
