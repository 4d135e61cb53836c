"""Folders, owners and ports of the bed."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: (uid, gid)
Owner = tuple[int, int]


def cache_dir() -> Path:
    """Return the folder that keeps what is built once: the guest's kernel and initramfs, empty file systems.

    `LIVESNAP_BED_CACHE` overrides it. QEMU's user must be able to read it: hence not below root's home, which is closed
    to others.
    """
    override = os.environ.get("LIVESNAP_BED_CACHE")
    if override:
        path = Path(override)
    elif os.geteuid() == 0:
        path = Path("/var/cache/livesnap-bed")
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livesnap-bed"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def short_dir() -> Iterator[Path]:
    """Yield a new folder that every user may enter, with a short name (a socket's path has at most 107 bytes).

    It is removed at the end. pytest's `tmp_path` is closed to others, and so of no use to a QEMU of another user.
    """
    path = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def give(path: Path, owner: Owner) -> Path:
    """Make `owner` the owner of `path` if we are root, else leave it ours. Return the path."""
    if os.geteuid() == 0:
        os.chown(path, *owner)
    return path


def new_dir(path: Path, owner: Owner, mode: int = 0o755) -> Path:
    """Make sure that `path` is a folder of `owner` with exactly this mode. Return the path.

    Raises ValueError for a folder that all users share, such as /tmp: changing that one harms the whole machine.
    """
    if path.exists() and path.stat().st_mode & stat.S_ISVTX:
        raise ValueError(f"{path} is shared by all users: name a folder below it")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return give(path, owner)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago; a server that finds it taken ends, and says so.

    Never one that the kernel gives to outgoing connections: RabbitMQ takes seconds to start, in which another test's
    connection was seen to get its port.
    """
    lowest_of_the_kernels = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest_of_the_kernels)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
