"""Hypervisor hosts for tests: each an own libvirtd in its own folder, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests.bed.need import tool
from tests.bed.paths import Owner, cache_dir, give, new_dir
from tests.bed.process import CLEAN_ENV, Daemon, as_user, is_running, kill_and_wait
from tests.wait import eventually

#: Must have a passwd entry (libvirt looks the user up when it starts a machine).
UNPRIVILEGED_USER = "nobody"

QEMU_CONF = """\
# Serial consoles are opened by QEMU itself: no virtlogd is started behind the bed's back.
stdio_handler = "file"
security_driver = "none"
"""


class IsolatedHost(Daemon):
    """One hypervisor host: a session libvirtd with private folders, as `nobody` when we are root, else as ourselves.

    As a context manager it starts on entry; at the end it kills itself and the QEMU processes that it started (by
    their pid files). A libvirtd that was killed leaves its machines running, as in life; `start` picks them up again.

    >>> with short_dir() as root, IsolatedHost("a", root) as host, host.connect() as connection:
    ...     connection.listAllDomains()
    """

    def __init__(self, name: str, root_dir: Path) -> None:
        self.dir = root_dir / name
        self.name = name
        self._lay_out()
        super().__init__(f"libvirtd of host {name}", self.dir / "libvirtd.log")

    @property
    def owner(self) -> Owner:
        """The (uid, gid) that QEMU runs as: who must own disks."""
        if os.geteuid() != 0:
            return os.getuid(), os.getgid()
        entry = pwd.getpwnam(UNPRIVILEGED_USER)
        return entry.pw_uid, entry.pw_gid

    @property
    def _daemon(self) -> Owner:
        return self.owner

    @property
    def socket(self) -> Path:
        """libvirtd's socket."""
        return self.dir / "run/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        """What to pass to `libvirt.open`."""
        return f"qemu+unix:///session?socket={self.socket}"

    @property
    def pid_files(self) -> Path:
        """Where libvirtd keeps the pid file of each running QEMU."""
        return self.dir / "run/libvirt/qemu/run"

    @property
    def capabilities(self) -> Path:
        """Where libvirtd remembers what each QEMU binary can do."""
        return self.dir / "cache/libvirt/qemu/cache/capabilities"

    @property
    def _known_capabilities(self) -> Path:
        # What one host has found out spares the next one 2 s; libvirt itself checks whether it still holds.
        return cache_dir() / f"capabilities-{type(self).__name__}"

    def start(self) -> None:
        """Start libvirtd and return when it answers (40 to 60 ms once its capabilities are cached)."""
        self._learn_capabilities()
        self._spawn(self._command(), env=self._environment(), cwd=self.dir)
        eventually(self._answers, timeout_s=30, what=f"{self.what} at {self.uri}")

    def close(self) -> None:
        """Kill libvirtd, then its machines: it shall not report or tidy up anything while they die."""
        if self.alive:
            self.kill9()
        for pid in self.qemu_pids().values():
            kill_and_wait(pid)
        _copy_new(self.capabilities, self._known_capabilities)

    @contextmanager
    def connect(self) -> Iterator[libvirt.virConnect]:
        """Yield a new connection. Raises libvirt.libvirtError if libvirtd does not answer."""
        libvirt.registerErrorHandler(_silent, None)  # else the binding prints every error to standard error
        connection = libvirt.open(self.uri)
        try:
            yield connection
        finally:
            connection.close()

    def qemu_pids(self) -> dict[str, int]:
        """Return the running machines' QEMU process ids, by machine name, without asking libvirtd."""
        found = {}
        for file in self.pid_files.glob("*.pid"):
            pid = int(file.read_text() or 0)
            if self._is_ours(pid):
                found[file.stem] = pid
        return found

    def _is_ours(self, pid: int) -> bool:
        """Guard against a reused pid: every machine of ours has this host's folder on its command line."""
        if pid <= 0 or not is_running(pid):
            return False
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return b"qemu" in words and os.fsencode(self.dir) + b"/" in words

    def _learn_capabilities(self) -> None:
        _copy_new(self._known_capabilities, self.capabilities)
        if self.capabilities.exists():
            for path in (self.capabilities, *self.capabilities.parents):
                if path.is_relative_to(self.dir):
                    give(path, self._daemon)

    def _answers(self) -> bool:
        self.require_alive()
        try:
            with self.connect() as connection:
                return bool(connection.getLibVersion())
        except libvirt.libvirtError:
            return False

    def _lay_out(self) -> None:
        new_dir(self.dir, self.owner)
        for part in ("run", "cfg", "cfg/libvirt", "cache", "data", "vms"):
            new_dir(self.dir / part, self.owner, 0o700 if part == "run" else 0o755)
        (self.dir / "cfg/libvirt/qemu.conf").write_text(QEMU_CONF)

    def _command(self) -> Sequence[str | Path]:
        return [*as_user(UNPRIVILEGED_USER), tool("libvirtd"), "--pid-file", self.dir / "run/libvirtd.pid"]

    def _environment(self) -> dict[str, str]:
        folders = {"RUNTIME_DIR": "run", "CONFIG_HOME": "cfg", "CACHE_HOME": "cache", "DATA_HOME": "data"}
        private = {f"XDG_{name}": str(self.dir / part) for name, part in folders.items()}
        return {**CLEAN_ENV, **private, "HOME": str(self.dir)}


def shared_dir(path: Path, host: IsolatedHost) -> Path:
    """Make a storage folder that every host of the same user can write to. Return it."""
    return new_dir(path, host.owner)


def _copy_new(source: Path, target: Path) -> None:
    """Copy the files of a folder that the other one lacks, each by rename, so that no one sees half a file."""
    for file in source.glob("*.xml"):
        target.mkdir(parents=True, exist_ok=True)
        if not (target / file.name).exists():
            half = target / f"{file.name}.{os.getpid()}"
            shutil.copyfile(file, half)
            half.rename(target / file.name)


def _silent(*_: object) -> None:
    """Take libvirt's error messages from standard error: every error is raised as well."""
