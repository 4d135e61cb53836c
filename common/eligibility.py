"""Which disks can be snapshotted. Pure: one rule per line, the same for the Manager's answer and the host's check.

Source: RHV technical reference, "shareable disks and Direct LUN disks cannot be snapshotted"; the rest from what
libvirt accepts silently although it must not (it pivots read-only and CD-ROM disks), and from what the header of a
new volume cannot say of the one below (its key, a slice of it), so that the next boot would not find it.
"""

from common.messaging.reports import DiskReport

_DEVICE_CODES = {"lun": "disk_direct_lun", "cdrom": "disk_cdrom", "floppy": "disk_floppy"}
_SOURCE_CODES = {"block": "disk_block_device", "network": "disk_network", "volume": "disk_libvirt_volume"}


def refusal(disk: DiskReport) -> str:
    """Return '' if this disk can be snapshotted, else the stable code that says why not."""
    rules = (
        (disk.device != "disk", _DEVICE_CODES.get(disk.device, "disk_unsupported")),
        (disk.shareable, "disk_shareable"),
        (disk.readonly, "disk_readonly"),
        (disk.transient, "disk_transient"),
        (disk.source_type != "file", _SOURCE_CODES.get(disk.source_type, "disk_unsupported")),
        (disk.encrypted, "disk_encrypted"),
        (disk.sliced, "disk_unsupported"),
        (disk.format not in ("qcow2", "raw"), "disk_format_unsupported"),
        (not disk.source, "disk_empty"),
        (disk.storage_domain_id is None, "disk_outside_storage_domain"),
    )
    return next((code for applies, code in rules if applies), "")


def is_data_disk(disk: DiskReport) -> bool:
    """Tell whether leaving this disk out makes a snapshot partial: there is one in the drive, and it can be written."""
    return disk.device != "cdrom" and not disk.readonly and bool(disk.source or disk.persistent_source)
