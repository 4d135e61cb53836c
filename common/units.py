"""Sizes in bytes."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SECTOR = 512


def whole_sectors(length_bytes: int) -> int:
    """Return a raw file's size as QEMU sees it: it counts in sectors, and fills the tail up with zeros."""
    return -(-length_bytes // SECTOR) * SECTOR
