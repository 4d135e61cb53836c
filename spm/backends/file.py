"""Volumes as qcow2 files below a folder: a local directory, NFS, any shared POSIX file system.

A file's final name is given by link(2), never by rename(2): an SPM that slept through its successor's reign must not
be able to replace a running machine's file (`protocol.md`, V4).
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath

from common import logs
from common.crashpoints import reach
from common.errors import HeaderRefused
from common.ids import DiskId, HostId, VolumeId, adopted_volume_id, is_uuid, new_id
from common.images import metadata, qemu_img
from common.images.chain import Backing, backing_name
from common.images.files import storage_errors, sync_folder
from common.images.identity import Identity
from common.images.layout import HOSTS_DIR, IMAGES_DIR, TRASH_DIR, host_lock_path, metadata_path, volume_path
from common.images.locks import WHOLE, is_held, opened
from common.images.metadata import VolumeMetadata
from common.images.overlays import Overlays
from common.images.qemu_img import Commit, Image
from common.messaging.messages import Format, VolumeAt
from spm.backends import file_reserve, file_survey
from spm.backends.base import HeldVolume, Looks, Shape, Trashed, Usage
from spm.backends.file_held import HeldFile, read_name, volume_lock
from spm.backends.file_shape import shape_of

_log = logs.get()


class FileBackend:
    """One mounted storage domain. `may_change` raises unless this process may change it now (the lease)."""

    def __init__(self, root: Path, identity: Identity, may_change: Callable[[], None], overlays: Overlays) -> None:
        """Work below `root`, whose identity the caller has checked."""
        self._root = root
        self._identity = identity
        self._may_change = may_change
        self._overlays = overlays

    @property
    def identity(self) -> Identity:
        """Return what the storage domain says it is."""
        return self._identity

    def usage(self) -> Usage:
        """Return the room that an unprivileged process can use: QEMU is one."""
        with storage_errors(f"asking {self._root} for its room"):
            seen = os.statvfs(self._root)
        return Usage(free_bytes=seen.f_bavail * seen.f_frsize, total_bytes=seen.f_blocks * seen.f_frsize)

    def keep_reserve(self) -> None:
        """Set room aside in a file of its own."""
        self._may_change()
        file_reserve.keep(self._root)

    def release_reserve(self) -> None:
        """Give that room back to the file system."""
        self._may_change()
        file_reserve.release(self._root)

    def locking_is_proven(self) -> bool:
        """Tell whether some host's own lock is seen held here."""
        with storage_errors(f"looking at {self._root / HOSTS_DIR}"):
            return any(_is_held(path) for path in sorted((self._root / HOSTS_DIR).glob("*")))

    def is_held_by(self, host: HostId) -> bool:
        """Tell whether that host's own lock is seen held here."""
        path = self._root / host_lock_path(host)
        with storage_errors(f"looking at {path}"):
            return _is_held(path)

    def load(self, disk: DiskId, volume_id: VolumeId) -> VolumeMetadata | None:
        """Return the metadata of a volume of that disk, tombstones included; None if there is none."""
        return metadata.read(self._root / metadata_path(disk, volume_id))

    def find(self, volume: VolumeAt, disk: DiskId | None) -> VolumeMetadata | None:
        """Return a volume's metadata wherever it lies."""
        return metadata.find(self._root, volume, disk)

    def of_disk(self, disk: DiskId) -> tuple[VolumeMetadata, ...]:
        """Return the metadata of every volume of the disk, tombstones included."""
        with storage_errors(f"listing the volumes of disk {disk}"):
            paths = sorted((self._root / IMAGES_DIR / disk).glob("*.json"))
        found = (metadata.read(path) for path in paths if not path.name.startswith("."))
        return tuple(document for document in found if document is not None)

    def store(self, document: VolumeMetadata, *, new: bool = False) -> None:
        """Make the metadata durable; with `new`, volume_exists if there is some already."""
        with storage_errors(f"making the folder of disk {document.disk_id}"):
            self._disk_folder(document.disk_id)
        self._may_change()
        metadata.write(self._root, document, new=new)

    def forget(self, document: VolumeMetadata) -> None:
        """Remove the metadata of a volume that nobody has been told of."""
        path = self._root / metadata.path_of(document)
        self._may_change()
        with storage_errors(f"removing {path}"):
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def exists(self, volume: VolumeAt) -> bool:
        """Tell whether the file is there."""
        with storage_errors(f"looking for {volume.path}"):
            return os.path.lexists(self._root / volume.path)

    def shape(self, volume: VolumeAt) -> Shape:
        """Read a volume's header with our own parser."""
        path = self._inside(volume)
        with storage_errors(f"reading the header of {volume.path}"):
            return shape_of(path, volume.format)

    def names(self, folder: str) -> list[str]:
        """Return the relative path of everything below a folder of the storage domain, sorted."""
        with storage_errors(f"listing {folder}"):
            return file_survey.names_below(self._root, folder)

    def looks(self, path: str, image_format: Format) -> Looks | None:
        """Return what a file shows of itself; None if it is not there, or a link leads out of the storage domain."""
        full = self._root / path
        if self.locate(str(full)) is None:
            return None
        with storage_errors(f"looking at {path}"):
            return file_survey.looks_of(full, image_format)

    def standing_on(self, path: str) -> str:
        """Return the relative path of a file here whose header names that absolute path as its backing file."""
        with storage_errors(f"looking below {self._root} for what stands on {path}"):
            return file_survey.standing_on(self._root, path)

    def make(self, volume: VolumeAt, parent: VolumeAt, shape: Shape) -> bool:
        """Make an empty volume above its parent, durably; False if the file was there (it is left as it is).

        A crash leaves a hidden `.tmp` file, or the finished file without metadata.
        """
        final = self._root / volume.path
        temporary = final.with_name(f".{volume.volume_id}.{new_id()}.tmp")
        with storage_errors(f"making {volume.path}"):
            self._disk_folder(DiskId(final.parent.name))
            try:
                self._make_temporary(temporary, parent, shape)
                reach("spm.create.begun")
                self._may_change()
                os.link(temporary, final)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(final.parent)
        return True

    @contextmanager
    def hold(self, volume: VolumeAt) -> Iterator[HeldVolume | None]:
        """Hold the volume's image lock; None if somebody uses it. Raises volume_not_found for a missing one."""
        path = self._inside(volume)
        with storage_errors(f"holding {volume.path}"), volume_lock(path) as fd:
            yield None if fd is None else self._held(path, fd, volume.volume_id, volume.format)

    def begin_commit(
        self, top: VolumeAt, base: VolumeAt, locks: Sequence[int], *, bytes_per_s: int, ended: Callable[[], object]
    ) -> Commit:
        """Begin to commit a volume into the one below, in a process of its own that holds these locks too."""
        for volume in (top, base):
            self.shape(volume)  # HeaderRefused for one that no tool may open
        self._may_change()
        images = [Image(path=volume.path, format=volume.format) for volume in (top, base)]
        return qemu_img.begin_commit(self._root, *images, locks=locks, bytes_per_s=bytes_per_s, ended=ended)

    def change_backing(self, volume: VolumeAt, parent: VolumeAt) -> None:
        """Let a volume whose lock is held stand on another parent, named relative to it; durable when it returns."""
        path = self._inside(volume)
        self.shape(volume)
        self._may_change()
        image = Image(path=volume.path, format=volume.format)
        qemu_img.change_backing(self._root, image, backing_name(volume.path, parent.path), parent.format)
        with storage_errors(f"syncing {volume.path}"), opened(path, writable=True) as fd:
            os.fsync(fd)

    def path(self, volume: VolumeAt) -> str:
        """Return the absolute path of a volume as it is mounted here."""
        return str(self._root / volume.path)

    def name_volume(self, path: str, image_format: Format) -> VolumeAt:
        """Return the volume at a relative path: one of ours if its metadata is beside it, else its adopted id."""
        own, storage_domain_id = PurePosixPath(path), self._identity.storage_domain_id
        disk, volume_id = DiskId(own.parent.name), VolumeId(own.stem)
        if not (is_uuid(disk) and is_uuid(volume_id) and path == volume_path(disk, volume_id)) or (
            self.load(disk, volume_id) is None
        ):
            volume_id = adopted_volume_id(storage_domain_id, path)
        try:
            return VolumeAt(volume_id=volume_id, storage_domain_id=storage_domain_id, path=path, format=image_format)
        except ValueError as error:
            raise HeaderRefused("header_refused", f"an image below {self._root} cannot be adopted: {error}") from None

    def outside(self, path: str, image_format: Format) -> Backing | None:
        """Return what a file below a declared read-only base stands on."""
        real = os.path.realpath(path)
        if not any(is_below(real, base) for base in self._identity.read_only_bases):
            raise HeaderRefused(
                "header_refused",
                f"backing file {path} lies in no storage domain and below no read-only base of {self._root}",
                hint="Move it into the storage domain, or declare its folder with --read-only-base.",
            )
        with storage_errors(f"reading the header of {path}"):
            return shape_of(Path(real), image_format).backing

    def locate(self, path: str) -> str | None:
        """Return the relative path of an absolute one, links resolved; None if it lies outside."""
        real = os.path.realpath(path)
        return os.path.relpath(real, os.path.realpath(self._root)) if is_below(real, str(self._root)) else None

    def trash(self) -> Iterable[Trashed]:
        """List the trash; files that are not named as ours are left alone."""
        with storage_errors(f"listing {self._root / TRASH_DIR}"):
            found = [read_name(path) for path in sorted((self._root / TRASH_DIR).glob("*/*"))]
        return tuple(trashed for trashed in found if trashed is not None)

    @contextmanager
    def hold_trashed(self, trashed: Trashed) -> Iterator[HeldVolume | None]:
        """Hold the image lock of a trashed volume; None if somebody uses it."""
        path = self._root / TRASH_DIR / trashed.name
        with storage_errors(f"holding {path}"), volume_lock(path) as fd:
            yield None if fd is None else self._held(path, fd, trashed.volume_id, trashed.format)

    def sweep(self, before: datetime) -> int:
        """Remove temporary files that crashed creations left before then. They were never in use: QEMU is only ever
        told final names."""
        swept = 0
        with storage_errors(f"sweeping {self._root / IMAGES_DIR}"):
            for path in (self._root / IMAGES_DIR).glob("*/.*.tmp"):
                if path.lstat().st_mtime < before.timestamp():
                    self._may_change()
                    path.unlink(missing_ok=True)
                    swept += 1
        return swept

    def _held(self, path: Path, fd: int, volume_id: VolumeId, image_format: Format) -> HeldFile:
        return HeldFile((self._root, path), fd, (volume_id, image_format), self._may_change)

    def _inside(self, volume: VolumeAt) -> Path:
        """Return the file's path, after making sure that no link on the way leads out of the storage domain."""
        path = self._root / volume.path
        if self.locate(str(path)) is None:
            raise HeaderRefused("header_refused", f"{path} leads out of its storage domain")
        return path

    def _disk_folder(self, disk: DiskId) -> None:
        folder = self._root / IMAGES_DIR / disk
        if folder.is_dir():
            return
        self._may_change()
        folder.mkdir(exist_ok=True)
        _copy_owner(folder, (self._root / IMAGES_DIR).stat())
        sync_folder(folder.parent)

    def _make_temporary(self, temporary: Path, parent: VolumeAt, shape: Shape) -> None:
        # A header names its parent from where the file finally lies, which is the temporary file's folder too.
        child = temporary.relative_to(self._root).as_posix()
        overlay = qemu_img.Overlay(
            size_bytes=shape.size_bytes,
            backing_name=backing_name(child, parent.path),
            backing_format=parent.format,
            cluster_bytes=shape.cluster_bytes,
            extended_l2=shape.extended_l2,
        )
        self._overlays.create(self._root, child, overlay)
        with opened(temporary, writable=True) as fd:
            _copy_owner(temporary, (self._root / parent.path).stat())
            os.fsync(fd)


def is_below(real: str, folder: str) -> bool:
    """Tell whether a path without links lies below a folder, whose links are resolved here."""
    return real.startswith(os.path.realpath(folder).rstrip("/") + "/")


def _is_held(path: Path) -> bool:
    """Tell whether a host holds its own lock; what is no regular file is no host's lock."""
    if not path.is_file() or path.is_symlink():
        return False
    with opened(path, writable=False) as fd:
        return is_held(fd, WHOLE)


def _copy_owner(path: Path, model: os.stat_result) -> None:
    """Give a new file owner and mode of `model`: right with every dynamic_ownership setting (`protocol.md`, B6)."""
    try:
        os.chown(path, model.st_uid, model.st_gid)
    except OSError as error:
        # Root-squashing NFS, or an SPM without root: the host proves before the freeze that QEMU may open the volume.
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise
        _log.info("volume.owner_kept", path=str(path), wanted=f"{model.st_uid}:{model.st_gid}")
    path.chmod(model.st_mode & 0o777)
