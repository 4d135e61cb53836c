"""Which disks can be snapshotted. Pure: one rule per line, the same for the Manager's answer and the host's check.

Source: RHV technical reference, "shareable disks and Direct LUN disks cannot be snapshotted"; the rest from what
libvirt accepts silently although it must not (it pivots read-only and CD-ROM disks).
"""

from common.messaging.reports import DiskReport

_DEVICE_CODES = {"lun": "disk_direct_lun", "cdrom": "disk_cdrom", "floppy": "disk_floppy"}
_SOURCE_CODES = {"block": "disk_block_device", "network": "disk_network", "volume": "disk_libvirt_volume"}


def refusal(disk: DiskReport) -> str:
    """Return '' if this disk can be snapshotted, else the stable code that says why not."""
    if disk.device != "disk":
        return _DEVICE_CODES.get(disk.device, "disk_unsupported")
    if disk.shareable:
        return "disk_shareable"
    if disk.readonly:
        return "disk_readonly"
    if disk.transient:
        return "disk_transient"
    if disk.source_type != "file":
        return _SOURCE_CODES.get(disk.source_type, "disk_unsupported")
    if disk.encrypted:
        return "disk_encrypted"
    if disk.format not in ("qcow2", "raw"):
        return "disk_format_unsupported"
    if not disk.source:
        return "disk_empty"
    if disk.storage_domain_id is None:
        return "disk_outside_storage_domain"
    return ""


def is_data_disk(disk: DiskReport) -> bool:
    """Tell whether leaving this disk out makes a snapshot partial (a writable disk of the machine)."""
    return disk.device in ("disk", "lun") and not disk.readonly
