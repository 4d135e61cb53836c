"""`<volume>.json`: what a storage domain itself knows of a volume, so that any SPM, and a rebuilt database, know it.

A volume exists only once its metadata does; after its deletion the document stays as the tombstone that forbids
making it again. Only the active SPM writes; host agents read (is it legal? is it the one asked for?).
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.errors import StorageError
from common.ids import DiskId, SnapshotId, StorageDomainId, VmId, VolumeId, is_uuid, require_uuid
from common.images.files import storage_errors, write_whole
from common.images.layout import IMAGES_DIR, metadata_path
from common.messaging.messages import Format, VolumeAt

FORMAT_VERSION = 1
_MAX_BYTES = 64 * 1024


class Legality(StrEnum):
    """Whether a machine may be put on the volume."""

    LEGAL = "legal"
    ILLEGAL = "illegal"
    """Its deletion has begun: never use it. Taken back before the SPM answers that it keeps it."""


class VolumeState(StrEnum):
    """Whether the volume is there."""

    EXISTS = "exists"
    DELETED = "deleted"
    """A tombstone: the volume is in the trash, purged, or never was."""


class Origin(StrEnum):
    """Where the volume came from."""

    CREATED = "created"
    ADOPTED = "adopted"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMetadata:
    """One volume's document.

    `generation` is the highest attempt of the vm that has acted on the volume; `created_attempt` the one that made or
    adopted it. `snapshot_id` is the snapshot for which it was made: the content of that snapshot is in `parent`.
    `external_base` is the absolute path of a read-only base outside every storage domain, if it stands directly above
    one. `immutable`: never a merge target.
    """

    volume: VolumeAt
    disk_id: DiskId
    vm_id: VmId
    parent: VolumeAt | None
    size_bytes: int
    generation: int
    created_attempt: int
    origin: Origin
    legality: Legality = Legality.LEGAL
    state: VolumeState = VolumeState.EXISTS
    immutable: bool = False
    snapshot_id: SnapshotId | None = None
    external_base: str = ""

    def __post_init__(self) -> None:
        """Refuse malformed ids: they become file names."""
        require_uuid(self.disk_id, self.vm_id, *([self.snapshot_id] if self.snapshot_id else []))


def dumps(metadata: VolumeMetadata) -> str:
    """Return the document as JSON text."""
    document = {
        "format_version": FORMAT_VERSION,
        **_volume_to_json(metadata.volume),
        "disk": metadata.disk_id,
        "vm": metadata.vm_id,
        "snapshot": metadata.snapshot_id,
        "parent": _volume_to_json(metadata.parent) if metadata.parent else None,
        "external_base": metadata.external_base,
        "size_bytes": metadata.size_bytes,
        "state": metadata.state,
        "legality": metadata.legality,
        "generation": metadata.generation,
        "created_attempt": metadata.created_attempt,
        "origin": metadata.origin,
        "immutable": metadata.immutable,
    }
    return json.dumps(document, indent=1) + "\n"


def loads(text: str | bytes) -> VolumeMetadata:
    """Return the document. Raises ValueError that says what is wrong with it."""
    try:
        raw = json.loads(text)
        if raw["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {raw['format_version']!r}, this livesnap knows {FORMAT_VERSION}")
        return VolumeMetadata(
            volume=_volume_from_json(raw),
            disk_id=DiskId(_text(raw["disk"])),
            vm_id=VmId(_text(raw["vm"])),
            snapshot_id=None if raw["snapshot"] is None else SnapshotId(_text(raw["snapshot"])),
            parent=None if raw["parent"] is None else _volume_from_json(raw["parent"]),
            external_base=_text(raw["external_base"]),
            size_bytes=_count(raw["size_bytes"]),
            state=VolumeState(raw["state"]),
            legality=Legality(raw["legality"]),
            generation=_count(raw["generation"]),
            created_attempt=_count(raw["created_attempt"]),
            origin=Origin(raw["origin"]),
            immutable=raw["immutable"] is True,
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read(path: Path) -> VolumeMetadata | None:
    """Return the document in that file, None if there is no such file.

    Raises StorageError: storage_io_error for what is not such a document, else what the operating system said.
    """
    with storage_errors(f"reading {path}"):
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
    try:
        return loads(text)
    except ValueError as error:
        raise StorageError("storage_io_error", f"{path} is no volume metadata: {error}") from error


def write(root: Path, metadata: VolumeMetadata, *, new: bool = False) -> None:
    """Replace the volume's document durably. The folder of its disk must exist. Raises StorageError.

    With `new` there must be none yet, else volume_exists: an SPM that slept while its successor deleted the volume
    must not write over the tombstone. A crash leaves the old document or the new one.
    """
    path = root / path_of(metadata)
    with storage_errors(f"writing {path}"):
        try:
            write_whole(path, dumps(metadata), new=new)
        except FileExistsError:
            raise StorageError("volume_exists", f"{path} was written by somebody else meanwhile") from None


def path_of(metadata: VolumeMetadata) -> str:
    """Return the document's relative path."""
    return metadata_path(metadata.disk_id, metadata.volume.volume_id)


def find(root: Path, volume: VolumeAt, disk: DiskId | None = None) -> VolumeMetadata | None:
    """Return a volume's metadata wherever it lies, None if there is none. Raises StorageError.

    It lies in the folder of the disk that first had the volume: the one in the path of a volume that livesnap made,
    the asked `disk` for most adopted ones; a base that several disks share can be in any disk's folder.
    """
    folders = dict.fromkeys(DiskId(name) for name in (volume.path.split("/")[1:2] or ())) if _is_ours(volume) else {}
    if disk is not None:
        folders[disk] = None
    for folder in folders:
        found = read(root / metadata_path(folder, volume.volume_id))
        if found is not None:
            return found
    return _search(root, volume.volume_id)


def _is_ours(volume: VolumeAt) -> bool:
    parts = volume.path.split("/")
    return len(parts) == 3 and parts[0] == IMAGES_DIR and is_uuid(parts[1])


def _search(root: Path, volume_id: VolumeId) -> VolumeMetadata | None:
    with storage_errors(f"searching {root / IMAGES_DIR}"):
        candidates = sorted((root / IMAGES_DIR).glob(f"*/{volume_id}.json"))
    return read(candidates[0]) if candidates else None


def _volume_to_json(volume: VolumeAt) -> dict[str, str]:
    return {
        "id": volume.volume_id,
        "storage_domain": volume.storage_domain_id,
        "path": volume.path,
        "format": volume.format,
    }


def _volume_from_json(raw: Any) -> VolumeAt:
    return VolumeAt(
        volume_id=VolumeId(_text(raw["id"])),
        storage_domain_id=StorageDomainId(_text(raw["storage_domain"])),
        path=_text(raw["path"]),
        format=Format(raw["format"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
