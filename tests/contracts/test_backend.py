"""What every kind of storage must do for the SPM's operations. A new backend is one more entry in BACKENDS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import LivesnapError, StorageError
from common.ids import DiskId, HostId, PoolId, VmId, VolumeId, new_id
from common.images.identity import read_identity
from common.images.layout import host_lock_path, volume_path
from common.images.locks import lock_file
from common.images.metadata import Legality, Origin, VolumeMetadata
from common.images.overlays import Overlays
from common.messaging.messages import Format, VolumeAt
from spm.backends.base import Backend, Holds, Shape
from spm.backends.file import FileBackend
from spm.operations.register_storage_domain import register_storage_domain
from tests.integration.spm_kit import in_use, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

SHAPE = Shape(size_bytes=16 * 2**20, cluster_bytes=65536, extended_l2=False, backing=None)
MOMENT = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


@dataclass(kw_only=True)
class Gate:
    """The lease, as a test may take it away."""

    open: bool = True

    def require(self) -> None:
        """Raise when it is gone."""
        if not self.open:
            raise LivesnapError("lease_lost", "the test took it")


@contextmanager
def file_backend(root: Path, gate: Gate) -> Iterator[Backend]:
    register_storage_domain(root, "main", PoolId("p1"))
    yield FileBackend(root, read_identity(root), gate.require, Overlays())


BACKENDS: dict[str, Callable[[Path, Gate], object]] = {"file": file_backend}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, gate: Gate) -> Iterator[Backend]:
    with BACKENDS[request.param](tmp_path, gate) as made:  # type: ignore[attr-defined]
        yield made


def new_volume(backend: Backend, disk: DiskId) -> VolumeAt:
    volume_id = VolumeId(new_id())
    return VolumeAt(
        volume_id=volume_id,
        storage_domain_id=backend.identity.storage_domain_id,
        path=volume_path(disk, volume_id),
        format=Format.QCOW2,
    )


@pytest.fixture
def parent(backend: Backend) -> VolumeAt:
    """Return a volume that others can stand on."""
    base = backend.name_volume("base.img", Format.RAW)
    with Path(backend.path(base)).open("wb") as file:
        file.truncate(SHAPE.size_bytes)
    return base


@pytest.fixture
def volume(backend: Backend, parent: VolumeAt) -> VolumeAt:
    """Return a volume that was made."""
    made = new_volume(backend, DiskId(new_id()))
    assert backend.make(made, parent, SHAPE)
    return made


def document(volume: VolumeAt, disk: DiskId) -> VolumeMetadata:
    return VolumeMetadata(
        volume=volume,
        disk_id=disk,
        vm_id=VmId(new_id()),
        parent=None,
        size_bytes=SHAPE.size_bytes,
        generation=1,
        created_attempt=1,
        origin=Origin.CREATED,
    )


def disk_of(volume: VolumeAt) -> DiskId:
    return DiskId(volume.path.split("/")[1])


def test_made_volume_has_the_shape_and_stands_on_its_parent(
    backend: Backend, parent: VolumeAt, volume: VolumeAt
) -> None:
    assert backend.exists(volume)
    shape = backend.shape(volume)
    assert replace(shape, backing=None) == SHAPE
    assert shape.backing is not None
    assert shape.backing.format is Format.RAW
    assert backend.locate(shape.backing.path) == parent.path


def test_making_never_replaces(backend: Backend, parent: VolumeAt, volume: VolumeAt) -> None:
    write_data(Path(backend.path(volume)))
    assert not backend.make(volume, parent, SHAPE)
    with backend.hold(volume) as held:
        assert held is not None
        assert not held.is_empty()


def test_failed_making_leaves_nothing(backend: Backend, parent: VolumeAt) -> None:
    volume = new_volume(backend, DiskId(new_id()))
    with pytest.raises(StorageError):
        backend.make(volume, parent, replace(SHAPE, cluster_bytes=3))
    assert not backend.exists(volume)
    assert backend.sweep(datetime(2100, 1, 1, tzinfo=UTC)) == 0


def test_metadata(backend: Backend, volume: VolumeAt) -> None:
    disk = disk_of(volume)
    assert backend.load(disk, volume.volume_id) is None
    assert backend.of_disk(DiskId(new_id())) == ()
    first = document(volume, disk)
    backend.store(first, new=True)
    assert backend.load(disk, volume.volume_id) == first
    with pytest.raises(StorageError) as refused:
        backend.store(first, new=True)
    assert refused.value.code == "volume_exists"
    second = replace(first, generation=2, legality=Legality.ILLEGAL)
    backend.store(second)
    assert backend.find(volume, DiskId(new_id())) == second
    assert backend.of_disk(disk) == (second,)
    backend.forget(second)
    assert backend.load(disk, volume.volume_id) is None


def test_holding_excludes_every_use(backend: Backend, volume: VolumeAt) -> None:
    with backend.hold(volume) as held:
        assert held is not None
        assert held.is_empty()
        with backend.hold(volume) as second:
            assert second is None
    with in_use(Path(backend.path(volume))), backend.hold(volume) as held:
        assert held is None
    with pytest.raises(StorageError) as failed, backend.hold(new_volume(backend, disk_of(volume))):
        pass
    assert failed.value.code == "volume_not_found"


def test_trash(backend: Backend, volume: VolumeAt) -> None:
    with backend.hold(volume) as held:
        assert held is not None
        held.to_trash(MOMENT, Holds.NOTHING)
    assert not backend.exists(volume)
    (trashed,) = backend.trash()
    assert (trashed.volume_id, trashed.deleted_at, trashed.holds) == (volume.volume_id, MOMENT, Holds.NOTHING)
    with backend.hold_trashed(trashed) as held:
        assert held is not None
        assert held.is_empty()
        held.remove()
    assert list(backend.trash()) == []


def test_raw_volume_is_never_called_empty(backend: Backend, parent: VolumeAt) -> None:
    with backend.hold(parent) as held:
        assert held is not None
        assert not held.is_empty()


def test_locking_is_proven_by_a_living_host_only(backend: Backend, parent: VolumeAt) -> None:
    assert not backend.locking_is_proven()
    root = Path(backend.path(parent)).parent
    (root / host_lock_path(HostId("dead"))).touch()
    assert not backend.locking_is_proven()
    held = lock_file(root / host_lock_path(HostId("alive")), shared=True)
    assert held is not None
    assert backend.locking_is_proven()
    assert {name: backend.is_held_by(HostId(name)) for name in ("dead", "alive", "never-seen")} == {
        "dead": False,
        "alive": True,
        "never-seen": False,
    }
    os.close(held)
    assert not backend.locking_is_proven()
    assert not backend.is_held_by(HostId("alive"))


def test_without_the_lease_nothing_is_changed(backend: Backend, parent: VolumeAt, volume: VolumeAt, gate: Gate) -> None:
    known = document(volume, disk_of(volume))
    backend.store(known)
    gate.open = False
    other = new_volume(backend, disk_of(volume))
    for change in (
        lambda: backend.make(other, parent, SHAPE),
        lambda: backend.make(new_volume(backend, DiskId(new_id())), parent, SHAPE),
        lambda: backend.store(replace(known, generation=9)),
        lambda: backend.forget(known),
    ):
        with pytest.raises(LivesnapError):
            change()
    with backend.hold(volume) as held:
        assert held is not None
        with pytest.raises(LivesnapError):
            held.to_trash(MOMENT, Holds.NOTHING)
        with pytest.raises(LivesnapError):
            held.remove()
    assert backend.exists(volume)
    assert not backend.exists(other)
    assert backend.load(known.disk_id, volume.volume_id) == known


def test_volume_replaced_while_it_was_held_is_left_alone(backend: Backend, volume: VolumeAt) -> None:
    path = Path(backend.path(volume))
    with backend.hold(volume) as held:
        assert held is not None
        path.rename(path.with_name("aside"))
        path.write_bytes(b"another")
        with pytest.raises(StorageError):
            held.to_trash(MOMENT, Holds.NOTHING)
    assert path.read_bytes() == b"another"


def test_paths(backend: Backend, volume: VolumeAt, parent: VolumeAt, tmp_path: Path) -> None:
    assert backend.locate(backend.path(volume)) == volume.path
    assert backend.locate("/etc/passwd") is None
    assert backend.locate(backend.path(parent) + "/../../..") is None
    assert backend.name_volume(parent.path, Format.RAW) == parent
    backend.store(document(volume, disk_of(volume)))
    assert backend.name_volume(volume.path, Format.QCOW2) == volume


def test_usage(backend: Backend) -> None:
    usage = backend.usage()
    assert 0 < usage.free_bytes <= usage.total_bytes


# ---- looking around ----------------------------------------------------------------------------------------------


def test_everything_below_a_folder_is_named(backend: Backend, volume: VolumeAt) -> None:
    assert backend.names("images") == [volume.path]
    assert backend.names("trash") == []


def test_a_file_shows_its_looks_without_being_held(backend: Backend, parent: VolumeAt, volume: VolumeAt) -> None:
    looks = backend.looks(volume.path, Format.QCOW2)
    assert looks is not None
    assert (looks.is_empty, looks.is_locked, looks.size_bytes, looks.problem) == (True, False, SHAPE.size_bytes, "")
    assert looks.backing is not None
    assert backend.locate(looks.backing.path) == parent.path
    with backend.hold(volume) as held:
        assert held is not None
        locked = backend.looks(volume.path, Format.QCOW2)
    assert locked is not None
    assert locked.is_locked
    assert backend.looks("images/gone.qcow2", Format.QCOW2) is None
