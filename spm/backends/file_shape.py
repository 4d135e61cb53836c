"""What a file says of itself: its header, read by our own parser, as a Shape."""

import os
from pathlib import Path

from common.errors import StorageError
from common.images import qcow2
from common.images.backing import backing_of
from common.images.locks import opened
from common.messaging.messages import Format
from common.units import KIB, whole_sectors
from spm.backends.base import Shape

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
        backing=backing_of(path, header),
    )


def _raw_shape(path: Path) -> Shape:
    with opened(path, writable=False) as fd:
        length = os.fstat(fd).st_size
    return Shape(size_bytes=whole_sectors(length), cluster_bytes=_RAW_CLUSTER, extended_l2=False, backing=None)
