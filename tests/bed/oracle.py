"""Judges a volume by the guest's own file system on it: the truth about a snapshot's consistency and content."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.bed.process import outcome, run

#: "%010d %010d\n", see guest/writer.c
RECORD_BYTES = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an ext4 file system says about the moment at which its volume was cut off.

    `needs_recovery`: the journal must be replayed at the next mount: false exactly for a quiesced or unmounted one.
    `fsck_rc` of `e2fsck -fn`, after a replay of the journal where that is needed: anything but 0 is damage. (Before the
    replay it may well be 4: with -n e2fsck leaves the journal alone, and looks at half of what was written.)
    `records`: the numbers of the guest's records, after the replay too.
    """

    needs_recovery: bool
    fsck_rc: int
    records: tuple[int, ...]


def examine(top: Path, *, format: str = "qcow2") -> Finding:
    """Examine the volume `top` with all that is below it. Nobody may write to it any more; nothing is changed.

    Works on a flat copy in a temporary folder. Raises ToolFailed if there is no ext4 file system.
    """
    with tempfile.TemporaryDirectory(prefix="ls-oracle-") as folder:
        flat = flatten(top, Path(folder) / "flat.raw", format=format)
        features = run(["dumpe2fs", "-h", flat])
        needs_recovery = "needs_recovery" in features
        if needs_recovery:
            run(["e2fsck", "-y", "-E", "journal_only", flat], ok=(0, 1))
        fsck_rc, _ = outcome(["e2fsck", "-fn", flat], ok=range(64))
        return Finding(needs_recovery=needs_recovery, fsck_rc=fsck_rc, records=_records(flat))


def flatten(top: Path, target: Path, *, format: str = "qcow2") -> Path:
    """Write what a guest sees of a chain to a raw file; the chain may be in use below a leaf. Return the target."""
    run(["qemu-img", "convert", "-U", "-f", format, "-O", "raw", top, target])
    return target


def sha256(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(top: Path, *, format: str = "qcow2") -> str:
    """Return the digest of what a guest would see of a chain."""
    with tempfile.TemporaryDirectory(prefix="ls-oracle-") as folder:
        return sha256(flatten(top, Path(folder) / "flat.raw", format=format))


def _records(image: Path) -> tuple[int, ...]:
    """Read the guest's records. Raises AssertionError for one that is not whole (a guest's fsync makes whole ones)."""
    dump = image.with_suffix(".records")
    run(["debugfs", "-R", f"dump /records {dump}", image])
    content = dump.read_bytes() if dump.exists() else b""
    lines = [content[at : at + RECORD_BYTES] for at in range(0, len(content), RECORD_BYTES)]
    broken = [line for line in lines if len(line) != RECORD_BYTES or not line.endswith(b"\n")]
    if broken:
        raise AssertionError(f"{len(broken)} of {len(lines)} records are not whole, the first is {broken[0]!r}")
    return tuple(int(line.split()[0]) for line in lines)
