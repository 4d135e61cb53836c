"""A qcow2 header, read by our own code: no tool opens an image before this module has accepted it (P8).

Source of every field: QEMU's docs/interop/qcow2.txt. Only the first cluster is read for the header, and a bounded
number of tables for `is_empty`, whatever the file claims. Numbers in the file are big-endian.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from common.errors import HeaderRefused
from common.images.locks import opened
from common.units import KIB, MIB, SECTOR

MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")  # magic ... nb_snapshots, snapshots_offset: 72 bytes
_V3 = struct.Struct(">QQQII")  # incompatible, compatible, autoclear, refcount_order, header_length: from byte 72
_EXTENSION = struct.Struct(">II")

_END, _BACKING_FORMAT, _DATA_FILE, _ENCRYPTION, _BITMAPS = 0, 0xE2792ACA, 0x44415441, 0x0537BE77, 0x23852875
_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = 1, 2, 4, 8, 16
_KNOWN = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION | _EXTENDED_L2
_RAW_EXTERNAL = 2  # autoclear

# QEMU's own limits (block/qcow2.h): QCOW_MAX_L1_SIZE, MIN_CLUSTER_BITS, MAX_CLUSTER_BITS; backing name 1023 bytes.
_MAX_L1_BYTES = 32 * MIB
_CLUSTER_BITS = range(9, 22)
_MAX_NAME = 1023
_OFFSET = 0x00FF_FFFF_FFFF_FE00
# An image without data has no L2 table at all, or a few all-zero ones after a write was taken back. A file with more
# of them is not called empty: that keeps the work small for a hostile file, and keeping a volume is always safe.
_MAX_EMPTY_TABLES = 256
_CHUNK = 256 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says. `backing_name` is as written there ('' for none), `backing_format` '' where it is missing.

    `bitmaps` counts the persistent bitmaps, whether the autoclear feature calls them consistent or not: while QEMU has
    the image open it does not. Those that it was given since are stored only when it closes it (measured, QEMU 7.2).
    """

    version: int
    size_bytes: int
    cluster_bits: int
    extended_l2: bool
    backing_name: str
    backing_format: str
    l1_offset: int
    l1_entries: int
    snapshots: int
    bitmaps: int = 0

    @property
    def cluster_bytes(self) -> int:
        """Return the cluster size."""
        return 1 << self.cluster_bits


def read_header(path: Path) -> Header:
    """Return the header of an image that our records call qcow2. Takes no lock: the image may be in use.

    Raises HeaderRefused for what is not qcow2 or has a data file, encryption (disk_encrypted), a corrupt mark or
    unknown features, and OSError.
    """
    with opened(path, writable=False) as fd:
        return parse_header(fd, name=str(path))


def parse_header(fd: int, *, name: str) -> Header:
    """Return the header of an open image; `name` is for the message. Raises HeaderRefused and OSError."""
    start = os.pread(fd, _V2.size + _V3.size, 0)
    if len(start) < _V2.size or start[:4] != MAGIC:
        raise HeaderRefused("header_refused", f"{name} is not a qcow2 image: it begins with {start[:8].hex() or '-'}")
    version, name_offset, name_length, cluster_bits, size, crypt, l1_entries, l1_offset = _V2.unpack_from(start)[1:9]
    snapshots = _V2.unpack_from(start)[11]
    _require(name, version in (2, 3), f"version {version}")
    _require(name, cluster_bits in _CLUSTER_BITS, f"cluster bits {cluster_bits}")
    if crypt:
        raise HeaderRefused("disk_encrypted", f"{name} is encrypted (method {crypt})")
    features, header_length = _features(start, version, name)
    cluster = os.pread(fd, 1 << cluster_bits, 0)
    backing_name = _backing_name(cluster, (name_offset, name_length), header_length, name)
    extensions = _extensions(cluster, header_length, name_offset or len(cluster), name)
    header = Header(
        version=version,
        size_bytes=size - size % SECTOR,  # as QEMU counts
        cluster_bits=cluster_bits,
        extended_l2=bool(features & _EXTENDED_L2),
        backing_name=backing_name,
        backing_format=extensions.get(_BACKING_FORMAT, b"").decode("ascii", errors="replace"),
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        snapshots=snapshots,
        bitmaps=int.from_bytes(extensions.get(_BITMAPS, b"")[:4]),
    )
    _require_geometry(header, name)
    return header


def is_encrypted(path: Path) -> bool:
    """Tell whether an image that is called qcow2 names a crypt method in its header; nothing else is looked at.

    False for a file that is no qcow2 image: whoever is to write above it finds out. Raises HeaderRefused for what is no
    regular file, and OSError.
    """
    with opened(path, writable=False) as fd:
        start = os.pread(fd, _V2.size, 0)
    return len(start) == _V2.size and start[:4] == MAGIC and _V2.unpack(start)[6] != 0


def is_empty(fd: int) -> bool:
    """Tell whether it is proven that the open image holds no guest data of its own. Raises HeaderRefused and OSError.

    True only if no L2 table has a single set bit: then no cluster is allocated, compressed, or marked as zeros (which
    hide the base's data, so they are data), with extended L2 entries too; and there are no internal snapshots, which
    have tables of their own. A table that lies outside the file, or too many tables, prove nothing: False.
    """
    header = parse_header(fd, name=f"descriptor {fd}")
    if header.snapshots:
        return False
    tables: set[int] = set()
    end = header.l1_offset + header.l1_entries * 8
    for offset in range(header.l1_offset, end, _CHUNK):
        wanted = min(_CHUNK, end - offset)
        chunk = os.pread(fd, wanted, offset)
        if len(chunk) < wanted:
            return False
        if any(chunk):
            tables.update(entry & _OFFSET for (entry,) in struct.iter_unpack(">Q", chunk) if entry)
        if len(tables) > _MAX_EMPTY_TABLES:
            return False
    return all(_is_zero(fd, offset, header.cluster_bytes) for offset in sorted(tables))


def _is_zero(fd: int, offset: int, length: int) -> bool:
    """Tell whether a table lies inside the file, where tables may lie, and has no set bit."""
    if offset == 0 or offset % length:
        return False
    table = os.pread(fd, length, offset)
    return len(table) == length and not any(table)


def _features(start: bytes, version: int, name: str) -> tuple[int, int]:
    """Return the incompatible features and the header's length, after refusing the features that we do not open."""
    if version == 2:
        return 0, _V2.size
    _require(name, len(start) == _V2.size + _V3.size, "a header that ends early")
    incompatible, _, autoclear, _, length = _V3.unpack_from(start, _V2.size)
    _require(name, not incompatible & _EXTERNAL_DATA and not autoclear & _RAW_EXTERNAL, "an external data file")
    _require(name, not incompatible & _CORRUPT, "a corrupt mark")
    _require(name, not incompatible & ~_KNOWN, f"unknown incompatible features {incompatible & ~_KNOWN:#x}")
    _require(name, length >= _V2.size + _V3.size and length % 8 == 0, f"header length {length}")
    return incompatible, length


def _backing_name(cluster: bytes, place: tuple[int, int], header_length: int, name: str) -> str:
    offset, length = place
    if offset == 0:
        return ""
    inside = header_length <= offset and offset + length <= len(cluster)
    _require(name, inside and 0 < length <= _MAX_NAME, f"a backing name of {length} bytes at {offset}")
    try:
        text = cluster[offset : offset + length].decode()
    except UnicodeDecodeError:
        raise HeaderRefused("header_refused", f"{name} has a backing name that is not UTF-8") from None
    _require(name, text.isprintable(), f"a backing name with control characters: {text[:80]!r}")
    return text


def _extensions(cluster: bytes, offset: int, end: int, name: str) -> dict[int, bytes]:
    """Walk the header extensions, which lie between the header and the backing name; return each one's data."""
    found: dict[int, bytes] = {}
    end = min(end, len(cluster))
    while offset + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(cluster, offset)
        offset += _EXTENSION.size
        if kind == _END:
            return found
        _require(name, offset + length <= end, f"a header extension {kind:#x} of {length} bytes")
        _require(name, kind not in (_DATA_FILE, _ENCRYPTION), f"header extension {kind:#x} (data file or encryption)")
        found[kind] = cluster[offset : offset + length]
        offset += -(-length // 8) * 8
    return found


def _require_geometry(header: Header, name: str) -> None:
    """Refuse tables that QEMU would refuse too: L1 too long, misplaced, or too short for the virtual size."""
    entry_bytes = 16 if header.extended_l2 else 8
    per_table = header.cluster_bytes // entry_bytes * header.cluster_bytes
    _require(name, not header.extended_l2 or header.cluster_bits >= 14, "extended L2 entries in small clusters")
    _require(name, header.size_bytes < 1 << 63, f"a virtual size of {header.size_bytes}")
    _require(name, header.l1_entries * 8 <= _MAX_L1_BYTES, f"an L1 table of {header.l1_entries} entries")
    _require(name, header.l1_entries >= -(-header.size_bytes // per_table), "an L1 table too short for its size")
    _require(name, header.l1_offset % header.cluster_bytes == 0, f"an L1 table at {header.l1_offset}")
    _require(name, header.l1_offset < 1 << 62, f"an L1 table at {header.l1_offset}")


def _require(name: str, holds: bool, seen: str) -> None:
    if not holds:
        raise HeaderRefused("header_refused", f"{name} has {seen}")
