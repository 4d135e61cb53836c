"""Describe a storage domain, page by page: metadata with its file, files without metadata, the trash. Reads only."""

from typing import Final

from common.errors import LivesnapError
from common.ids import DiskId, VolumeId, is_uuid
from common.images.layout import IMAGES_DIR, TRASH_DIR
from common.images.metadata import Legality, Origin, VolumeMetadata, VolumeState
from common.messaging.messages import Format
from common.messaging.surveys import (
    BrokenDocument,
    FileSeen,
    MetadataSeen,
    NamedFile,
    Spot,
    StorageSurveyed,
    StrayFile,
    SurveyStorage,
    TrashSeen,
    VolumeSeen,
)
from spm.backends.base import Backend, Looks, Trashed
from spm.pool import Pool

PAGE_BYTES: Final = 600_000
"""What a page may take as JSON, roughly; a message is refused above 1 MiB."""
_ENTRY_BYTES: Final = 1_200
"""A volume with its metadata and file, without what paths add (a character may be escaped by six bytes)."""

_Entry = VolumeSeen | StrayFile | BrokenDocument | TrashSeen


def survey(command: SurveyStorage, pool: Pool) -> StorageSurveyed:
    """Return one page, or the files that were named. Raises NotReady without the storage domain, StorageError."""
    backend = pool.backend(command.storage_domain_id)
    proven = backend.locking_is_proven()
    if command.named:
        seen = (_file(pool, backend, named) for named in command.named)
        return StorageSurveyed(
            storage_domain_id=command.storage_domain_id,
            locking_is_proven=proven,
            named=tuple(file for file in seen if file is not None),
        )
    entries, following = _page(pool, backend, command.after)
    return StorageSurveyed(
        storage_domain_id=command.storage_domain_id,
        locking_is_proven=proven,
        volumes=tuple(entry for entry in entries if isinstance(entry, VolumeSeen)),
        strays=tuple(entry for entry in entries if isinstance(entry, StrayFile)),
        broken=tuple(entry for entry in entries if isinstance(entry, BrokenDocument)),
        trash=tuple(entry for entry in entries if isinstance(entry, TrashSeen)),
        following=following,
    )


def _page(pool: Pool, backend: Backend, after: str) -> tuple[list[_Entry], str]:
    """Return what lies behind a cursor, and the next one. Names that are no UTF-8 are shown, and count, as replaced."""
    names = [name for folder in (IMAGES_DIR, TRASH_DIR) for name in backend.names(folder)]
    waiting = sorted((shown, name) for name in names if (shown := _shown(name)) > after)
    trash = {f"{TRASH_DIR}/{trashed.name}": trashed for trashed in backend.trash()}
    entries: list[_Entry] = []
    left = PAGE_BYTES
    for shown, name in waiting:
        if left <= 0:
            return entries, after
        entry = _trashed(name, trash) if name.startswith(f"{TRASH_DIR}/") else _entry(pool, backend, name)
        if entry is not None:
            entries.append(entry)
            left -= _ENTRY_BYTES + 12 * len(shown)
        after = shown
    return entries, ""


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _trashed(name: str, trash: dict[str, Trashed]) -> TrashSeen | None:
    found = trash.get(name)
    return TrashSeen(volume_id=found.volume_id, path=name, deleted_at=found.deleted_at) if found else None


def _entry(pool: Pool, backend: Backend, name: str) -> _Entry | None:
    """Return what one name below `images/` stands for; None for a volume's file, which comes with its metadata."""
    disk, own = DiskId(name.split("/")[1]), name.rpartition("/")[2]
    stem, _, suffix = own.rpartition(".")
    if is_uuid(disk) and is_uuid(stem):
        is_document = suffix == "json"
        try:
            known = backend.load(disk, VolumeId(stem))
        except LivesnapError as broken:
            return BrokenDocument(path=name, problem=broken.message) if is_document else None
        if known is not None and is_document:
            return _volume(pool, backend, known)
        if known is not None and known.volume.path == name:
            return None
    looks = backend.looks(name, Format.QCOW2)
    is_temporary = own.startswith(".") and suffix == "tmp"
    return StrayFile(file=_seen(pool, _shown(name), looks), is_temporary=is_temporary) if looks else None


def _volume(pool: Pool, backend: Backend, known: VolumeMetadata) -> VolumeSeen:
    own = known.volume
    metadata = MetadataSeen(
        volume_id=own.volume_id,
        disk_id=known.disk_id,
        vm_id=known.vm_id,
        path=own.path,
        format=own.format.value,
        parent_id=known.parent.volume_id if known.parent else None,
        snapshot_id=known.snapshot_id,
        size_bytes=known.size_bytes,
        generation=known.generation,
        is_deleted=known.state is VolumeState.DELETED,
        is_illegal=known.legality is Legality.ILLEGAL,
        is_created=known.origin is Origin.CREATED,
        is_immutable=known.immutable,
    )
    return VolumeSeen(metadata=metadata, file=_file(pool, backend, NamedFile(path=own.path, format=own.format.value)))


def _file(pool: Pool, backend: Backend, named: NamedFile) -> FileSeen | None:
    looks = backend.looks(named.path, Format(named.format))
    return _seen(pool, named.path, looks) if looks else None


def _seen(pool: Pool, path: str, looks: Looks) -> FileSeen:
    backing = looks.backing
    place = pool.locate(backing.path) if backing else None
    spot = Spot(storage_domain_id=place.storage_domain_id, path=place.path) if place else None
    if backing and spot is None:
        spot = Spot(storage_domain_id=None, path=backing.path)
    return FileSeen(
        path=path,
        stored_bytes=looks.stored_bytes,
        modified_at=looks.modified_at,
        is_locked=looks.is_locked,
        is_empty=looks.is_empty,
        size_bytes=looks.size_bytes,
        backing=spot,
        backing_format=backing.format.value if backing else "",
        problem=_shown(looks.problem),  # it may quote the name
    )
