"""Read metadata and headers of volumes; changes nothing."""

from dataclasses import replace

from common.errors import StorageError
from common.images.metadata import VolumeState
from common.messaging.messages import InspectVolumes, VolumeAt, VolumeFound, VolumesInspected
from spm.operations.found import found
from spm.pool import Pool


def inspect_volumes(command: InspectVolumes, pool: Pool) -> VolumesInspected:
    """Return the volumes that exist, with the size that their header gives.

    Raises NotReady, HeaderRefused for an image that no tool may open, StorageError(volume_not_found) for a volume that
    is on record at another place, or whose file is gone.
    """
    volumes = [_inspect(pool, volume) for volume in command.volumes]
    return VolumesInspected(found=tuple(volume for volume in volumes if volume is not None))


def _inspect(pool: Pool, volume: VolumeAt) -> VolumeFound | None:
    backend = pool.backend(volume.storage_domain_id)
    known = backend.find(volume, None)
    if known is None or known.state is VolumeState.DELETED:
        return None
    if known.volume != volume:
        raise StorageError(
            "volume_not_found",
            f"volume {volume.volume_id} is on record at {known.volume.path} as {known.volume.format}, "
            f"not at {volume.path} as {volume.format}",
        )
    return found(replace(known, size_bytes=backend.shape(volume).size_bytes))
