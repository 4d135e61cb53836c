"""What lies below a storage domain's root, read only: names, and what one file shows of itself."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from common.errors import HeaderRefused
from common.images import qcow2
from common.images.backing import backing_of
from common.images.chain import resolve
from common.images.layout import TRASH_DIR
from common.images.locks import IMAGE, is_held, opened
from common.messaging.messages import Format
from common.units import whole_sectors
from spm.backends.base import Looks

MAX_DEPTH = 4
"""Folders below `images/` that are looked into: livesnap makes one level, and a survey must end."""


def names_below(root: Path, folder: str) -> list[str]:
    """Return the relative path of everything below `root/folder` that is no folder, sorted. Raises OSError."""
    return sorted(_walk(root, folder, MAX_DEPTH))


def _walk(root: Path, folder: str, depth: int) -> Iterator[str]:
    try:
        entries = list(os.scandir(root / folder))
    except FileNotFoundError:
        return  # removed by somebody while we looked
    for entry in entries:
        inside = f"{folder}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if depth:
                yield from _walk(root, inside, depth - 1)
        else:
            yield inside


def standing_on(root: Path, path: str) -> str:
    """Return the relative path of a file anywhere below `root` whose header names the file `path` as its backing file;
    '' if there is none. Neither the trash nor links are followed. Raises OSError.

    For machines and clones that livesnap knows nothing of. Of a header that we refuse, nothing can be said.
    """
    wanted = os.path.realpath(path)
    for folder, folders, names in os.walk(root):
        if folder == str(root):
            folders[:] = [name for name in folders if name != TRASH_DIR]
        for name in names:
            if _backing(Path(folder, name)) == wanted:
                return str(Path(folder, name).relative_to(root))
    return ""


def _backing(image: Path) -> str:
    """Return where the backing file of an image lies, links resolved; '' for what is no image, or stands on nothing."""
    try:
        if image.is_symlink() or not image.is_file():
            return ""
        with opened(image, writable=False) as fd:
            if os.pread(fd, len(qcow2.MAGIC), 0) != qcow2.MAGIC:
                return ""
            name = qcow2.parse_header(fd, name=str(image)).backing_name
    except (FileNotFoundError, HeaderRefused):
        return ""
    return os.path.realpath(resolve(str(image), name)) if name else ""


def looks_of(path: Path, image_format: Format) -> Looks | None:
    """Return what a file shows, None if it is not there. Takes no lock and lets no tool open it (P8). Raises OSError.

    For a file of which nobody knows the format, `qcow2` only asks whether its header reads as one.
    """
    try:
        with opened(path, writable=False) as fd:
            status = os.fstat(fd)
            seen = Looks(
                stored_bytes=status.st_size,
                modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
                is_locked=is_held(fd, IMAGE),
            )
            return _with_header(path, fd, image_format, seen)
    except FileNotFoundError:
        return None
    except HeaderRefused as refused:
        return Looks(
            stored_bytes=0, modified_at=datetime.fromtimestamp(0, UTC), is_locked=False, problem=refused.message
        )


def _with_header(path: Path, fd: int, image_format: Format, seen: Looks) -> Looks:
    if image_format is Format.RAW:
        return replace(seen, size_bytes=whole_sectors(seen.stored_bytes))
    try:
        header = qcow2.parse_header(fd, name=str(path))
        backing = backing_of(path, header)
        return replace(seen, is_empty=qcow2.is_empty(fd), size_bytes=header.size_bytes, backing=backing)
    except HeaderRefused as refused:
        return replace(seen, problem=refused.message)
