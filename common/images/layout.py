"""Where things lie below a storage domain's root (DESIGN: "Storage domain on disk"). Pure: paths as text, no I/O."""

from common.ids import DiskId, HostId, VolumeId

IDENTITY_FILE = "livesnap.json"
LEASE_FILE = "spm.lease"
RESERVE_FILE = "spm.reserve"
HOSTS_DIR = "hosts"
IMAGES_DIR = "images"
TRASH_DIR = "trash"


def volume_path(disk: DiskId, volume: VolumeId) -> str:
    """Return the relative path of a volume that livesnap makes."""
    return f"{IMAGES_DIR}/{disk}/{volume}.qcow2"


def metadata_path(disk: DiskId, volume: VolumeId) -> str:
    """Return the relative path of a volume's metadata, adopted volumes included; it stays as the tombstone."""
    return f"{IMAGES_DIR}/{disk}/{volume}.json"


def host_lock_path(host: HostId) -> str:
    """Return the relative path of the file that a host keeps locked while its agent lives."""
    return f"{HOSTS_DIR}/{host}"
