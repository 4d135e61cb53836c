"""Who QEMU runs as on this host: asked of the running process, and of libvirt for a machine that is off."""

import os
import pwd
import re
from pathlib import Path

from hostagent import processes, vm_xml
from hostagent.connection import Connection
from hostagent.ports import QemuUser
from hostagent.processes import Credentials

_DYNAMIC_OWNERSHIP = re.compile(r"^\s*dynamic_ownership\s*=\s*(\d+)", re.MULTILINE)


class QemuUsers:
    """Call it with a vm's runtime id. Safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        """Ask the libvirt behind `connection`."""
        self._connection = connection
        self._gives: dict[str, bool] = {}

    def __call__(self, runtime_id: str) -> QemuUser | None:
        """Return the user of that run of QEMU, or for '' of the next one; None where it cannot be known."""
        instance = self._connection.libvirtd_instance()
        daemon = processes.credentials(instance)
        found = processes.credentials(runtime_id) if runtime_id else self._configured(daemon)
        if found is None:
            return None
        is_given = daemon is not None and daemon.uid == 0 and self._gives_files(instance)
        return QemuUser(uid=found.uid, gid=found.gid, groups=found.groups, is_given_files=is_given)

    def _configured(self, daemon: Credentials | None) -> Credentials | None:
        """Return whom libvirt starts a QEMU as: its capabilities say it of a root daemon, any other stays itself."""
        ids = vm_xml.qemu_ids(self._connection.capabilities())
        if ids is None:
            return daemon
        uid, gid = ids
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return Credentials(uid=uid, gid=gid, groups=(gid,))
        # libvirt adds the group that it is told to those that the user has by itself.
        groups = {gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)}
        return Credentials(uid=uid, gid=gid, groups=tuple(sorted(groups)))

    def _gives_files(self, instance: str) -> bool:
        """Tell whether libvirtd gives a file to QEMU's user before QEMU opens it, which is its default as root.

        No answer of libvirt's tells (a live definition says relabel='yes' either way, measured), so its settings are
        read as it sees them. It reads them when it starts: one look per daemon.
        """
        if instance not in self._gives:
            pid = instance.partition(".")[0]
            self._gives = {instance: _dynamic_ownership(Path(f"/proc/{pid}/root/etc/libvirt/qemu.conf"))}
        return self._gives[instance]


def _dynamic_ownership(conf: Path) -> bool:
    try:
        said = _DYNAMIC_OWNERSHIP.findall(conf.read_text(errors="replace"))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not said or said[-1] != "0"
