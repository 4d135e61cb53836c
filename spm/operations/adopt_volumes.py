"""Give volumes that machines use the metadata that they should have; no file is moved or written to.

The Manager asks for it where a machine was found on a volume that nobody here knows (somebody else took a snapshot),
that lost its metadata, or that an interrupted deletion left marked illegal. Headers are read by our own parser only.
"""

from dataclasses import replace

from common import logs
from common.errors import HeaderRefused, RequestRefused, StaleAttempt, StorageError
from common.ids import VmId
from common.images.chain import Backing
from common.images.layout import volume_path
from common.images.metadata import Legality, Origin, VolumeMetadata, VolumeState
from common.messaging.messages import Adoption, AdoptVolumes, VolumeAt, VolumesInspected
from spm.backends.base import Backend, Shape
from spm.operations.found import found
from spm.pool import Pool

_log = logs.get()


def adopt_volumes(command: AdoptVolumes, attempt: int, pool: Pool) -> VolumesInspected:
    """Make the metadata of these volumes, base first, say that they are there, legal, and above their parents.

    Raises StaleAttempt and NotReady (nothing touched), HeaderRefused for a header that names another parent,
    StorageError(volume_deleted) below a tombstone, (volume_not_found) for a missing file. A crash leaves the first
    volumes done; doing it again does the rest.
    """
    with pool.vm_lock(command.vm_id), pool.adopting:
        for wanted in command.volumes:
            _require_current(pool.backend(wanted.volume.storage_domain_id), wanted, attempt)
        done = [_adopt(pool, wanted, command.vm_id, attempt) for wanted in command.volumes]
    return VolumesInspected(found=tuple(found(metadata) for metadata in done))


def _require_current(backend: Backend, wanted: Adoption, attempt: int) -> None:
    known = backend.find(wanted.volume, wanted.disk_id)
    if known is None:
        return
    name = wanted.volume.volume_id
    if attempt < known.generation and known.disk_id == wanted.disk_id:
        raise StaleAttempt("attempt_stale", f"attempt {known.generation} has acted on {name}", highest=known.generation)
    if known.state is VolumeState.DELETED:
        raise StorageError("volume_deleted", f"volume {name} is deleted")
    if known.volume != wanted.volume:
        raise RequestRefused("request_malformed", f"volume {name} lies at {known.volume.path}")


def _adopt(pool: Pool, wanted: Adoption, vm: VmId, attempt: int) -> VolumeMetadata:
    backend = pool.backend(wanted.volume.storage_domain_id)
    shape = backend.shape(wanted.volume)
    _require_parent(pool, wanted, shape)
    known = backend.find(wanted.volume, wanted.disk_id)
    if known is None:
        return _make(backend, wanted, shape, (vm, attempt))
    told = replace(known, legality=Legality.LEGAL, snapshot_id=wanted.snapshot_id or known.snapshot_id)
    if known.disk_id == wanted.disk_id:
        told = replace(told, generation=attempt)
    if told != known:
        backend.store(told)
        _log.info("volume.legal", volume=known.volume.volume_id, was=known.legality.value)
    return told


def _require_parent(pool: Pool, wanted: Adoption, shape: Shape) -> None:
    """Refuse a volume whose header does not stand on exactly the parent that was named, in the same format."""
    match wanted.parent, shape.backing:
        case None, None:
            fits = True
        case VolumeAt() as parent, Backing() as backing:
            fits = backing.format is parent.format and pool.same_place(parent, backing)
        case _:
            fits = False
    if not fits:
        seen = shape.backing.path if shape.backing else "no backing file"
        expected = wanted.parent.path if wanted.parent else "none"
        raise HeaderRefused(
            "header_refused", f"the header of {wanted.volume.path} names {seen}; it should stand on {expected}"
        )


def _make(backend: Backend, wanted: Adoption, shape: Shape, by: tuple[VmId, int]) -> VolumeMetadata:
    """Write metadata where there is none. A volume at the place that livesnap itself would give it was made by it."""
    vm, attempt = by
    own = wanted.volume.path == volume_path(wanted.disk_id, wanted.volume.volume_id)
    if not own and backend.name_volume(wanted.volume.path, wanted.volume.format) != wanted.volume:
        raise RequestRefused("request_malformed", f"{wanted.volume.path} is not adopted as {wanted.volume.volume_id}")
    metadata = VolumeMetadata(
        volume=wanted.volume,
        disk_id=wanted.disk_id,
        vm_id=vm,
        parent=wanted.parent,
        size_bytes=shape.size_bytes,
        generation=attempt,
        created_attempt=attempt,
        origin=Origin.CREATED if own else Origin.ADOPTED,
        snapshot_id=wanted.snapshot_id,
    )
    backend.store(metadata, new=True)
    _log.info("volume.adopted", volume=wanted.volume.volume_id, disk=wanted.disk_id, path=wanted.volume.path)
    return metadata
