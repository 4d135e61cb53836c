"""`livesnap.json`: what makes a folder a storage domain. Every process checks it below its own mount point before it
uses a path there, so that a missing or wrong mount is an error and never a new, empty folder.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.errors import NotReady
from common.ids import PoolId, StorageDomainId, is_uuid, require_name
from common.images.files import write_whole
from common.images.layout import IDENTITY_FILE

FORMAT_VERSION = 1
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A storage domain's own description. `read_only_bases` are absolute paths of folders outside it whose images may
    stand below ours as backing files, and are never written to."""

    storage_domain_id: StorageDomainId
    pool: PoolId
    name: str
    read_only_bases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse malformed ids and bases that are not absolute."""
        if not is_uuid(self.storage_domain_id):
            raise ValueError(f"storage domain id {self.storage_domain_id!r}")
        require_name(self.pool)
        if any(not base.startswith("/") for base in self.read_only_bases):
            raise ValueError(f"read-only bases must be absolute paths: {self.read_only_bases!r}")


def read_identity(root: Path) -> Identity:
    """Return what the mounted storage domain says it is. Raises NotReady(storage_unavailable) if there is none."""
    path = f"{root}/{IDENTITY_FILE}"
    try:
        # Opened each time, so that NFS asks the server: a snapshot does so ten times for each disk.
        with open(path, "rb", buffering=0) as file:
            return _identity_in(file.read(_MAX_BYTES))
    except FileNotFoundError:
        raise NotReady("storage_unavailable", f"no {IDENTITY_FILE} below {root}: it is not mounted there") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise NotReady("storage_unavailable", f"{path} cannot be read: {problem}") from error


@lru_cache(maxsize=64)
def _identity_in(text: bytes) -> Identity:
    """Parse what is nearly always the same. Raises ValueError, KeyError, TypeError, RecursionError."""
    document = json.loads(text)
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {document['format_version']!r}, this livesnap knows {FORMAT_VERSION}")
    return Identity(
        storage_domain_id=StorageDomainId(str(document["id"])),
        pool=PoolId(str(document["pool"])),
        name=str(document["name"]),
        read_only_bases=tuple(str(base) for base in document["read_only_bases"]),
    )


def require_identity(root: Path, expected: StorageDomainId) -> Identity:
    """Return the identity if it is the expected one, else raise NotReady(storage_unavailable)."""
    identity = read_identity(root)
    if identity.storage_domain_id != expected:
        raise NotReady(
            "storage_unavailable", f"below {root} lies storage domain {identity.storage_domain_id}, not {expected}"
        )
    return identity


def write_identity(root: Path, identity: Identity) -> None:
    """Write it durably; only the registration of a storage domain does so. Raises OSError."""
    document = {
        "format_version": FORMAT_VERSION,
        "id": identity.storage_domain_id,
        "pool": identity.pool,
        "name": identity.name,
        "read_only_bases": list(identity.read_only_bases),
    }
    write_whole(root / IDENTITY_FILE, json.dumps(document, indent=1) + "\n")
