"""The storage domains as this host has them mounted: paths, checks of a new volume, and the host's own lock there.

Whatever is below a mount point is believed only after `livesnap.json` there has named the storage domain, so that a
missing or wrong mount is an error and never an empty folder.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from common import logs
from common.errors import HeaderRefused, LivesnapError, NotReady, StorageError
from common.ids import DiskId, HostId, StorageDomainId
from common.images import chain, layout, locks, metadata, qcow2
from common.images.backing import chain_files
from common.images.chain import ChainFile
from common.images.files import storage_errors
from common.images.identity import read_identity, require_identity
from common.messaging.messages import Format, VolumeAt
from common.messaging.reports import MountReport
from common.units import whole_sectors
from hostagent import access
from hostagent.ports import Access, QemuUser


class MountedStorage:
    """The real `Storage` of hostagent/ports.py, and what the host reports of its mounts."""

    def __init__(self, mounts: Mapping[str, Path], host_id: HostId) -> None:
        """Take the settings' names and mount points; nothing is read before it is needed."""
        self._mounts = {name: root.absolute() for name, root in mounts.items()}
        self._host_id = host_id
        self._roots: dict[StorageDomainId, Path] = {}
        self._host_locks: dict[StorageDomainId, int] = {}
        self._lock = threading.Lock()
        self._log = logs.get()

    # ---- the port -----------------------------------------------------------------------------------------------

    def path_of(self, volume: VolumeAt) -> str:
        """Return the volume's absolute path on this host.

        Raises NotReady(storage_unavailable) on a missing or wrong mount, StorageError(storage_domain_unknown) when the
        settings have no such storage domain, StorageError(volume_not_found) for a path that a link leads out of it.
        """
        root = self._root_of(volume.storage_domain_id)
        path = root / volume.path
        if not _is_below(os.path.dirname(path), os.path.realpath(root)):
            raise StorageError("volume_not_found", f"volume {volume.volume_id}: {path} leads out of {root}")
        return str(path)

    def locate(self, path: str) -> tuple[StorageDomainId, str] | None:
        """Return storage domain and relative path of an absolute path, None when it lies below none.

        The path must name the mount point as the settings do: of another name for the same folder QEMU and we would
        disagree about what a volume's path is. A base that libvirt found in a header is `.../images/x/../../y` to it,
        and after a merge such a name is a leaf's: it is located by its plain name, if that is the same file.
        """
        if not self._roots:
            self.mounts()
        plain = os.path.normpath(path)
        if not path.startswith("/") or (plain != path and "/../" not in path):
            return None
        if os.path.realpath(plain) != os.path.realpath(path):
            return None
        for storage_domain_id, root in self._roots.items():
            below = os.path.join(root, "")
            if plain.startswith(below) and _is_below(plain, os.path.realpath(root)):
                return storage_domain_id, plain.removeprefix(below)
        return None

    def is_encrypted(self, path: str) -> bool:
        """Tell whether the header of the qcow2 image at that absolute path names a crypt method.

        False for one that cannot be read: that alone is no reason to leave a disk out, and the SPM looks again.
        """
        try:
            return qcow2.is_encrypted(Path(path))
        except (HeaderRefused, OSError) as error:
            self._log.info("header_unread", path=path, seen=str(error))
            return False

    def check_new_volume(self, new: VolumeAt, old: VolumeAt) -> int:
        """Return the offset behind which its data will be written; raise unless `new` may become the leaf above `old`.

        libvirt and QEMU accept anything here: a wrong or no backing file, another size, data (measured). So: metadata
        that says legal, an empty qcow2 directly above exactly `old`, of the same virtual size. Raises StorageError,
        HeaderRefused, NotReady.
        """
        new_path, old_path = Path(self.path_of(new)), Path(self.path_of(old))
        self._require_legal(new, old, new_path)
        with storage_errors(f"reading volume {new.volume_id}"):
            try:
                header, empty, length = _read(new_path)
            except FileNotFoundError:
                raise StorageError("volume_not_found", f"volume {new.volume_id}: no file {new_path}") from None
            size = _virtual_size(old_path, old.format)
            backing = chain.resolve(str(new_path), header.backing_name)
            if not header.backing_name or os.path.realpath(backing) != os.path.realpath(old_path):
                seen = header.backing_name or "none"
                raise StorageError("chain_unexpected", f"{new_path} has backing file {seen}, not {old_path}")
        if header.backing_format != old.format:
            raise StorageError("chain_unexpected", f"{new_path} takes its base for {header.backing_format!r}")
        if header.size_bytes != size:
            raise StorageError("chain_unexpected", f"{new_path} is {header.size_bytes} bytes, {old_path} is {size}")
        if not empty:
            raise StorageError("volume_not_empty", f"{new_path} holds data already")
        # QEMU appends whole clusters, and a table that says where data lies comes before the first data.
        return (-(-length // header.cluster_bytes) + 1) * header.cluster_bytes

    def _require_legal(self, new: VolumeAt, old: VolumeAt, new_path: Path) -> None:
        # Wherever it lies: an adopted volume's is not beside its file.
        document = metadata.find(self._roots[new.storage_domain_id], new)
        if document is None:
            raise StorageError("volume_not_found", f"volume {new.volume_id} at {new_path} has no metadata")
        _require_usable(document)
        if document.volume != new or document.parent != old:
            raise StorageError("chain_unexpected", f"metadata of volume {new.volume_id} is of another volume or parent")

    def exists(self, volume: VolumeAt) -> bool:
        """Tell whether a file is there, whatever the metadata says. Raises StorageError where it cannot be told."""
        path = Path(self.path_of(volume))
        with storage_errors(f"looking for {path}"):
            try:
                path.lstat()
            except FileNotFoundError:
                return False
            return True

    def check_kept_volume(self, kept: VolumeAt, disk: DiskId) -> None:
        """Raise unless a volume that holds a machine's data may become its leaf again.

        Whose metadata says legal, and whose chain our own parser reads to its end. Raises StorageError, HeaderRefused,
        NotReady.
        """
        path = self.path_of(kept)
        document = metadata.find(self._roots[kept.storage_domain_id], kept, disk)
        if document is None:
            raise StorageError("volume_not_found", f"volume {kept.volume_id} at {path} has no metadata")
        _require_usable(document)
        if document.volume != kept:
            raise StorageError("chain_unexpected", f"volume {kept.volume_id} lies at {document.volume.path}")
        self.chain(kept)

    def require_access(self, volume: VolumeAt, user: QemuUser) -> Access:
        """Return how it was found out that QEMU's user may open the file read-write. Raises StorageError, NotReady."""
        path = Path(self.path_of(volume))
        with storage_errors(f"testing who may open {path}"):
            return access.require_open(path, user)

    def require_way(self, volume: VolumeAt, user: QemuUser) -> None:
        """Raise StorageError(volume_permission) unless QEMU's user may enter the folder of a volume to be made.

        A folder that is missing will get owner and mode of the one above it.
        """
        path = Path(self.path_of(volume))
        with storage_errors(f"testing who may enter the folder of {path}"):
            access.require_way(next(folder for folder in path.parents if folder.is_dir()), user)

    def chain(self, leaf: VolumeAt) -> tuple[ChainFile, ...]:
        """Return every file of the leaf's chain, top first, as the headers name them, read by our own parser.

        A backing file must lie in a storage domain or below a read-only base that the leaf's own has declared (P8).
        Raises HeaderRefused, StorageError, NotReady.
        """
        path = self.path_of(leaf)
        bases = require_identity(self._roots[leaf.storage_domain_id], leaf.storage_domain_id).read_only_bases
        allowed = [os.path.realpath(folder) for folder in (*map(str, self._roots.values()), *bases)]

        def require_allowed(backing: str) -> None:
            if not any(_is_inside(backing, folder) for folder in allowed):
                where = "lies in no storage domain and below no declared read-only base"
                raise HeaderRefused("header_refused", f"backing file {backing} of {path} {where}")

        with storage_errors(f"reading the chain of {path}"):
            return chain_files(path, leaf.format, require_allowed)

    def free_bytes(self, storage_domain_id: StorageDomainId) -> int:
        """Return the room that is left for an unprivileged process: QEMU is one. Raises StorageError, NotReady."""
        root = self._root_of(storage_domain_id)
        with storage_errors(f"asking for the free space of {root}"):
            space = os.statvfs(root)
        return space.f_bavail * space.f_frsize

    def is_locked(self, volume: VolumeAt) -> bool:
        """Tell whether anybody holds QEMU's image lock on the file; nobody does on a file that is not there."""
        return self._is_held(volume, locks.IMAGE)

    def is_written(self, volume: VolumeAt) -> bool:
        """Tell whether some machine, on any host, has the file as its leaf."""
        return self._is_held(volume, locks.WRITING)

    def _is_held(self, volume: VolumeAt, span: locks.Span) -> bool:
        path = Path(self.path_of(volume))
        with storage_errors(f"testing the lock of {path}"):
            try:
                return locks.image_is_locked(path, span)
            except FileNotFoundError:
                return False

    def internal_snapshots(self, volume: VolumeAt) -> int:
        """Return how many snapshots the image itself holds; a raw one has no place for any. Raises StorageError."""
        path = Path(self.path_of(volume))
        if volume.format is Format.RAW:
            return 0
        with storage_errors(f"reading volume {volume.volume_id}"):
            return qcow2.read_header(path).snapshots

    # ---- mounts -------------------------------------------------------------------------------------------------

    def mounts(self) -> tuple[MountReport, ...]:
        """Read every mount anew, hold the host's own lock on each good one, and describe them."""
        with self._lock:
            reports = [self._mount(name, root) for name, root in self._mounts.items()]
            found = {report.storage_domain_id: Path(report.root) for report in reports}
            self._roots = {known: root for known, root in found.items() if known is not None}
        return tuple(reports)

    def close(self) -> None:
        """Let go of the host's own locks; the end of the process does the same."""
        with self._lock:
            for fd in self._host_locks.values():
                os.close(fd)
            self._host_locks.clear()

    def _mount(self, name: str, root: Path) -> MountReport:
        try:
            identity = read_identity(root)
        except NotReady as error:
            return MountReport(storage_domain_id=None, name=name, root=str(root), problem=error.message)
        known = identity.storage_domain_id
        try:
            self._hold_host_lock(known, root)
            with storage_errors(f"asking for the free space of {root}"):
                space = os.statvfs(root)
        except LivesnapError as error:
            return MountReport(storage_domain_id=known, name=name, root=str(root), problem=error.message)
        return MountReport(
            storage_domain_id=known,
            name=name,
            root=str(root),
            free_bytes=space.f_bavail * space.f_frsize,
            total_bytes=space.f_blocks * space.f_frsize,
        )

    def _hold_host_lock(self, storage_domain_id: StorageDomainId, root: Path) -> None:
        """Hold the host's own lock, by which the SPM sees that locks work here and that this host lives.

        Shared: every agent process of the host holds it, and any one of them makes an exclusive test fail.
        """
        if storage_domain_id in self._host_locks:
            return
        path = root / layout.host_lock_path(self._host_id)
        with storage_errors(f"locking {path}"):
            path.parent.mkdir(exist_ok=True)
            fd = locks.lock_file(path, shared=True)
        if fd is None:
            raise StorageError("locking_unproven", f"{path} is locked by somebody who is not an agent of this host")
        self._host_locks[storage_domain_id] = fd
        self._log.info("host_lock_held", path=str(path))

    def _root_of(self, storage_domain_id: StorageDomainId) -> Path:
        if storage_domain_id not in self._roots:
            reports = self.mounts()
            if storage_domain_id not in self._roots:
                raise _unknown(storage_domain_id, reports)
        root = self._roots[storage_domain_id]
        require_identity(root, storage_domain_id)
        return root


def image_state(path: str) -> str:
    """Return a word that changes with every write to an image, '' if it is in use or cannot be read.

    It is opened first, so that NFS asks the server how the file is now.
    """
    try:
        with locks.opened(Path(path), writable=False) as fd:
            status = os.fstat(fd)
            in_use = locks.is_held(fd, locks.IMAGE)
    except (OSError, HeaderRefused) as error:
        logs.get().info("image_state_unknown", path=path, seen=str(error))
        return ""
    return "" if in_use else f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _unknown(storage_domain_id: StorageDomainId, reports: tuple[MountReport, ...]) -> LivesnapError:
    """Tell "not in the settings" from "in the settings, perhaps, but not mounted now"."""
    problems = "; ".join(report.problem for report in reports if report.storage_domain_id is None)
    if problems:
        return NotReady("storage_unavailable", f"storage domain {storage_domain_id} is not mounted here: {problems}")
    return StorageError("storage_domain_unknown", f"no mount in the settings is storage domain {storage_domain_id}")


def _is_below(path: str, real_folder: str) -> bool:
    """Tell whether a path is that folder or leads into it, links followed; the folder's own were followed before."""
    return _is_inside(os.path.realpath(path), real_folder)


def _is_inside(real: str, real_folder: str) -> bool:
    return real == real_folder or real.startswith(os.path.join(real_folder, ""))


def _read(path: Path) -> tuple[qcow2.Header, bool, int]:
    """Return header, emptiness and length of a file."""
    with locks.opened(path, writable=False) as fd:
        return qcow2.parse_header(fd, name=str(path)), qcow2.is_empty(fd), os.fstat(fd).st_size


def _virtual_size(path: Path, image_format: Format) -> int:
    if image_format is Format.RAW:
        return whole_sectors(path.stat().st_size)
    return qcow2.read_header(path).size_bytes


def _require_usable(document: metadata.VolumeMetadata) -> None:
    if document.state is not metadata.VolumeState.EXISTS or document.legality is not metadata.Legality.LEGAL:
        name = document.volume.volume_id
        raise StorageError("volume_deleted", f"volume {name} is {document.state}, {document.legality}")
