"""A system-like hypervisor host: libvirtd as root, machines as libvirt-qemu, as on users' hosts."""

from __future__ import annotations

import pwd
import shlex
from collections.abc import Sequence
from pathlib import Path

from tests.bed.host import IsolatedHost
from tests.bed.need import tool
from tests.bed.paths import Owner
from tests.bed.process import CLEAN_ENV, is_running

QEMU_USER = "libvirt-qemu"

#: No device namespaces and no cgroups: inside our own mount namespace they would be built from the machine's real /dev.
QEMU_CONF = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""

LIBVIRTD_CONF = """\
unix_sock_dir = "{sockets}"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""

#: libvirt's own folders, each replaced by a private one.
FOLDERS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}

#: A /dev without kvm: a /dev/kvm that opens but never answers costs libvirtd half a minute per definition, and an
#: unreadable one (bind-mounted null) costs the same.
ENTER = """\
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs {dev}
for name in null zero full random urandom tty; do touch {dev}/$name; mount --bind /dev/$name {dev}/$name; done
mkdir {dev}/pts {dev}/shm
mount --rbind /dev/pts {dev}/pts
mount --rbind /dev/shm {dev}/shm
ln -s pts/ptmx {dev}/ptmx
ln -s /proc/self/fd {dev}/fd
mount --move {dev} /dev
{binds}
exec {libvirtd}
"""


class RootHost(IsolatedHost):
    """The same as IsolatedHost, but run by root in a mount namespace of its own. Only for root.

    libvirtd changes the owner of disks here, as it does on users' hosts: to libvirt-qemu at start, back at the end. Its
    folders (/etc/libvirt, /var/lib/libvirt, ...) are below `dir`; paths outside of them are the machine's own.
    """

    @property
    def owner(self) -> Owner:
        """The (uid, gid) that QEMU runs as."""
        entry = pwd.getpwnam(QEMU_USER)
        return entry.pw_uid, entry.pw_gid

    @property
    def _daemon(self) -> Owner:
        return 0, 0

    @property
    def socket(self) -> Path:
        """libvirtd's socket."""
        return self.dir / "sockets/libvirt-sock"

    @property
    def uri(self) -> str:
        """What to pass to `libvirt.open`."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def pid_files(self) -> Path:
        """Where libvirtd keeps the pid file of each running QEMU."""
        return self.dir / "run/qemu"

    @property
    def capabilities(self) -> Path:
        """Where libvirtd remembers what each QEMU binary can do."""
        return self.dir / "cache/qemu/capabilities"

    def _is_ours(self, pid: int) -> bool:
        """Guard against a reused pid: every machine of ours sees our folder as libvirt's."""
        seen = Path(f"/proc/{pid}/root/var/lib/libvirt")
        return pid > 0 and is_running(pid) and seen.exists() and seen.samefile(self.dir / "lib")

    def _lay_out(self) -> None:
        for part in (*FOLDERS, "dev", "sockets", "vms"):
            (self.dir / part).mkdir(parents=True, exist_ok=True)
        (self.dir / "etc/qemu.conf").write_text(QEMU_CONF)
        (self.dir / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF.format(sockets=self.dir / "sockets"))

    def _command(self) -> Sequence[str | Path]:
        for target in FOLDERS.values():
            Path(target).mkdir(parents=True, exist_ok=True)
        folder = shlex.quote(str(self.dir))
        binds = "\n".join(f"mount --bind {folder}/{part} {target}" for part, target in FOLDERS.items())
        libvirtd = f"{tool('libvirtd')} --config /etc/libvirt/libvirtd.conf --pid-file {folder}/libvirtd.pid"
        script = ENTER.format(dev=f"{folder}/dev", binds=binds, libvirtd=libvirtd)
        return ["unshare", "--mount", "sh", "-c", script]

    def _environment(self) -> dict[str, str]:
        return {**CLEAN_ENV, "HOME": str(self.dir)}
