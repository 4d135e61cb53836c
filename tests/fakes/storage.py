"""A storage domain in memory: files with parents and contents, and the locks of whoever has them open."""

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import NotReady, StorageError
from common.ids import DiskId, StorageDomainId
from common.images.chain import ChainFile
from common.messaging.messages import Format, VolumeAt
from hostagent.ports import Access, QemuUser

ROOT = "/srv/storage"


@dataclass(slots=True)
class FakeFile:
    """One volume. `is_full`: the next write to it fails with ENOSPC; `is_known`: there is metadata of it."""

    parent: str = ""
    has_data: bool = False
    writes: int = 0
    snapshots: int = 0
    is_legal: bool = True
    is_known: bool = True
    is_full: bool = False
    qemu_may_open: bool = True
    bitmaps: int = 0


class FakeStorage:
    """One mounted storage domain. `open_paths` names the files that some QEMU has open, `leaves` those it writes to."""

    def __init__(
        self, storage_domain_id: StorageDomainId, open_paths: Callable[[], set[str]], leaves: Callable[[], set[str]]
    ) -> None:
        self.files: dict[str, FakeFile] = {}
        self.tombstones: set[str] = set()
        self.is_mounted = True
        self.folders_are_open = True
        self.room_bytes = 1 << 40
        self._id = storage_domain_id
        self._open_paths = open_paths
        self._leaves = leaves

    def path_of(self, volume: VolumeAt) -> str:
        if volume.storage_domain_id != self._id:
            raise StorageError("storage_domain_unknown", f"no storage domain {volume.storage_domain_id} here")
        if not self.is_mounted:
            raise NotReady("storage_unavailable", f"storage domain {self._id} is not mounted")
        return f"{ROOT}/{volume.path}"

    def locate(self, path: str) -> tuple[StorageDomainId, str] | None:
        inside = path.startswith(f"{ROOT}/") and self.is_mounted
        return (self._id, path.removeprefix(f"{ROOT}/")) if inside else None

    def is_encrypted(self, path: str) -> bool:
        return False

    def check_new_volume(self, new: VolumeAt, old: VolumeAt) -> int:
        file = self.files.get(self.path_of(new))
        if file is None and self.path_of(new) in self.tombstones:
            raise StorageError("volume_deleted", f"{new.path} was deleted")
        if file is None:
            raise StorageError("volume_not_found", f"no file {new.path}")
        if not file.is_known:
            raise StorageError("volume_not_found", f"{new.path} has no metadata")
        if not file.is_legal:
            raise StorageError("volume_deleted", f"{new.path} is marked illegal")
        if file.parent != self.path_of(old):
            raise StorageError("chain_unexpected", f"{new.path} is above {file.parent}")
        if file.has_data:
            raise StorageError("volume_not_empty", f"{new.path} holds data")
        return 327680

    def exists(self, volume: VolumeAt) -> bool:
        return self.path_of(volume) in self.files

    def check_kept_volume(self, kept: VolumeAt, disk: DiskId) -> None:
        file = self.files.get(self.path_of(kept))
        if file is None:
            raise StorageError("volume_not_found", f"no file {kept.path}")
        if not file.is_legal:
            raise StorageError("volume_deleted", f"{kept.path} is marked illegal")
        self.chain(kept)

    def require_access(self, volume: VolumeAt, user: QemuUser) -> Access:
        if not self.files[self.path_of(volume)].qemu_may_open:
            raise StorageError("volume_permission", f"{user} may not open {volume.path}")
        return Access(how=f"opened read-write as {user}")

    def require_way(self, volume: VolumeAt, user: QemuUser) -> None:
        if not self.folders_are_open:
            raise StorageError("volume_permission", f"{user} may not open {volume.path}")

    def chain(self, leaf: VolumeAt) -> tuple[ChainFile, ...]:
        found, path = [], self.path_of(leaf)
        while path:
            if path not in self.files:
                raise StorageError("volume_not_found", f"{path} is not there")
            found.append(ChainFile(path=path, format=Format.QCOW2, bitmaps=self.files[path].bitmaps))
            path = self.files[path].parent
        return tuple(found)

    def free_bytes(self, storage_domain_id: StorageDomainId) -> int:
        return self.room_bytes

    def internal_snapshots(self, volume: VolumeAt) -> int:
        file = self.files.get(self.path_of(volume))
        return file.snapshots if file else 0

    def image_state(self, path: str) -> str:
        """Return what the agent's `image_state` does: another word after every write, '' while it is in use."""
        return "" if path in self._open_paths() else f"after {self.files[path].writes} writes"

    def is_locked(self, volume: VolumeAt) -> bool:
        path = self.path_of(volume)
        return path in self.files and path in self._open_paths()

    def is_written(self, volume: VolumeAt) -> bool:
        return self.path_of(volume) in self._leaves()
