"""What a file says of itself: its header, read by our own parser, as a Shape."""

import os
from pathlib import Path

from common.errors import HeaderRefused, StorageError
from common.images import qcow2
from common.images.chain import names_protocol, resolve
from common.images.locks import opened
from common.messaging.messages import Format
from common.units import KIB, whole_sectors
from spm.backends.base import Backing, Shape

_RAW_CLUSTER = 64 * KIB  # qemu-img's own default, above a raw parent


def shape_of(path: Path, image_format: Format) -> Shape:
    """Return the shape of an image of that format. A raw one has no header: it is raw because our records say so.

    Raises HeaderRefused, StorageError(volume_not_found), OSError.
    """
    try:
        if image_format is Format.RAW:
            return _raw_shape(path)
        header = qcow2.read_header(path)
    except FileNotFoundError:
        raise StorageError("volume_not_found", f"{path} is not there") from None
    return Shape(
        size_bytes=header.size_bytes,
        cluster_bytes=header.cluster_bytes,
        extended_l2=header.extended_l2,
        backing=_backing(path, header),
    )


def _raw_shape(path: Path) -> Shape:
    with opened(path, writable=False) as fd:
        length = os.fstat(fd).st_size
    return Shape(size_bytes=whole_sectors(length), cluster_bytes=_RAW_CLUSTER, extended_l2=False, backing=None)


def _backing(image: Path, header: qcow2.Header) -> Backing | None:
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
