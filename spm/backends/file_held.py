"""A file that nobody can open while we hold it, and the trash, into which only such a file is moved."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from common import logs
from common.errors import HeaderRefused, StorageError
from common.ids import VolumeId, require_uuid
from common.images import qcow2
from common.images.files import sync_folder
from common.images.layout import TRASH_DIR
from common.images.locks import image_lock
from common.messaging.messages import Format
from spm.backends.base import Holds, Trashed

_log = logs.get()
_TIME = "%Y%m%dT%H%M%SZ"


class HeldFile:
    """A file whose image lock we hold by an open descriptor."""

    def __init__(
        self, place: tuple[Path, Path], fd: int, volume: tuple[VolumeId, Format], may_change: Callable[[], None]
    ) -> None:
        """Keep root and path, the descriptor that holds the lock, the volume's id and format."""
        self._root, self._path = place
        self._fd = fd
        self._volume_id, self._format = volume
        self._may_change = may_change

    @property
    def fd(self) -> int:
        """Return the descriptor that holds the lock."""
        return self._fd

    def is_empty(self) -> bool:
        """Tell whether it is proven to hold no guest data of its own: never for raw, or a header that we refuse."""
        if self._format is Format.RAW:
            return False
        try:
            return qcow2.is_empty(self._fd)
        except HeaderRefused as error:
            _log.warning("volume.unreadable", path=str(self._path), seen=error.message)
            return False

    def to_trash(self, deleted_at: datetime, holds: Holds) -> Trashed:
        """Move it to the trash with the lock held. A crash leaves it in its place or in the trash, never in both."""
        name = f"{self._volume_id}.{deleted_at.astimezone(UTC).strftime(_TIME)}.{holds}.{self._format}"
        folder = self._root / TRASH_DIR / self._path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        self._require_same()
        target = folder / name
        if os.path.lexists(target):
            raise StorageError("volume_exists", f"{target} is there already; {self._path} is left in its place")
        self._may_change()
        os.rename(self._path, target)
        sync_folder(folder)
        sync_folder(self._path.parent)
        sync_folder(folder.parent)
        return Trashed(
            name=f"{folder.name}/{name}",
            volume_id=self._volume_id,
            format=self._format,
            deleted_at=deleted_at,
            holds=holds,
        )

    def remove(self) -> None:
        """Remove it for good with the lock held."""
        self._require_same()
        self._may_change()
        self._path.unlink()
        sync_folder(self._path.parent)

    def _require_same(self) -> None:
        """Make sure that the name still means the file that we have locked."""
        if not os.path.samestat(os.fstat(self._fd), self._path.lstat()):
            raise StorageError("volume_in_use", f"{self._path} was replaced while we held the file that it named")


@contextmanager
def volume_lock(path: Path) -> Iterator[int | None]:
    """Hold the image lock, and tell a missing file from every other error."""
    try:
        with image_lock(path) as fd:
            yield fd
    except FileNotFoundError as error:
        raise StorageError("volume_not_found", f"{error.filename or path} is not there") from None


def read_name(path: Path) -> Trashed | None:
    """Return what the name of a file in the trash says; None for one that is not ours."""
    try:
        volume_id, at, word, suffix = path.name.split(".")
        require_uuid(volume_id)
        holds = Holds(word)
        image_format, deleted_at = Format(suffix), datetime.strptime(at, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Trashed(
        name=f"{path.parent.name}/{path.name}",
        volume_id=VolumeId(volume_id),
        format=image_format,
        deleted_at=deleted_at,
        holds=holds,
    )
