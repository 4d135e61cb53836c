"""The documents on a storage domain: written whole, read strictly."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NotReady, StorageError
from common.ids import DiskId, PoolId, SnapshotId, StorageDomainId, VmId, VolumeId, new_id
from common.images import metadata
from common.images.files import storage_errors, write_whole
from common.images.identity import Identity, read_identity, require_identity, write_identity
from common.images.layout import metadata_path, volume_path
from common.images.metadata import Legality, Origin, VolumeMetadata, VolumeState
from common.messaging.messages import Format, VolumeAt

IDS = st.uuids().map(str)
PATHS = st.lists(st.text("abcé -:,_", min_size=1, max_size=8), min_size=1, max_size=4).map("/".join)


def volumes() -> st.SearchStrategy[VolumeAt]:
    return st.builds(
        VolumeAt,
        volume_id=IDS.map(VolumeId),
        storage_domain_id=IDS.map(StorageDomainId),
        path=PATHS,
        format=st.sampled_from(Format),
    )


def documents() -> st.SearchStrategy[VolumeMetadata]:
    return st.builds(
        VolumeMetadata,
        volume=volumes(),
        disk_id=IDS.map(DiskId),
        vm_id=IDS.map(VmId),
        parent=st.none() | volumes(),
        size_bytes=st.integers(0, 2**62),
        generation=st.integers(0, 2**31),
        created_attempt=st.integers(0, 2**31),
        origin=st.sampled_from(Origin),
        legality=st.sampled_from(Legality),
        state=st.sampled_from(VolumeState),
        immutable=st.booleans(),
        snapshot_id=st.none() | IDS.map(SnapshotId),
        external_base=st.text(max_size=20),
    )


@given(documents())
def test_metadata_comes_back_as_it_was(document: VolumeMetadata) -> None:
    assert metadata.loads(metadata.dumps(document)) == document


@given(st.binary(max_size=200))
def test_random_bytes_are_no_metadata(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        metadata.loads(content)


def example(**changes: Any) -> dict[str, Any]:
    disk, volume = DiskId(new_id()), VolumeId(new_id())
    sound = VolumeMetadata(
        volume=VolumeAt(
            volume_id=volume,
            storage_domain_id=StorageDomainId(new_id()),
            path=volume_path(disk, volume),
            format=Format.QCOW2,
        ),
        disk_id=disk,
        vm_id=VmId(new_id()),
        parent=None,
        size_bytes=1,
        generation=1,
        created_attempt=1,
        origin=Origin.CREATED,
    )
    document: dict[str, Any] = json.loads(metadata.dumps(sound))
    return {**document, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"id": "../../etc/passwd"},
        {"disk": "x"},
        {"vm": None},
        {"path": "/etc/passwd"},
        {"path": "../up"},
        {"format": "vmdk"},
        {"size_bytes": -1},
        {"size_bytes": True},
        {"generation": "3"},
        {"legality": "maybe"},
        {"state": None},
        {"parent": {}},
        {"snapshot": 5},
    ],
    ids=str,
)
def test_wrong_field_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "volume.json"
    path.write_text(json.dumps(example(**changes)))
    with pytest.raises(StorageError) as refused:
        metadata.read(path)
    assert refused.value.code == "storage_io_error"
    assert str(path) in refused.value.message


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 60_000, '{"format_version": 1'])
def test_other_documents_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "volume.json"
    path.write_text(text)
    with pytest.raises(StorageError):
        metadata.read(path)


def test_metadata_is_found_in_the_own_disks_folder_the_asked_one_or_any(tmp_path: Path) -> None:
    ours = metadata.loads(json.dumps(example()))
    adopted = metadata.loads(json.dumps(example(path="vms/web.qcow2")))
    for document in (ours, adopted):
        (tmp_path / "images" / document.disk_id).mkdir(parents=True)
        metadata.write(tmp_path, document)
    assert metadata.find(tmp_path, ours.volume) == ours
    assert metadata.find(tmp_path, ours.volume, DiskId(new_id())) == ours
    assert metadata.find(tmp_path, adopted.volume, adopted.disk_id) == adopted
    assert metadata.find(tmp_path, adopted.volume, DiskId(new_id())) == adopted
    missing = metadata.loads(json.dumps(example()))
    assert metadata.find(tmp_path, missing.volume, missing.disk_id) is None


def test_new_metadata_never_replaces_a_tombstone(tmp_path: Path) -> None:
    tombstone = metadata.loads(json.dumps(example(state="deleted")))
    (tmp_path / "images" / tombstone.disk_id).mkdir(parents=True)
    metadata.write(tmp_path, tombstone, new=True)
    with pytest.raises(StorageError) as refused:
        metadata.write(tmp_path, tombstone, new=True)
    assert refused.value.code == "volume_exists"
    assert sorted(path.name for path in (tmp_path / "images" / tombstone.disk_id).iterdir()) == [
        f"{tombstone.volume.volume_id}.json"
    ]
    assert metadata.read(tmp_path / metadata_path(tombstone.disk_id, tombstone.volume.volume_id)) == tombstone


# ---- files ------------------------------------------------------------------------------------------------------


def test_file_is_replaced_whole_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    previous = os.umask(0o077)
    try:
        write_whole(path, "one")
        write_whole(path, "two")
    finally:
        os.umask(previous)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EDQUOT, "storage_full"),
        (errno.ESTALE, "storage_unavailable"),
        (errno.ENOTCONN, "storage_unavailable"),
        (errno.EIO, "storage_io_error"),
        (errno.EROFS, "storage_io_error"),
        (errno.EACCES, "storage_io_error"),
    ],
)
def test_errors_of_storage_have_codes(number: int, code: str) -> None:
    with pytest.raises(StorageError) as failed, storage_errors("writing it"):
        raise OSError(number, os.strerror(number), "/some/file")
    assert failed.value.code == code
    assert "writing it" in failed.value.message
    assert "/some/file" in failed.value.message


# ---- identity ---------------------------------------------------------------------------------------------------


def test_identity_comes_back_as_it_was(tmp_path: Path) -> None:
    identity = Identity(
        storage_domain_id=StorageDomainId(new_id()), pool=PoolId("p1"), name="main", read_only_bases=("/golden",)
    )
    write_identity(tmp_path, identity)
    assert read_identity(tmp_path) == identity
    assert require_identity(tmp_path, identity.storage_domain_id) == identity
    with pytest.raises(NotReady):
        require_identity(tmp_path, StorageDomainId(new_id()))


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "{}", "[" * 60_000, '{"format_version": 9}', '{"format_version": 1, "id": "x"}'],
)
def test_missing_or_wrong_identity_is_not_ready(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "livesnap.json").write_text(text)
    with pytest.raises(NotReady) as refused:
        read_identity(tmp_path)
    assert refused.value.code == "storage_unavailable"
    assert list(tmp_path.iterdir()) == ([] if text is None else [tmp_path / "livesnap.json"])
