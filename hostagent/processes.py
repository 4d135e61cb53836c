"""What the kernel of this host says: the boot, our own process, and the QEMU process of a vm. No libvirt. Pure.

A process is named by pid and start time (clock ticks since boot, field 22 of /proc/PID/stat), so that a reused pid is
never taken for the one before it.
"""

import os
import socket
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Credentials(NamedTuple):
    """Who a process acts as: effective user and group, supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


_DAEMONS = frozenset({"libvirtd", "virtqemud"})
_SYSTEM_PID_FILES = (Path("/run/virtqemud.pid"), Path("/run/libvirtd.pid"))


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boottime_ms() -> int:
    """Return milliseconds since boot, time asleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def process_name(pid: int) -> str:
    """Return `PID.START` of a running process, '' if there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # The text after the command's closing bracket begins with field 3, the state; the start time is field 22.
    return "" if fields[0] in "ZX" else f"{pid}.{fields[19]}"


def is_running(name: str) -> bool:
    """Tell whether the process that `process_name` has named so still runs."""
    return process_name(int(name.partition(".")[0])) == name


def freeze_token(host: str) -> str:
    """Return a new token for one freeze by this process: host, process, and a random part."""
    return f"{host}/{process_name(os.getpid())}/{uuid.uuid4().hex[:12]}"


def token_host(token: str) -> str:
    """Return the host that a freeze's token names."""
    return token.partition("/")[0]


def credentials(process: str) -> Credentials | None:
    """Return whom the process `PID.START` acts as; None when it is gone."""
    pid = process.partition(".")[0]
    try:
        lines = Path(f"/proc/{int(pid)}/status").read_text().splitlines()
    except (OSError, ValueError):
        return None
    found = {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
    groups = tuple(int(group) for group in found["Groups"])
    return Credentials(uid=int(found["Uid"][1]), gid=int(found["Gid"][1]), groups=groups)


def qemu_run(vm_uuid: str, pid_files: Iterable[Path]) -> str:
    """Return the runtime id (`PID.START`) of the QEMU process of that vm, '' if there is none.

    libvirt's pid files are tried first, since a migration within one machine has two processes of the same UUID; then
    every process is looked at (about 2 ms for a hundred).
    """
    for file in pid_files:
        try:
            pid = int(file.read_text())
        except (OSError, ValueError):
            continue
        if _runs(pid, vm_uuid):
            return process_name(pid)
    return next((process_name(pid) for pid in _pids() if _runs(pid, vm_uuid)), "")


def users_of(path: str) -> tuple[str, ...]:
    """Return `COMMAND (pid PID)` of every other process that has the file open, as far as we may look into it."""
    try:
        wanted = os.stat(path)
    except OSError:
        return ()
    found = (pid for pid in _pids() if pid != os.getpid() and _has_open(pid, (wanted.st_dev, wanted.st_ino)))
    return tuple(f"{_command(pid) or '?'} (pid {pid})" for pid in found)


def _has_open(pid: int, file: tuple[int, int]) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has ended, or we may not look into it
        return False
    return any(_is_file(f"/proc/{pid}/fd/{number}", file) for number in descriptors)


def _is_file(path: str, file: tuple[int, int]) -> bool:
    try:
        status = os.stat(path)
    except OSError:  # it has just been closed
        return False
    return (status.st_dev, status.st_ino) == file


def daemon_behind(path: Path) -> int:
    """Return the pid of the libvirt daemon that serves a Unix socket, 0 if it cannot be known.

    The kernel names the process that called listen(): under systemd's socket activation that is systemd, and then the
    daemon's own pid file is asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return 0
        pid: int = struct.unpack("iii", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    if _command(pid) in _DAEMONS:
        return pid
    return next((found for file in _SYSTEM_PID_FILES if _command(found := _number(file)) in _DAEMONS), 0)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() if pid else ""
    except OSError:
        return ""


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def _runs(pid: int, vm_uuid: str) -> bool:
    """Tell whether this process is QEMU for that vm: libvirt always passes `-uuid`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"-uuid" in words and vm_uuid.encode() in words
