"""A leaf that a machine comes back to, and one that was adopted, as a host looks at them: real files with data."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from common.errors import HeaderRefused, StorageError
from common.ids import HostId
from common.images import metadata
from common.messaging.messages import DiskSwitch
from hostagent.storage import MountedStorage
from tests.bed.paths import short_dir
from tests.bed.process import run
from tests.integration.spm_kit import SpmKit, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")


@pytest.fixture
def kit() -> Iterator[SpmKit]:
    with short_dir() as root:
        (root / "sd").mkdir()
        made = SpmKit(root / "sd", host_alive=False)
        yield made
        made.close()


@pytest.fixture
def storage(kit: SpmKit) -> Iterator[MountedStorage]:
    made = MountedStorage({"main": kit.root}, HostId("h1"))
    yield made
    made.close()


def made_leaf(kit: SpmKit) -> DiskSwitch:
    switch = kit.switch(kit.image("vms/web.img"))
    kit.create(switch)
    return switch


def test_a_kept_leaf_holds_data_and_may_be_the_leaf_again(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    write_data(kit.file(switch.new))
    storage.check_kept_volume(switch.new, switch.disk_id)
    storage.check_kept_volume(switch.old, switch.disk_id)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"legality": metadata.Legality.ILLEGAL}, "volume_deleted"),
        ({"state": metadata.VolumeState.DELETED}, "volume_deleted"),
    ],
)
def test_a_kept_leaf_that_is_on_its_way_out(
    kit: SpmKit, storage: MountedStorage, change: dict[str, metadata.Legality], code: str
) -> None:
    switch = made_leaf(kit)
    metadata.write(kit.root, replace(kit.metadata(switch.new), **change))  # type: ignore[arg-type]
    with pytest.raises(StorageError) as refused:
        storage.check_kept_volume(switch.new, switch.disk_id)
    assert refused.value.code == code


def test_a_kept_leaf_that_is_not_as_it_was(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    other = replace(switch.new, path=switch.new.path.replace("images/", "elsewhere/"))
    with pytest.raises(StorageError) as moved:
        storage.check_kept_volume(other, switch.disk_id)
    assert moved.value.code == "chain_unexpected"
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", kit.file(switch.new)])
    with pytest.raises(HeaderRefused):
        storage.check_kept_volume(switch.new, switch.disk_id)
    kit.file(switch.new).unlink()
    with pytest.raises(StorageError) as gone:
        storage.check_kept_volume(switch.new, switch.disk_id)
    assert gone.value.code == "volume_not_found"


def test_an_adopted_overlay_is_known_by_metadata_that_lies_elsewhere(kit: SpmKit, storage: MountedStorage) -> None:
    """What somebody took with virsh and doctor adopted: its data must not pass for nothing."""
    switch = made_leaf(kit)
    top = kit.overlay("vms/web.snap1", f"../{switch.new.path}")
    known = kit.metadata(switch.new, switch.disk_id)
    adopted = replace(known, volume=top, parent=switch.new, origin=metadata.Origin.ADOPTED)
    metadata.write(kit.root, adopted)
    storage.check_new_volume(top, switch.new)
    write_data(kit.file(top))
    with pytest.raises(StorageError) as refused:
        storage.check_new_volume(top, switch.new)
    assert refused.value.code == "volume_not_empty"


def test_a_file_is_there_whatever_metadata_says(kit: SpmKit, storage: MountedStorage) -> None:
    switch = made_leaf(kit)
    assert storage.exists(switch.new)
    kit.file(switch.new).with_suffix(".json").unlink()
    assert storage.exists(switch.new)
    kit.file(switch.new).unlink()
    assert not storage.exists(switch.new)
