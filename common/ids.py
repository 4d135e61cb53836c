"""The names of things: one type per kind of id, and the checks that keep hostile ones out of paths and queues.

Everything that is ours (disks, volumes, snapshots, jobs, steps, storage domains) is a UUID in its usual lower-case
text form; a vm is known by its libvirt UUID. Hosts and pools are named by people, and become parts of queue names.
"""

import re
import uuid
from typing import NewType

VmId = NewType("VmId", str)
DiskId = NewType("DiskId", str)
VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)
StorageDomainId = NewType("StorageDomainId", str)
JobId = NewType("JobId", str)
StepId = NewType("StepId", str)
PoolId = NewType("PoolId", str)
HostId = NewType("HostId", str)

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_TARGET = re.compile(r"[a-z]{2,8}[a-z0-9]{0,8}")


def new_id() -> str:
    """Return a fresh random UUID in text form."""
    return str(uuid.uuid4())


def derived_id(*parts: str) -> str:
    """Return the UUID that always belongs to these parts.

    Used where several processes must agree on an id without talking: a disk is (vm, target), an adopted volume is
    (storage domain, relative path).
    """
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "livesnap:" + "\x00".join(parts)))


def disk_id(vm: VmId, target: str) -> DiskId:
    """Return the id of a vm's disk, known by its target (`vda`)."""
    return DiskId(derived_id("disk", vm, target))


def adopted_volume_id(storage_domain: StorageDomainId, path: str) -> VolumeId:
    """Return the id of an image that livesnap found on a storage domain, known by its relative path."""
    return VolumeId(derived_id("volume", storage_domain, path))


def is_uuid(value: str) -> bool:
    """Tell whether `value` is a UUID in lower-case text form (the only form accepted on the wire)."""
    return _UUID.fullmatch(value) is not None


def require_uuid(*values: str) -> None:
    """Raise ValueError unless every value is a UUID: ids become file names, so nothing else may pass."""
    for value in values:
        if not is_uuid(value):
            raise ValueError(f"not a UUID in lower-case text form: {value[:80]!r}")


def require_name(value: str) -> None:
    """Raise ValueError unless `value` can name a host or a pool (lower-case letters, digits, dot, dash; 1 to 63)."""
    if _NAME.fullmatch(value) is None:
        raise ValueError(f"not a host or pool name (a-z, 0-9, '.', '-', at most 63): {value[:80]!r}")


def require_target(value: str) -> None:
    """Raise ValueError unless `value` looks like a disk target (`vda`, `sdb`, `hdc`)."""
    if _TARGET.fullmatch(value) is None:
        raise ValueError(f"not a disk target such as 'vda': {value[:80]!r}")


def require_relative_path(value: str) -> None:
    """Raise ValueError unless `value` stays below the root it is joined to: no absolute path, `..`, NUL or control."""
    parts = value.split("/")
    if not value or len(value) > 1024 or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a path below a storage domain's root: {value[:80]!r}")
    if _CONTROL.search(value) is not None:
        raise ValueError(f"control character in a path: {value[:80]!r}")
