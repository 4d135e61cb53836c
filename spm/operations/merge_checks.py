"""What must be so on storage before a volume is merged into the one below; each rule with its stable code."""

from common.errors import StaleAttempt, StorageError
from common.images.metadata import Legality, VolumeMetadata, VolumeState
from common.messaging.merging import DiskMerge, Way
from spm.backends.base import Backend
from spm.pool import Pool


def current(backend: Backend, disk: DiskMerge, attempt: int) -> VolumeMetadata | None:
    """Return the metadata of the volume that vanishes, None if it has vanished. Raises StaleAttempt, StorageError."""
    known = backend.find(disk.top, disk.disk_id)
    if known is None:
        raise StorageError("volume_not_found", f"volume {disk.top.volume_id} at {disk.top.path} is not on record")
    if attempt < known.generation:
        raise StaleAttempt(
            "attempt_stale",
            f"attempt {known.generation} has acted on volume {disk.top.volume_id}",
            highest=known.generation,
        )
    if known.state is VolumeState.DELETED:
        return None
    if known.volume != disk.top:
        raise StorageError(
            "chain_unexpected", f"volume {disk.top.volume_id} lies at {known.volume.path}, not at {disk.top.path}"
        )
    return known


def require_mergeable(pool: Pool, disk: DiskMerge, known: VolumeMetadata) -> None:
    """Raise StorageError or HeaderRefused unless `top` may be committed into `base`, or discarded, as planned.

    Metadata and header must both say that `top` stands on `base`; nothing else may stand on `base`, or on a `top` that
    is discarded; neither may be immutable.
    """
    backend = pool.backend(disk.base.storage_domain_id)
    base = backend.find(disk.base, disk.disk_id)
    if base is None or base.state is VolumeState.DELETED or base.volume != disk.base:
        raise StorageError("volume_not_found", f"volume {disk.base.volume_id} at {disk.base.path} is not on record")
    shape = backend.shape(disk.top)
    if known.parent != disk.base or shape.backing is None or not pool.same_place(disk.base, shape.backing):
        seen = shape.backing.path if shape.backing else "nothing"
        raise StorageError("chain_unexpected", f"{disk.top.path} stands on {seen}, not on {disk.base.path}")
    discarded = disk.way is Way.DISCARD
    if known.immutable or (base.immutable and not discarded):
        raise StorageError("volume_shared", f"{(known if known.immutable else base).volume.path} is immutable")
    if discarded:
        _require_nothing_on(backend, disk, disk.top.volume_id, except_for=None)
    else:
        _require_nothing_on(backend, disk, disk.base.volume_id, except_for=disk.top.volume_id)
        if base.legality is Legality.ILLEGAL:
            raise StorageError("volume_deleted", f"the deletion of volume {disk.base.volume_id} has begun")


def _require_nothing_on(backend: Backend, disk: DiskMerge, volume: str, *, except_for: str | None) -> None:
    for other in backend.of_disk(disk.disk_id):
        stands = other.parent is not None and other.parent.volume_id == volume and other.state is VolumeState.EXISTS
        if stands and other.volume.volume_id != except_for:
            raise StorageError("volume_shared", f"volume {other.volume.volume_id} stands on {volume} as well")


def require_room(backend: Backend, disk: DiskMerge, *, min_free_bytes: int) -> int:
    """Return how much `top` may hold. Raises StorageError(storage_full) where `base` could not take all of it."""
    looks = backend.looks(disk.top.path, disk.top.format)
    holds = looks.stored_bytes if looks else 0
    free = backend.usage().free_bytes
    if disk.way is not Way.DISCARD and free < holds + min_free_bytes:
        raise StorageError(
            "storage_full",
            f"storage domain {backend.identity.name} has {free} bytes free; merging {disk.top.path} may need {holds}"
            f" above the {min_free_bytes} of the settings",
        )
    return holds
