"""Isolated machines on which an installation can be tried as it is written. Only for root.

Each is a mount and host name namespace above a copy-on-write root: what is written to /etc, /opt or /var there is gone
with it. They share a network namespace of their own, in which every port is free and every name is a loopback address.
"""

import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bed.process import CLEAN_ENV, Daemon, is_running, kill_and_wait
from tests.bed.root_host import RootHost
from tests.packaging.standin import VERBS
from tests.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
STANDIN = Path(__file__).with_name("standin.py")
CLONE_NEWNET = 0x40000000

ENTER = """\
set -e
mount --make-rprivate /
hostname {name}
mount -t tmpfs -o mode=0755 tmpfs {folder}
mkdir {folder}/upper {folder}/work {root}
mount -t overlay overlay -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work {root}
for path in /proc /sys /dev; do mount --rbind $path {root}$path; done
mount --bind /tmp {root}/tmp
mkdir -p {root}/opt/livesnap {root}/usr/local/src/livesnap
mount --bind {environment} {root}/opt/livesnap
mount --bind {standins}/pip {root}/opt/livesnap/bin/pip
mount -o remount,bind,ro {root}/opt/livesnap
mount --bind {repository} {root}/usr/local/src/livesnap
mount -o remount,bind,ro {root}/usr/local/src/livesnap
mount --bind {standins}/python3 {root}/usr/bin/python3
chmod 0711 {root}/root
{binds}
exec chroot {root} sleep infinity
"""


@contextmanager
def own_network() -> Iterator[None]:
    """Let this thread, and every process that it starts, be in a new network in which only loopback exists."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "a network namespace of our own")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)


class Machine(Daemon):
    """One machine, held by a process that sleeps. Its end ends all that was started on it."""

    def __init__(self, name: str, folder: Path, *, binds: Mapping[str, Path], environment: Mapping[str, str]) -> None:
        """Describe it; `binds` are folders of the test's that it has at other paths."""
        self.name = name
        self._all = folder
        self._folder = folder / name
        self._folder.mkdir()
        self._binds = binds
        self._environment = environment
        super().__init__(f"machine {name}", folder / f"{name}.log")

    @property
    def root(self) -> Path:
        """Its root folder, as seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def start(self) -> None:
        """Start and wait until its root is its own."""
        inner = self._folder / "root"
        binds = [
            f"mkdir -p {inner}{target} && mount --bind {source} {inner}{target}"
            for target, source in self._binds.items()
        ]
        words = {"folder": self._folder, "root": inner, "environment": sys.prefix, "repository": ROOT}
        quoted = {name: shlex.quote(str(path)) for name, path in words.items()}
        script = ENTER.format(name=self.name, standins=standins(self._all), binds="\n".join(binds), **quoted)
        self._spawn(["unshare", "--mount", "--uts", "sh", "-c", script], env=CLEAN_ENV, cwd=Path("/"))

        def entered() -> bool:
            self.require_alive()
            return os.readlink(self.root) == str(inner)

        eventually(entered, timeout_s=20, what=f"{self.what}: {self.log}")
        (self._all / f"{self.name}.pid").write_text(str(self.pid))
        with (self.root / "etc/hosts").open("a") as hosts:
            hosts.write("127.0.0.1 manager spm1 h1 h2\n")

    def run(self, script: str, *, timeout_s: float = 60) -> str:
        """Run a shell script there, as root, and return what it printed; fail the test if it fails."""
        environment = {
            **CLEAN_ENV,
            "PATH": f"{standins(self._all)}:{CLEAN_ENV['PATH']}",
            "HOME": "/root",
            "STANDIN_MACHINES": str(self._all),
            **self._environment,
        }
        done = subprocess.run(
            [*self.entering(), "sh", "-euc", script],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = f"on {self.name}:\n{script}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"status {done.returncode} {said}\n{self.logs()}"
        return done.stdout

    def entering(self) -> list[str]:
        """Return the words that let a program run there."""
        return ["nsenter", "-t", str(self.pid), "--mount", "--uts", "--root", "--wd"]

    def units(self) -> dict[str, int]:
        """Return the pids of the units that were started."""
        return {path.stem: int(path.read_text()) for path in (self.root / "run/standin").glob("*.pid")}

    def logs(self) -> str:
        """Return the end of what each unit has said."""
        files = sorted((self.root / "run/standin").glob("*.log"))
        return "\n".join(f"== {file.stem} on {self.name}\n{file.read_text()[-2500:]}" for file in files)

    def close(self) -> None:
        """End its units, then itself."""
        if not self.alive:
            return
        for pid in self.units().values():
            if is_running(pid):
                kill_and_wait(pid)
        self.kill9()


class MachineHost(RootHost):
    """The libvirt of one machine, at its usual path there."""

    def __init__(self, name: str, root_dir: Path, machine: Machine) -> None:
        self._machine = machine
        super().__init__(name, root_dir)

    def _command(self) -> Sequence[str | Path]:
        return [*self._machine.entering(), *super()._command()]


def standins(folder: Path) -> Path:
    """Return the folder of the stand-ins as programs, made at the first call."""
    made = folder / "standins"
    if not made.exists():
        made.mkdir()
        for verb in VERBS:
            path = made / verb
            path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(STANDIN))} {verb} "$@"\n')
            path.chmod(0o755)
    return made
