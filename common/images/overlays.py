"""Empty overlays: the first of a kind is made by qemu-img, others from what it made, with their own parent's name.

Two empty overlays of one size and kind whose names are equally long differ in nothing but the name of the backing file.
Starting qemu-img takes 8 ms for each disk of each snapshot; this takes less than one. What the format is like stays
qemu-img's affair, whatever its version: its own bytes are used, and those of a file that does not hold its name exactly
once are used for no other. A test compares both, byte by byte.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from common import logs
from common.errors import HeaderRefused
from common.images import qemu_img
from common.images.chain import local_name
from common.images.files import storage_errors
from common.images.locks import opened
from common.images.qcow2 import is_empty, parse_header
from common.images.qemu_img import Overlay
from common.units import KIB, MIB

_KINDS: Final = 32
"""Sizes, formats and lengths of names that are remembered."""
_LONGEST: Final = 4 * MIB
"""An overlay of 2 TiB is 0.4 MiB long, nearly all of it zeros. Longer ones are left to qemu-img."""
_BLOCK: Final = 4 * KIB

_log = logs.get()

_Kind = tuple[Overlay, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """An empty overlay as qemu-img made it: its blocks that are not all zeros, by offset, and where the name stands."""

    length: int
    blocks: tuple[tuple[int, bytes], ...]
    name_at: int


class Overlays:
    """Makes overlays. Safe to share between threads; one for each process that makes any."""

    def __init__(self, create: Callable[[Path, str, Overlay], None] = qemu_img.create) -> None:
        """Know no kind yet; `create` makes the first of each."""
        self._create = create
        self._models: dict[_Kind, _Model] = {}
        self._lock = threading.Lock()

    def create(self, root: Path, path: str, overlay: Overlay) -> None:
        """Make the file `path` (relative to the storage domain's root) as an empty overlay; it must not be in use.

        Raises StorageError as `qemu_img.create` does. A crash or an error leaves no file or a partial one: callers use
        a temporary name, and sync it.
        """
        name = os.fsencode(local_name(overlay.backing_name))
        kind = (replace(overlay, backing_name=""), len(name))
        with self._lock:
            model = self._models.get(kind)
        if model is not None:
            _write(root / path, model, name)
            return
        self._create(root, path, overlay)
        learned = _read(root / path, overlay, name)
        if learned is not None:
            with self._lock:
                self._models[kind] = learned
                while len(self._models) > _KINDS:
                    del self._models[next(iter(self._models))]  # the oldest


def _read(path: Path, overlay: Overlay, name: bytes) -> _Model | None:
    """Return what may be used again of a file that qemu-img has just made; None for what is not as it should be.

    What is learned here serves other vms: so it must be what was ordered, and empty, whoever may write to the folder.
    """
    with storage_errors(f"reading {path}"), opened(path, writable=False) as fd:
        length = os.fstat(fd).st_size
        if length > _LONGEST:
            return None
        content = os.pread(fd, length, 0)
        try:
            header, empty = parse_header(fd, name=str(path)), is_empty(fd)
        except HeaderRefused as odd:  # a name that is no text, say: whoever is to use the file refuses it too
            _log.info("overlay.not_learned", path=str(path), seen=str(odd))
            return None
    seen = Overlay(
        size_bytes=header.size_bytes,
        backing_name=header.backing_name,
        backing_format=overlay.backing_format,
        cluster_bytes=header.cluster_bytes,
        extended_l2=header.extended_l2,
    )
    ordered = replace(overlay, backing_name=local_name(overlay.backing_name))
    is_whole = len(content) == length and content.count(name) == 1
    if seen != ordered or header.backing_format != overlay.backing_format or not (empty and is_whole):
        _log.info("overlay.not_learned", path=str(path), seen=seen, empty=empty)
        return None
    starts = range(0, length, _BLOCK)
    blocks = tuple((start, block) for start in starts if any(block := content[start : start + _BLOCK]))
    return _Model(length=length, blocks=blocks, name_at=content.index(name))


def _write(path: Path, model: _Model, name: bytes) -> None:
    with storage_errors(f"making {path}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, model.length)  # as qemu-img does: a full file system says so here
            for start, block in model.blocks:
                _write_all(fd, block, start)
            _write_all(fd, name, model.name_at)
        finally:
            os.close(fd)


def _write_all(fd: int, content: bytes, start: int) -> None:
    while content:
        written = os.pwrite(fd, content, start)
        content, start = content[written:], start + written
