"""The storage domains as a host has them mounted: what becomes a leaf, and what is refused, on real files."""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import HeaderRefused, NotReady, StorageError
from common.ids import HostId, StorageDomainId, VolumeId, new_id
from common.images import locks, metadata
from common.images.layout import host_lock_path
from common.messaging.messages import DiskSwitch, Format, VolumeAt
from hostagent.ports import QemuUser
from hostagent.processes import users_of
from hostagent.storage import MountedStorage, image_state
from tests.bed.paths import short_dir
from tests.bed.process import run
from tests.integration.spm_kit import SpmKit, in_use, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

HOST = HostId("h1")


@pytest.fixture
def kit() -> Iterator[SpmKit]:
    with short_dir() as root:
        (root / "sd").mkdir()
        made = SpmKit(root / "sd", host_alive=False)
        yield made
        made.close()


@pytest.fixture
def storage(kit: SpmKit) -> Iterator[MountedStorage]:
    made = MountedStorage({"main": kit.root}, HOST)
    yield made
    made.close()


def made_leaf(kit: SpmKit, image_format: Format = Format.QCOW2) -> DiskSwitch:
    old = kit.image("vms/web.img", image_format=image_format)
    switch = kit.switch(old)
    kit.create(switch)
    return switch


def check(storage: MountedStorage, switch: DiskSwitch, owner: tuple[int, int] | None = None) -> None:
    storage.check_new_volume(switch.new, switch.old)
    if owner is not None:
        storage.require_access(switch.new, QemuUser(uid=owner[0], gid=owner[1]))


def refusal_of(storage: MountedStorage, switch: DiskSwitch, owner: tuple[int, int] | None = None) -> str:
    with pytest.raises(StorageError) as refused:
        check(storage, switch, owner)
    return refused.value.code


# ---- images of others ------------------------------------------------------------------------------------------------


def test_an_images_state_changes_with_every_write(kit: SpmKit) -> None:
    path = kit.file(kit.image("vms/web.qcow2"))
    before = image_state(str(path))
    assert before
    assert image_state(str(path)) == before
    path.with_suffix(".link").symlink_to(path)
    assert image_state(str(path.with_suffix(".link"))) == ""
    write_data(path)
    after = image_state(str(path))
    assert after not in ("", before)
    with in_use(path):
        assert image_state(str(path)) == ""
    run(["qemu-img", "info", "-f", "qcow2", path])
    assert image_state(str(path)) == after
    path.unlink()
    assert image_state(str(path)) == ""


def test_who_has_an_image_open(kit: SpmKit) -> None:
    path = kit.file(kit.image("vms/web.qcow2"))
    assert users_of(str(path)) == ()
    with in_use(path):
        (user,) = users_of(str(path))
        assert re.fullmatch(r"qemu-\S+ \(pid \d+\)", user)
    assert users_of(str(path.with_suffix(".none"))) == ()


def test_snapshots_inside_an_image(kit: SpmKit, storage: MountedStorage) -> None:
    volume = kit.image("vms/web.qcow2")
    assert storage.internal_snapshots(volume) == 0
    run(["qemu-img", "snapshot", "-c", "one", kit.file(volume)])
    assert storage.internal_snapshots(volume) == 1
    assert storage.internal_snapshots(kit.image("vms/web.raw", image_format=Format.RAW)) == 0


# ---- paths ----------------------------------------------------------------------------------------------------------


def test_a_path_and_its_place(kit: SpmKit, storage: MountedStorage) -> None:
    volume = kit.image("vms/a b.qcow2")
    path = storage.path_of(volume)
    assert path == str(kit.root / "vms/a b.qcow2")
    assert storage.locate(path) == (kit.id, "vms/a b.qcow2")


@pytest.mark.parametrize(
    "path", ["/elsewhere/x", "relative", "", "{root}", "{root}x/y", "{root}/a/../../x", "{root}//a"]
)
def test_what_lies_below_no_storage_domain(kit: SpmKit, storage: MountedStorage, path: str) -> None:
    assert storage.locate(path.format(root=kit.root)) is None


def test_a_base_is_located_by_the_name_that_libvirt_found_in_a_header(kit: SpmKit, storage: MountedStorage) -> None:
    kit.image("images/x/web.qcow2")
    assert storage.locate(f"{kit.root}/images/x/../x/web.qcow2") == (kit.id, "images/x/web.qcow2")
    (kit.root / "link").symlink_to("/etc")
    assert storage.locate(f"{kit.root}/link/../images/x/web.qcow2") is None, "that is another file"


def test_a_link_out_of_the_storage_domain_leads_nowhere(kit: SpmKit, storage: MountedStorage) -> None:
    (kit.root / "out").symlink_to("/etc")
    assert storage.locate(str(kit.root / "out/passwd")) is None
    with pytest.raises(StorageError) as refused:
        storage.path_of(kit.at("out/passwd"))
    assert refused.value.code == "volume_not_found"


def test_a_mount_that_is_not_there_is_waited_for(kit: SpmKit, storage: MountedStorage) -> None:
    volume = kit.image("a.qcow2")
    storage.path_of(volume)
    (kit.root / "livesnap.json").rename(kit.root / "hidden")
    with pytest.raises(NotReady) as missing:
        storage.path_of(volume)
    assert missing.value.code == "storage_unavailable"
    (report,) = storage.mounts()
    assert report.storage_domain_id is None
    assert "livesnap.json" in report.problem
    with pytest.raises(NotReady):
        storage.path_of(volume)
    assert storage.locate(str(kit.root / "a.qcow2")) is None
    (kit.root / "hidden").rename(kit.root / "livesnap.json")
    assert storage.path_of(volume)


def test_another_storage_domain_at_the_mount_is_an_error(kit: SpmKit, storage: MountedStorage) -> None:
    volume = kit.image("a.qcow2")
    storage.path_of(volume)
    text = (kit.root / "livesnap.json").read_text()
    (kit.root / "livesnap.json").write_text(text.replace(kit.id, new_id()))
    with pytest.raises(NotReady) as wrong:
        storage.path_of(volume)
    assert wrong.value.code == "storage_unavailable"


def test_an_unknown_storage_domain_is_not_in_the_settings(kit: SpmKit, storage: MountedStorage) -> None:
    stranger = replace(kit.at("a.qcow2"), storage_domain_id=StorageDomainId(new_id()))
    with pytest.raises(StorageError) as unknown:
        storage.path_of(stranger)
    assert unknown.value.code == "storage_domain_unknown"


# ---- a new leaf -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", list(Format))
def test_what_the_spm_makes_is_accepted(kit: SpmKit, storage: MountedStorage, image_format: Format) -> None:
    switch = made_leaf(kit, image_format)
    check(storage, switch)
    check(storage, switch, (0, 0))


@pytest.mark.parametrize("options", ["cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "extended_l2=on"])
def test_where_data_begins(kit: SpmKit, storage: MountedStorage, options: str) -> None:
    """What QEMU writes before is its own tables, of a write that fails as well as of one that does not."""
    switch = kit.switch(kit.image("web.qcow2", options=("-o", options)))
    kit.create(switch)
    path = kit.file(switch.new)
    first_data = storage.check_new_volume(switch.new, switch.old)
    write_data(path, "write 0 512")
    layout = json.loads(run(["qemu-img", "map", "-f", "qcow2", "--output=json", path]))
    (data,) = [part for part in layout if part["data"] and part["depth"] == 0]
    assert data["offset"] == first_data


def test_a_leaf_with_data_is_refused(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    write_data(kit.file(switch.new))
    assert refusal_of(storage, switch) == "volume_not_empty"


def test_a_missing_file_is_refused(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    kit.file(switch.new).unlink()
    assert refusal_of(storage, switch) == "volume_not_found"


def test_a_leaf_without_metadata_does_not_exist(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    kit.file(switch.new).with_suffix(".json").unlink()
    assert refusal_of(storage, switch) == "volume_not_found"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"legality": metadata.Legality.ILLEGAL}, "volume_deleted"),
        ({"state": metadata.VolumeState.DELETED}, "volume_deleted"),
        ({"parent": None}, "chain_unexpected"),
    ],
)
def test_metadata_has_a_say(kit: SpmKit, storage: MountedStorage, change: dict[str, object], code: str) -> None:
    switch = made_leaf(kit)
    found = kit.metadata(switch.new, switch.disk_id)
    metadata.write(kit.root, replace(found, **change))  # type: ignore[arg-type]
    assert refusal_of(storage, switch) == code


def test_metadata_of_another_volume_is_none(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    other = replace(switch, new=replace(switch.new, volume_id=VolumeId(new_id())))
    assert refusal_of(storage, other) == "volume_not_found"


def forge(kit: SpmKit, volume: VolumeAt, backing: str, size: str = "16M", backing_format: str = "qcow2") -> None:
    """Put an image in the leaf's place that QEMU and libvirt would accept."""
    words = ["-u", "-b", backing, "-F", backing_format] if backing else []
    run(["qemu-img", "create", "-q", "-f", "qcow2", *words, kit.file(volume), size])


@pytest.mark.parametrize(
    ("backing", "size", "backing_format"),
    [
        ("", "16M", "qcow2"),
        ("../../vms/other.img", "16M", "qcow2"),
        ("/etc/passwd", "16M", "raw"),
        ("../../vms/web.img", "8M", "qcow2"),
        ("../../vms/web.img", "32M", "qcow2"),
        ("../../vms/web.img", "16M", "raw"),
    ],
)
def test_a_wrong_header_is_refused(
    kit: SpmKit, storage: MountedStorage, backing: str, size: str, backing_format: str
) -> None:
    switch = made_leaf(kit)
    kit.image("vms/other.img")
    forge(kit, switch.new, backing, size, backing_format)
    assert refusal_of(storage, switch) == "chain_unexpected"


def test_what_is_no_image_is_refused_before_any_tool_opens_it(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    kit.file(switch.new).write_bytes(b"not an image" * 100)
    with pytest.raises(HeaderRefused):
        check(storage, switch)
    kit.file(switch.new).unlink()
    os.mkfifo(kit.file(switch.new))
    with pytest.raises(StorageError):
        check(storage, switch)


@pytest.mark.needs("root")
def test_qemus_user_must_be_able_to_write(kit: SpmKit, storage: MountedStorage) -> None:
    switch, nobody = made_leaf(kit), (65534, 65534)
    leaf = kit.file(switch.new)
    os.chown(leaf, 0, 65534)
    for mode, is_open in ((0o600, False), (0o640, False), (0o660, True), (0o606, False), (0o666, True)):
        leaf.chmod(mode)
        if is_open:
            check(storage, switch, nobody)
        else:
            assert refusal_of(storage, switch, nobody) == "volume_permission"
    os.chown(leaf, 65534, 0)
    leaf.chmod(0o600)
    check(storage, switch, nobody)
    folder = leaf.parent
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o011)
    assert refusal_of(storage, switch, nobody) == "volume_permission"


# ---- a chain as it lies on storage ----------------------------------------------------------------------------------


def header_refused(storage: MountedStorage, leaf: VolumeAt) -> str:
    with pytest.raises(HeaderRefused) as refused:
        storage.chain(leaf)
    assert refused.value.code == "header_refused"
    return refused.value.message


def test_a_chain_is_read_to_its_base(kit: SpmKit, storage: MountedStorage) -> None:
    kit.image("base.img", image_format=Format.RAW)
    kit.overlay("middle.qcow2", "base.img", backing_format=Format.RAW)
    leaf = kit.overlay("vms/leaf.qcow2", "../middle.qcow2")
    run(["qemu-img", "bitmap", "--add", "-f", "qcow2", kit.file(leaf), "b0"])
    run(["qemu-img", "bitmap", "--add", "-f", "qcow2", kit.file(leaf), "b1"])
    with in_use(kit.file(leaf)):
        chain = storage.chain(leaf)
    assert [(Path(file.path).name, file.format, file.bitmaps) for file in chain] == [
        ("leaf.qcow2", Format.QCOW2, 2),
        ("middle.qcow2", Format.QCOW2, 0),
        ("base.img", Format.RAW, 0),
    ]
    assert len(storage.chain(kit.at("base.img", Format.RAW))) == 1


def test_a_file_of_a_chain_that_is_missing(kit: SpmKit, storage: MountedStorage) -> None:
    leaf = kit.overlay("leaf.qcow2", "gone.qcow2")
    with pytest.raises(StorageError) as refused:
        storage.chain(leaf)
    assert (refused.value.code, str(kit.root / "gone.qcow2") in refused.value.message) == ("volume_not_found", True)


def test_a_chain_that_no_tool_may_open(kit: SpmKit, storage: MountedStorage) -> None:
    kit.overlay("loop.qcow2", "loop.qcow2")
    assert "loop" in header_refused(storage, kit.overlay("a.qcow2", "loop.qcow2"))
    outside = kit.root.parent / "outside.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", outside, "16M"])
    assert "below no declared read-only base" in header_refused(storage, kit.overlay("b.qcow2", str(outside)))
    assert "format" in header_refused(storage, kit.overlay("c.qcow2", "a.qcow2", backing_format=None))
    kit.image("data.qcow2", options=("-o", f"data_file={kit.root}/data.raw"))
    assert "data file" in header_refused(storage, kit.overlay("d.qcow2", "data.qcow2"))


def test_a_base_below_a_declared_folder_is_a_part_of_the_chain() -> None:
    with short_dir() as root:
        bases = root / "bases"
        bases.mkdir()
        run(["qemu-img", "create", "-q", "-f", "qcow2", bases / "cloud.qcow2", "16M"])
        kit = SpmKit(root / "sd", host_alive=False, read_only_bases=(str(bases),))
        storage = MountedStorage({"main": kit.root}, HOST)
        assert len(storage.chain(kit.overlay("leaf.qcow2", str(bases / "cloud.qcow2")))) == 2
        storage.close()
        kit.close()


def test_room_and_the_way_to_a_new_volume(kit: SpmKit, storage: MountedStorage) -> None:
    assert storage.free_bytes(kit.id) > 0
    switch = kit.switch(kit.image("web.qcow2"))
    storage.require_way(switch.new, QemuUser(uid=64_000, gid=64_000))  # its folder is still to be made
    if os.geteuid() == 0:
        (kit.root / "images").chmod(0o700)
        with pytest.raises(StorageError) as refused:
            storage.require_way(switch.new, QemuUser(uid=64_000, gid=64_000))
        assert refused.value.code == "volume_permission"


# ---- locks ----------------------------------------------------------------------------------------------------------


def test_a_used_volume_is_locked(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    assert not storage.is_locked(switch.new)
    with in_use(kit.file(switch.new)):
        assert storage.is_locked(switch.new)
        assert storage.is_locked(switch.old)
        assert storage.is_written(switch.new)
        assert not storage.is_written(switch.old), "a backing file is only read"
    assert not storage.is_locked(switch.new)
    assert not storage.is_written(switch.new)
    kit.file(switch.new).unlink()
    assert not storage.is_locked(switch.new)
    assert not storage.is_written(switch.new)


def test_the_hosts_own_lock_is_shared_by_its_agents(kit: SpmKit, storage: MountedStorage) -> None:
    path = kit.root / host_lock_path(HOST)
    sibling = MountedStorage({"main": kit.root}, HOST)

    def is_held() -> bool:
        with Path(path).open("rb") as file:
            return locks.is_held(file.fileno(), locks.WHOLE)

    for agent in (storage, sibling):
        (report,) = agent.mounts()
        assert (report.storage_domain_id, report.problem) == (kit.id, "")
        assert report.total_bytes > report.free_bytes > 0
    assert is_held()
    storage.close()
    assert is_held()
    sibling.close()
    assert not is_held()


def test_a_stranger_with_the_hosts_lock_is_a_problem(kit: SpmKit, storage: MountedStorage) -> None:
    path = kit.root / host_lock_path(HOST)
    path.parent.mkdir(exist_ok=True)
    fd = locks.lock_file(path)
    assert fd is not None
    (report,) = storage.mounts()
    assert "locked by somebody" in report.problem
    os.close(fd)
    (report,) = storage.mounts()
    assert report.problem == ""
