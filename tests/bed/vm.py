"""Tiny real guests, and what a test may do to them."""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import libvirt_qemu

from tests.bed.console import Ack, Console, WriteError
from tests.bed.host import IsolatedHost
from tests.bed.paths import new_dir
from tests.bed.vm_spec import VmSpec, control_socket, vm_xml
from tests.wait import eventually

#: How long libvirt waits for the guest agent before an answer counts as missing; it would wait for ever by default.
AGENT_TIMEOUT_S = 5
#: A boot takes 3 s of CPU, and on a busy two-core machine it was seen to take 30 s of time.
BOOT_TIMEOUT_S = 90.0
SNAPSHOT_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)


def define_vm(host: IsolatedHost, spec: VmSpec) -> BedVm:
    """Define a machine on a host (it is not started) and return the handle on it. Raises libvirt.libvirtError."""
    vm = BedVm(host, spec)
    new_dir(vm.console_path.parent, host.owner)
    with host.connect() as connection:
        connection.defineXML(vm_xml(spec, vm.console_path))
    return vm


class BedVm:
    """One machine of a host, by name. Holds no connection: each act opens its own, so libvirtd may die in between."""

    def __init__(self, host: IsolatedHost, spec: VmSpec, console_path: Path | None = None) -> None:
        self.host = host
        self.spec = spec
        self.name = spec.name
        self.console_path = console_path or host.dir / "vms" / spec.name / "console.log"
        self._console = Console(self.console_path)

    @contextmanager
    def libvirt(self) -> Iterator[libvirt.virDomain]:
        """Yield libvirt's own handle of this machine, for what this class does not offer."""
        with self.host.connect() as connection:
            yield connection.lookupByName(self.name)

    @property
    def uuid(self) -> str:
        """The machine's UUID in libvirt's spelling."""
        with self.libvirt() as handle:
            return str(handle.UUIDString())

    @property
    def qemu_pid(self) -> int | None:
        """QEMU's process id, read from its pid file; None if it does not run."""
        return self.host.qemu_pids().get(self.name)

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self, *, paused: bool = False) -> None:
        """Power the machine on."""
        with self.libvirt() as handle:
            handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def destroy(self) -> None:
        """Pull the plug; a machine that is off already stays off."""
        with self.libvirt() as handle:
            if handle.isActive():
                handle.destroy()

    def shutdown(self, *, timeout_s: float = 30) -> None:
        """Shut the guest down in order, through its agent, and wait until it is off."""
        with self.libvirt() as handle:
            handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
            eventually(lambda: not handle.isActive(), timeout_s=timeout_s, what=f"the end of {self.name}")

    def undefine(self) -> None:
        """Remove the definition (a running machine goes on as a transient one)."""
        with self.libvirt() as handle:
            handle.undefine()

    def pause(self) -> None:
        """Stop the machine's CPUs."""
        with self.libvirt() as handle:
            handle.suspend()

    def resume(self) -> None:
        """Let the CPUs go on."""
        with self.libvirt() as handle:
            handle.resume()

    def state(self) -> tuple[int, int]:
        """Return libvirt's (state, reason), for example (VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR)."""
        with self.libvirt() as handle:
            state, reason = handle.state()
        return int(state), int(reason)

    def migrate_to(self, other: IsolatedHost, *, leave_definition: bool = False, mib_per_s: int = 0) -> BedVm:
        """Migrate live to another host (2 to 3 s) and return the handle there. Both must see the same disks.

        `leave_definition`: it stays defined here too, stopped. `mib_per_s` limits the bandwidth (for migration.py).
        Raises libvirt.libvirtError, also for a migration that was aborted.
        """
        parameters: dict[str, object] = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{other.dir}/{self.name}.mig"}
        if mib_per_s:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = mib_per_s
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE
        flags |= 0 if leave_definition else libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        with self.libvirt() as handle, other.connect() as destination:
            handle.migrate3(destination, parameters, flags)
        return BedVm(other, self.spec, self.console_path)

    # -- what the guest says ----------------------------------------------------------------------------------------

    def console(self) -> str:
        """Return all that the guest has printed since it was defined, over all its boots."""
        return self._console.text()

    def acks(self) -> list[Ack]:
        """Return every acknowledged record in the order of the console."""
        return self._console.acks()

    def write_errors(self) -> list[WriteError]:
        """Return every failed write that the guest has reported."""
        return self._console.write_errors()

    def last_ack(self, target: str = "vda") -> int:
        """Return the number that was acknowledged last on a disk, 0 if none was; smaller again on an older disk."""
        return next((ack.n for ack in reversed(self.acks()) if ack.target == target), 0)

    def acknowledged(self, target: str = "vda") -> list[int]:
        """Return the numbers that were acknowledged on a disk in this boot."""
        return [ack.n for ack in self._console.this_boots() if ack.target == target]

    def wait_ready(self, *, boots: int = 1, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the guest's start-up script has come to its end, for the `boots`-th time."""
        what = f"{self.name} to boot (its console ends: {self.console()[-300:]!r})"
        eventually(lambda: self._sane_console().count("GUEST READY") >= boots, timeout_s=timeout_s, what=what)

    def wait_acks(self, *, more: int = 5, target: str = "vda", timeout_s: float = BOOT_TIMEOUT_S) -> int:
        """Wait until a disk has `more` acknowledged records than now; return the number of the last."""
        goal = self._count(target) + more
        what = f"{more} more records on {target} of {self.name}"
        eventually(lambda: self._count(target) >= goal, timeout_s=timeout_s, what=what)
        return self.last_ack(target)

    def _count(self, target: str) -> int:
        return sum(ack.target == target for ack in self.acks())

    def wait_agent(self, *, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the guest agent answers a ping."""
        eventually(self._agent_answers, timeout_s=timeout_s, what=f"the guest agent of {self.name}", interval_s=0.05)

    def _sane_console(self) -> str:
        console = self.console()
        if "Kernel panic" in console:
            raise AssertionError(f"the guest {self.name} has panicked: {console[-1000:]}")
        return console

    def _agent_answers(self) -> bool:
        self._sane_console()
        with self.libvirt() as handle:
            if "state='connected'" not in handle.XMLDesc():
                return False  # asking a missing agent costs libvirt's patience
            try:
                libvirt_qemu.qemuAgentCommand(handle, '{"execute":"guest-ping"}', 2, 0)
            except libvirt.libvirtError:
                return False
        return True

    def shell(self, command: str, *, timeout_s: float = 30) -> str:
        """Run a shell command in the guest, whatever its agent does; return its output. Needs `control` in the spec.

        Raises AssertionError if it fails, TimeoutError if it does not end.
        """
        mark = secrets.token_hex(4)
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(control_socket(self.console_path)))
            self._greet(link)
            link.settimeout(timeout_s)
            link.sendall(f"echo BEGIN-{mark}; ( {command} ) </dev/null 2>&1; echo END-{mark} $?\n".encode())
            said = ""
            while (end := re.search(rf"BEGIN-{mark}\n(.*)END-{mark} (\d+)\n", said, re.DOTALL)) is None:
                said += self._hear(link)
        assert end[2] == "0", f"{command!r} in {self.name} ended with {end[2]}: {said!r}"
        return end[1]

    def _greet(self, link: socket.socket) -> None:
        """Return when a shell in the guest listens to this connection.

        The shell of the connection before may just be ending, and a port that is closed in the guest drops what it was
        sent (Linux, drivers/char/virtio_console.c, port_fops_release).
        """
        link.settimeout(1)
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while True:
            link.sendall(b"echo HERE\n")
            try:
                self._hear(link)
            except TimeoutError:
                assert time.monotonic() < deadline, f"no shell of {self.name} answers"
            else:
                return

    def _hear(self, link: socket.socket) -> str:
        heard = link.recv(4096)
        assert heard, f"{self.name} has hung up"
        return heard.decode(errors="replace")

    # -- freezing, switching, looking -------------------------------------------------------------------------------

    def agent(self, command: str, **arguments: object) -> Any:
        """Ask the guest agent and return what it returns. Raises libvirt.libvirtError, also after AGENT_TIMEOUT_S."""
        request = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
        with self.libvirt() as handle:
            return json.loads(libvirt_qemu.qemuAgentCommand(handle, request, AGENT_TIMEOUT_S, 0))["return"]

    def freeze(self) -> int:
        """Freeze the guest's file systems; return how many."""
        with self.libvirt() as handle:
            return int(handle.fsFreeze())

    def thaw(self) -> int:
        """Thaw the guest's file systems; return how many were frozen."""
        with self.libvirt() as handle:
            return int(handle.fsThaw())

    def freeze_status(self) -> str:
        """Return `frozen` or `thawed`, as the agent believes."""
        return str(self.agent("guest-fsfreeze-status"))

    def monitor(self, command: str, **arguments: object) -> Any:
        """Ask QEMU itself and return what it returns; taints the machine. Raises RuntimeError for QEMU's errors."""
        request = json.dumps({"execute": command, "arguments": arguments})
        with self.libvirt() as handle:
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(handle, request, 0))
        if "return" not in answer:
            raise RuntimeError(f"QEMU refused {command}: {answer.get('error')}")
        return answer["return"]

    def switch_behind_libvirt(self, target: str, overlay: Path | str, *, insert: bool = True) -> None:
        """Do to one disk what a libvirtd that dies in the middle of a pivot leaves behind, by QEMU's own monitor.

        `insert`: QEMU writes to `overlay` from now on, while both definitions name the previous leaf; otherwise the
        overlay is only open, in no disk's chain. Taints the machine.
        """
        alias = next(
            alias.get("name")
            for disk in ET.fromstring(self.xml()).iterfind("./devices/disk")
            for alias in disk.iterfind("alias")
            if any(found.get("dev") == target for found in disk.iterfind("target"))
        )
        devices = [device for device in self.monitor("query-block") if f"/{alias}/" in f"{device['qdev']}/"]
        top, node = devices[0]["inserted"]["node-name"], f"behind-{target}-{uuid4().hex[:6]}"
        file = {"driver": "file", "filename": str(overlay)}
        self.monitor("blockdev-add", **{"driver": "qcow2", "node-name": node, "backing": None, "file": file})
        if insert:
            self.monitor("blockdev-snapshot", node=top, overlay=node)

    def xml(self, *, persistent: bool = False) -> str:
        """Return the live definition (the persistent one when the machine is off), or the persistent one."""
        with self.libvirt() as handle:
            return str(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if persistent else 0))

    def sources(self, *, persistent: bool = False) -> dict[str, str]:
        """Return each disk's source path by target, as the definition says."""
        found = {}
        for disk in ET.fromstring(self.xml(persistent=persistent)).iterfind("./devices/disk"):
            target, source = disk.find("target"), disk.find("source")
            if target is not None and source is not None:
                found[target.get("dev", "")] = source.get("file", "")
        return found

    def snapshot(self, overlays: dict[str, Path], *, quiesce: bool = False) -> None:
        """Pivot the named disks to prepared overlays in one libvirt call; the others stay. No product code."""
        root = ET.Element("domainsnapshot")
        disks = ET.SubElement(root, "disks")
        for disk in self.spec.disks:
            overlay = overlays.get(disk.target)
            entry = ET.SubElement(disks, "disk", name=disk.target, snapshot="external" if overlay else "no")
            if overlay:
                ET.SubElement(entry, "driver", type="qcow2")
                ET.SubElement(entry, "source", file=str(overlay))
        flags = SNAPSHOT_FLAGS | (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if quiesce else 0)
        with self.libvirt() as handle:
            handle.snapshotCreateXML(ET.tostring(root, encoding="unicode"), flags)
