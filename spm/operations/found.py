"""A volume's metadata as an answer shows it."""

from common.images.metadata import VolumeMetadata
from common.messaging.messages import VolumeFound


def found(metadata: VolumeMetadata) -> VolumeFound:
    """Return what the Manager is told of a volume."""
    return VolumeFound(
        volume=metadata.volume,
        disk_id=metadata.disk_id,
        parent_id=metadata.parent.volume_id if metadata.parent else None,
        size_bytes=metadata.size_bytes,
        immutable=metadata.immutable,
        origin=metadata.origin.value,
    )
