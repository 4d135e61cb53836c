"""What an image stands on, read from headers by our own parser only (P8): one file at a time, and the whole chain."""

import os
from collections.abc import Callable
from pathlib import Path

from common.errors import HeaderRefused, StorageError
from common.images import qcow2
from common.images.chain import MAX_DEPTH, Backing, ChainFile, names_protocol, resolve
from common.images.locks import opened
from common.messaging.messages import Format


def backing_of(image: Path, header: qcow2.Header) -> Backing | None:
    """Return the backing file that the header names; refuse names that are no file's, and formats to be guessed."""
    name = header.backing_name
    if not name:
        return None
    if names_protocol(name):
        raise HeaderRefused("header_refused", f"{image} names a backing file by protocol: {name[:200]!r}")
    if header.backing_format not in tuple(Format):
        raise HeaderRefused(
            "header_refused",
            f"{image} gives its backing file {name[:200]!r} the format {header.backing_format!r}",
            hint="Record it with `qemu-img rebase -u -b NAME -F qcow2|raw FILE` while the machine is off.",
        )
    return Backing(path=resolve(str(image), name), format=Format(header.backing_format))


def chain_files(leaf: str, image_format: Format, require_allowed: Callable[[str], None]) -> tuple[ChainFile, ...]:
    """Return every file of a chain, top first, as the headers name them; `require_allowed` raises for a backing file
    that may not be opened, by its name without links. Takes no lock: the images may be in use.

    Raises HeaderRefused for a header that no tool may open, a loop, or more than MAX_DEPTH files,
    StorageError(volume_not_found) for a missing file, and OSError.
    """
    found: list[ChainFile] = []
    seen: set[str] = set()
    below: Backing | None = Backing(path=leaf, format=image_format)
    while below is not None:
        real = os.path.realpath(below.path)
        if real in seen or len(seen) >= MAX_DEPTH:
            raise HeaderRefused("header_refused", f"the chain of {leaf} is a loop or deeper than {MAX_DEPTH} files")
        seen.add(real)
        if found:
            require_allowed(real)
        file, below = _look(Path(real), below.format)
        found.append(file)
    return tuple(found)


def _look(path: Path, image_format: Format) -> tuple[ChainFile, Backing | None]:
    """Read one file's header; a raw file has none, it is raw because the layer above it says so."""
    try:
        with opened(path, writable=False) as fd:
            if image_format is Format.RAW:
                return ChainFile(path=str(path), format=image_format), None
            header = qcow2.parse_header(fd, name=str(path))
    except FileNotFoundError:
        raise StorageError("volume_not_found", f"{path} is not there") from None
    return ChainFile(path=str(path), format=image_format, bitmaps=header.bitmaps), backing_of(path, header)
