"""Hand-made qcow2 files: every field can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS


@dataclass(kw_only=True, slots=True)
class Image:
    """A qcow2 image: header in the first cluster, L1 table in the second, what `tables` says behind it."""

    magic: bytes = b"QFI\xfb"
    version: int = 3
    backing: bytes = b""
    backing_offset: int | None = None
    backing_length: int | None = None
    cluster_bits: int = CLUSTER_BITS
    size: int = 1 << 30
    crypt: int = 0
    l1_size: int = 2
    l1_offset: int = CLUSTER
    snapshots: int = 0
    incompatible: int = 0
    autoclear: int = 0
    header_length: int = 104
    extensions: tuple[tuple[int, bytes], ...] = ()
    l1: tuple[int, ...] = ()
    tables: dict[int, bytes] = field(default_factory=dict)
    length: int = 2 * CLUSTER

    def content(self) -> bytes:
        """Return the whole file."""
        header = self._header()
        content = bytearray(max(self.length, len(header)))
        content[: len(header)] = header
        parts = {self.l1_offset: struct.pack(f">{len(self.l1)}Q", *self.l1), **self.tables}
        for offset, data in parts.items():
            if data:
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
        return bytes(content)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_bytes(self.content())
        return path

    def _header(self) -> bytes:
        extensions = b"".join(
            struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in self.extensions
        )
        end = (104 if self.version != 2 else 72) + len(extensions) + 8
        offset = self.backing_offset
        if offset is None:
            offset = end if self.backing else 0
        length = len(self.backing) if self.backing_length is None else self.backing_length
        first = struct.pack(
            ">4sIQIIQIIQQIIQ",
            *(self.magic, self.version, offset, length, self.cluster_bits, self.size, self.crypt),
            *(self.l1_size, self.l1_offset, 0, 0, self.snapshots, 0),
        )
        second = struct.pack(">QQQII", self.incompatible, 0, self.autoclear, 4, self.header_length)
        head = first + (second if self.version != 2 else b"")
        return head + extensions + bytes(8) + self.backing
