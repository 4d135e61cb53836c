"""Small disks with empty file systems: made once in the cache, then copied."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Literal

from tests.bed.guest_image import file_lock
from tests.bed.paths import Owner, cache_dir, give
from tests.bed.process import run

FileSystem = Literal["ext4", "xfs"]
Format = Literal["qcow2", "raw"]


def make_disk(
    path: Path, *, owner: Owner, fs: FileSystem | None = "ext4", format: Format = "qcow2", size_mib: int = 64
) -> Path:
    """Make a disk with an empty file system (or none), owned by QEMU's user (`host.owner`). Return its path.

    The file is a sparse copy of a template in the cache, some milliseconds of work. All copies of one template have
    the same file system UUID; the guest mounts XFS with `nouuid`.
    """
    template = _template(fs, format, size_mib)
    run(["cp", "--reflink=auto", "--sparse=always", "--no-preserve=all", template, path])
    path.chmod(0o600)
    return give(path, owner)


def make_overlay(
    path: Path, *, backing: Path, owner: Owner, backing_format: Format = "qcow2", relative: bool = False
) -> Path:
    """Make an empty qcow2 volume on top of `backing` (which may be in use), as a test's own leaf. Return its path.

    `relative` writes the backing file's bare name: both must lie in one folder.
    """
    name = backing.name if relative else str(backing)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-u"]
    run([*create, "-F", backing_format, "-b", name, path, str(virtual_size(backing))])
    path.chmod(0o600)
    return give(path, owner)


def virtual_size(path: Path) -> int:
    """Return the size in bytes that a guest sees: from the qcow2 header, else the file's length."""
    with path.open("rb") as image:
        header = image.read(32)
    if header[:4] == b"QFI\xfb":
        return int.from_bytes(header[24:32], "big")
    return path.stat().st_size


def _template(fs: FileSystem | None, format: Format, size_mib: int) -> Path:
    recipe = sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    template = cache_dir() / f"{fs or 'blank'}-{size_mib}-{recipe}.{format}"
    with file_lock(cache_dir() / "disks.lock"):
        if not template.exists():
            half = template.with_suffix(".half")
            half.unlink(missing_ok=True)
            _make_raw(half, fs, size_mib)
            if format == "qcow2":
                raw, half = half, template.with_suffix(".half2")
                run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, half])
                raw.unlink()
            half.rename(template)
    return template


def _make_raw(path: Path, fs: FileSystem | None, size_mib: int) -> None:
    with path.open("wb") as image:
        image.truncate(size_mib * 2**20)
    match fs:
        case "ext4":
            # Nothing is left for the guest to initialise in the background: an idle guest writes nothing.
            run(["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", path])
        case "xfs":
            # mkfs.xfs refuses less than 300 MB unless told that it is for tests
            run(["mkfs.xfs", "-q", "--unsupported", path])
        case None:
            pass
