"""CreateVolumes on real files with the real qemu-img."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import HeaderRefused, LivesnapError, NotReady, RequestRefused, StaleAttempt, StorageError
from common.ids import SnapshotId, StorageDomainId, VmId, new_id
from common.images import qemu_img
from common.images.metadata import Legality, Origin, VolumeState
from common.messaging.messages import CreateVolumes, Format, VolumeAt
from tests.bed.process import run
from tests.bed.small_fs import SmallFs
from tests.integration.spm_kit import SpmKit, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    kit = SpmKit(tmp_path / "main")
    yield kit
    kit.close()


def info(path: Path) -> dict[str, object]:
    """Return what qemu-img says of an image."""
    text = run(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path])
    answer: dict[str, object] = json.loads(text)
    return answer


def test_new_leaf_is_an_empty_overlay_of_its_parent(kit: SpmKit) -> None:
    old = kit.image("vms/web.qcow2", options=("-o", "cluster_size=128k,extended_l2=on"))
    os.chmod(kit.file(old), 0o640)
    switch = kit.switch(old)

    answer = kit.create(switch)

    seen = info(kit.file(switch.new))
    assert (seen["virtual-size"], seen["cluster-size"]) == (16 * 2**20, 128 * 1024)
    assert seen["backing-filename"] == "../../vms/web.qcow2"
    assert (seen["backing-filename-format"], seen["full-backing-filename"]) == ("qcow2", _full(kit, switch.new, old))
    assert seen["format-specific"]["data"]["extended-l2"] is True  # type: ignore[index]
    assert [found.volume for found in answer.created] == [switch.new]
    assert answer.created[0].parent_id == old.volume_id
    assert answer.created[0].size_bytes == 16 * 2**20
    assert [found.volume for found in answer.adopted] == [old]
    new, parent = kit.file(switch.new).stat(), kit.file(old).stat()
    assert (new.st_uid, new.st_gid, new.st_mode) == (parent.st_uid, parent.st_gid, parent.st_mode)
    assert run(["qemu-img", "check", "-f", "qcow2", kit.file(switch.new)])


@pytest.mark.parametrize(
    ("tail", "counted"),
    [
        pytest.param(3 * 512, 3 * 512, id="no whole cluster"),
        pytest.param(700, 512, id="no whole sector, of which QEMU leaves out the rest"),
    ],
)
def test_parent_of_an_odd_size(kit: SpmKit, tail: int, counted: int) -> None:
    old = kit.image("web.qcow2")
    with kit.file(old).open("r+b") as image:
        image.seek(24)  # the virtual size in the header
        image.write((16 * 2**20 + tail).to_bytes(8, "big"))
    switch = kit.switch(old)
    assert kit.create(switch).created[0].size_bytes == 16 * 2**20 + counted
    assert info(kit.file(switch.new))["virtual-size"] == info(kit.file(old))["virtual-size"] == 16 * 2**20 + counted


def _full(kit: SpmKit, new: VolumeAt, old: VolumeAt) -> str:
    return f"{kit.file(new).parent}/../../{old.path}"


@pytest.mark.needs("root")
def test_owner_is_the_parents(kit: SpmKit) -> None:
    old = kit.image("web.qcow2")
    os.chown(kit.file(old), 65534, 65533)
    switch = kit.switch(old)
    kit.create(switch)
    seen = kit.file(switch.new).stat()
    assert (seen.st_uid, seen.st_gid) == (65534, 65533)


def test_metadata_says_all_that_a_lost_database_needs(kit: SpmKit) -> None:
    old = kit.image("web.qcow2")
    command = kit.creation(kit.switch(old))
    kit.carry_out(command, attempt=7)
    known = kit.metadata(command.disks[0].new)
    assert (known.parent, known.vm_id, known.snapshot_id) == (old, kit.vm, command.snapshot_id)
    assert (known.generation, known.created_attempt, known.origin) == (7, 7, Origin.CREATED)
    assert (known.legality, known.state, known.immutable) == (Legality.LEGAL, VolumeState.EXISTS, False)


def test_raw_parent(kit: SpmKit) -> None:
    old = kit.image("web.img", image_format=Format.RAW)
    with kit.file(old).open("ab") as file:
        file.write(b"tail")  # no whole number of sectors
    switch = kit.switch(old)
    answer = kit.create(switch)
    seen = info(kit.file(switch.new))
    assert (seen["virtual-size"], seen["backing-filename-format"]) == (16 * 2**20 + 512, "raw")
    assert answer.created[0].size_bytes == 16 * 2**20 + 512


def test_raw_parent_whose_content_looks_like_qcow2_is_not_probed(kit: SpmKit) -> None:
    """A guest can write a qcow2 header that names the host's files into its raw disk (P8)."""
    old = kit.image("web.img", image_format=Format.RAW)
    trap = kit.image("trap.qcow2")
    with kit.file(old).open("r+b") as file:
        file.write(kit.file(trap).read_bytes())
    length = kit.file(old).stat().st_size
    switch = kit.switch(old)
    kit.create(switch)
    assert info(kit.file(switch.new))["virtual-size"] == length


def test_data_of_the_chain_is_seen_through_the_new_leaf(kit: SpmKit) -> None:
    old = kit.image("web.qcow2")
    write_data(kit.file(old), "write -P 0x5a 0 64k")
    first = kit.switch(old)
    kit.create(first)
    second = kit.switch(first.new)
    kit.create(second, attempt=2)
    write_data(kit.file(second.new), "read -P 0x5a 0 64k")
    assert kit.metadata(second.new).parent == first.new


@pytest.mark.parametrize("name", ["-o.qcow2", "a:b.qcow2", "nbd:x/y.qcow2", "with space, comma.qcow2", "json:{}.qcow2"])
def test_names_that_look_like_options_or_protocols(kit: SpmKit, name: str) -> None:
    made = kit.image("plain.qcow2")
    target = kit.root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    kit.file(made).rename(target)
    switch = kit.switch(kit.at(name))
    kit.create(switch)
    assert info(kit.file(switch.new))["backing-filename"] == f"../../{name}"
    write_data(kit.file(switch.new), "read 0 64k")


def test_repeating_is_success_and_changes_nothing(kit: SpmKit) -> None:
    command = kit.creation(kit.switch(kit.image("web.qcow2")), kit.switch(kit.image("data.qcow2"), "vdb"))
    first = kit.carry_out(command)
    before = kit.everything()
    again = kit.carry_out(command)
    assert again == first
    assert kit.everything() == before


def test_repeating_with_a_higher_attempt_raises_the_generation(kit: SpmKit) -> None:
    command = kit.creation(kit.switch(kit.image("web.qcow2")))
    kit.carry_out(command, attempt=3)
    kit.carry_out(command, attempt=5)
    assert kit.metadata(command.disks[0].new).generation == 5
    with pytest.raises(StaleAttempt) as refused:
        kit.carry_out(command, attempt=4)
    assert refused.value.highest == 5


def test_same_id_with_other_parameters_is_refused(kit: SpmKit) -> None:
    old, other = kit.image("web.qcow2"), kit.image("other.qcow2")
    command = kit.creation(kit.switch(old))
    kit.carry_out(command)
    before = kit.everything()
    for changed in (
        replace(command, snapshot_id=SnapshotId(new_id())),
        replace(command, vm_id=VmId(new_id())),
        replace(command, disks=(replace(command.disks[0], old=other),)),
    ):
        with pytest.raises(StorageError) as refused:
            kit.carry_out(changed, attempt=9)
        assert refused.value.code == "volume_exists"
    assert kit.everything() == before


def test_below_a_tombstone_nothing_is_made(kit: SpmKit) -> None:
    command = kit.creation(kit.switch(kit.image("web.qcow2")))
    kit.delete(*command.disks, attempt=4)  # never made
    with pytest.raises(StaleAttempt):
        kit.carry_out(command, attempt=3)
    with pytest.raises(StorageError) as refused:
        kit.carry_out(command, attempt=4)
    assert refused.value.code == "volume_deleted"
    assert not kit.file(command.disks[0].new).exists()


def test_foreign_file_in_the_way_is_never_replaced(kit: SpmKit) -> None:
    """The hazard behind link(2): a running machine's file must survive a late creation (protocol.md, V4)."""
    switch = kit.switch(kit.image("web.qcow2"))
    path = kit.file(switch.new)
    path.parent.mkdir(parents=True)
    run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"])
    write_data(path)
    before = path.read_bytes()
    with pytest.raises(StorageError) as refused:
        kit.create(switch)
    assert refused.value.code == "volume_exists"
    assert path.read_bytes() == before


def test_file_of_an_interrupted_creation_is_completed(kit: SpmKit) -> None:
    command = kit.creation(kit.switch(kit.image("web.qcow2")))
    kit.carry_out(command)
    switch = command.disks[0]
    kit.file(switch.new).with_suffix(".json").unlink()
    inode = kit.file(switch.new).stat().st_ino
    kit.carry_out(command)
    assert kit.metadata(switch.new).parent == switch.old
    assert kit.file(switch.new).stat().st_ino == inode


def test_all_or_none(kit: SpmKit) -> None:
    good, bad = kit.switch(kit.image("web.qcow2")), kit.switch(kit.image("data.qcow2"), "vdb")
    blocker = kit.file(bad.new)
    blocker.parent.mkdir(parents=True)
    blocker.write_bytes(b"not ours")
    with pytest.raises(LivesnapError):
        kit.create(good, bad)
    assert not kit.file(good.new).exists()
    assert not kit.file(good.new).with_suffix(".json").exists()
    assert blocker.read_bytes() == b"not ours"
    blocker.unlink()
    assert len(kit.create(good, bad, attempt=2).created) == 2


def test_missing_parent(kit: SpmKit) -> None:
    with pytest.raises(StorageError) as failed:
        kit.create(kit.switch(kit.at("nowhere.qcow2")))
    assert failed.value.code == "volume_not_found"


def test_parent_that_is_a_link_out_of_the_storage_domain(kit: SpmKit, tmp_path: Path) -> None:
    outside = tmp_path / "secret.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", outside, "16M"])
    (kit.root / "link.qcow2").symlink_to(outside)
    with pytest.raises(HeaderRefused):
        kit.create(kit.switch(kit.at("link.qcow2")))


@pytest.mark.parametrize("field", ["path", "storage_domain_id"])
def test_place_that_is_not_the_volumes_own_is_refused(kit: SpmKit, field: str) -> None:
    switch = kit.switch(kit.image("web.qcow2"))
    if field == "path":
        new = replace(switch.new, path="web.qcow2")
    else:
        new = replace(switch.new, storage_domain_id=StorageDomainId(new_id()))
    moved = replace(switch, new=new)
    before = kit.everything()
    with pytest.raises(RequestRefused):
        kit.create(moved)
    assert kit.everything() == before


def test_too_little_room(kit: SpmKit) -> None:
    command = kit.creation(kit.switch(kit.image("web.qcow2")))
    with pytest.raises(StorageError) as failed:
        kit.carry_out(command, min_free_bytes=2**62)
    assert failed.value.code == "storage_full"
    assert not kit.file(command.disks[0].new).exists()


def test_unmounted_storage_domain_is_not_ready_and_stays_empty(kit: SpmKit, tmp_path: Path) -> None:
    command = kit.creation(kit.switch(kit.image("web.qcow2")))
    kit.pool.wait_for_leases()
    kit.root.rename(tmp_path / "elsewhere")
    kit.root.mkdir()
    with pytest.raises(NotReady) as refused:
        kit.carry_out(command)
    assert refused.value.code == "storage_unavailable"
    assert list(kit.root.iterdir()) == []


def test_unknown_storage_domain(kit: SpmKit) -> None:
    old = replace(kit.image("web.qcow2"), storage_domain_id=StorageDomainId(new_id()))
    with pytest.raises(StorageError) as failed:
        kit.create(kit.switch(old))
    assert failed.value.code == "storage_domain_unknown"


def test_the_same_command_twice_at_the_same_time(kit: SpmKit) -> None:
    """Both brokers deliver twice concurrently."""
    command = kit.creation(*(kit.switch(kit.image(f"{t}.qcow2"), t) for t in ("vda", "vdb", "vdc")))
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(kit.carry_out(command).created)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)


def test_qemu_img_that_does_not_end_is_given_up_and_its_words_become_codes(kit: SpmKit) -> None:
    overlay = qemu_img.Overlay(size_bytes=2**20, backing_name="x", backing_format=Format.RAW)
    with pytest.raises(StorageError) as failed:
        qemu_img.create(kit.root, "images/a.qcow2", overlay, time_limit=timedelta(0))
    assert failed.value.code == "storage_io_error"
    with pytest.raises(StorageError) as refused:
        qemu_img.create(kit.root, "nowhere/a.qcow2", overlay)
    assert refused.value.code == "qemu_img_failed"
    assert "No such file" in refused.value.message


@pytest.mark.needs("loop", "mke2fs", "mount")
def test_full_storage_domain(tmp_path: Path) -> None:
    """ENOSPC from the file system itself, wherever in the creation it strikes: in a folder, an image, a document."""
    failures = 0
    with SmallFs(64, tmp_path / "small", (os.getuid(), os.getgid())) as fs:
        kit = SpmKit(fs.path / "sd")
        old = kit.image("web.qcow2")
        kit.pool.wait_for_leases()
        for attempt, leave_bytes in enumerate(range(0, 320 * 1024, 8 * 1024), start=1):
            vm = VmId(new_id())
            command = kit.creation(kit.switch(old, vm=vm), kit.switch(old, "vdb", vm=vm), vm=vm)
            fs.fill(leave_bytes=leave_bytes)
            if _fails_for_room(kit, command, attempt):
                failures += 1
                left = [kit.file(switch.new) for switch in command.disks]
                assert not any(path.exists() or path.with_suffix(".json").exists() for path in left)
            fs.free()
            assert len(kit.carry_out(command, attempt).created) == 2
        kit.close()
    assert failures >= 10


def _fails_for_room(kit: SpmKit, command: CreateVolumes, attempt: int) -> bool:
    try:
        kit.carry_out(command, attempt)
    except StorageError as failed:
        if failed.code != "storage_full":
            raise
        return True
    return False
