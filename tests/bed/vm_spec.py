"""What a guest is made of, and its definition for libvirt."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bed.guest_image import guest_image
from tests.bed.hold import hold_library

AgentMode = Literal["normal", "none", "stop", "block", "hookfail", "hookslow", "hookstop"]

#: What a test's kernel need not do at its start: self-tests of its ciphers, tables for tracing, keys for signatures.
NOT_NEEDED = (
    *("init_kprobe_trace", "cubictcp_register", "load_system_certificate_list", "init_encrypted"),
    *("crypto_kdf108_init", "tcp_congestion_default", "bpf_rstat_kfunc_init", "init_blk_tracer"),
)
#: Together 1.7 s of the 5 s of CPU of an emulated boot. A guest that panics stays as it is; who waits for it fails.
BOOT_OPTIONS = (
    "console=ttyS0 quiet tsc=reliable no_timer_check mitigations=off nokaslr cryptomgr.notests ipv6.disable=1"
    f" noreplace-smp initcall_blacklist={','.join(NOT_NEEDED)}"
)
#: A firmware that only starts a kernel. With it, a plain CPU (each feature is a patch of the kernel's code, which the
#: translator then takes anew) and no USB, a boot takes 2.5 to 3.5 s of CPU; with SeaBIOS, `maximum` and USB 3.6 to 5.
QBOOT = "/usr/share/qemu/qboot.rom"
CPU_MODEL = "qemu64"

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """One disk. `error_policy` None is QEMU's default: stop at ENOSPC, report every other error to the guest."""

    path: Path
    format: str = "qcow2"
    target: str = "vda"
    bus: str = "virtio"
    device: Literal["disk", "lun", "cdrom"] = "disk"
    shareable: bool = False
    readonly: bool = False
    error_policy: str | None = "stop"
    serial: str | None = None
    #: a `block` source names a device node instead of a file (Direct LUN)
    source_type: Literal["file", "block"] = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One machine. `agent` is the channel in the definition, `ga` what the guest does with it, `fs` what it mounts.

    `ga`: normal; none (not started); stop (started, then SIGSTOPped); block (freezing disabled); hookfail (the freeze
    hook fails); hookslow (the freeze takes `hook_s` seconds); hookstop (the agent is SIGSTOPped in its freeze).
    `load`: a writer on every mounted disk, or idle. `control`: a shell for `BedVm.shell`, beside the agent.
    `panic`: QEMU hears of the guest's kernel panic, and the machine then stays as it is. `suspend`: it can be suspended
    to memory. `hold`: QEMU neither starts nor ends while that file is there (hold.c).
    With `fs` xfs, a disk that holds no XFS is tried as ext4. 96 MiB is the least that boots; on a
    busy host such a boot was seen to end in "out of memory". 128 cost 19 MiB more of the host's (measured).
    `odd_disks` are whole <disk> elements, for what a DiskSpec cannot say; no guest waits for them.
    """

    name: str
    disks: tuple[DiskSpec, ...] = ()
    odd_disks: tuple[str, ...] = ()
    agent: bool = True
    ga: AgentMode = "normal"
    fs: Literal["ext4", "xfs"] = "ext4"
    load: Literal["writer", "idle"] = "writer"
    pace_ms: int = 200
    hook_s: float = 3
    control: bool = False
    panic: bool = False
    suspend: bool = False
    hold: Path | None = None
    memory_mib: int = 128
    extra_cmdline: str = ""
    uuid: str | None = None

    @property
    def cmdline(self) -> str:
        """The kernel command line that makes the guest behave so."""
        visible = sum(disk.device != "cdrom" and disk.bus != "sata" for disk in self.disks)
        guest = (
            f"guest.ga={self.ga} guest.fs={self.fs} guest.load={self.load} guest.pace_ms={self.pace_ms}"
            f" guest.hook_s={self.hook_s:g} guest.disks={visible} guest.panic={self.panic:d}"
        )
        return f"{BOOT_OPTIONS} {guest} {self.extra_cmdline}".rstrip()


def control_socket(console: Path) -> Path:
    """Return where the control channel of the machine with this console is."""
    return console.with_name("control")


def vm_xml(spec: VmSpec, console: Path) -> str:
    """Return the definition of a machine whose serial console is appended to the file `console`."""
    root = ET.Element("domain", type="qemu")  # KVM is never assumed: here /dev/kvm opens and its guests hang
    _text(root, "name", spec.name)
    if spec.uuid:
        _text(root, "uuid", spec.uuid)
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", "1")
    _boot(root, spec)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    # QEMU's translation cache. Measured: 16 MiB: boots in 3.4 s of CPU, 183 MiB resident; 32: 2.9, 203; 64: 2.8, 235.
    _text(ET.SubElement(features, "tcg"), "tb-cache", "32", unit="MiB")
    _text(ET.SubElement(root, "cpu", mode="custom", match="exact", check="none"), "model", CPU_MODEL)
    _text(root, "on_reboot", "restart")
    if spec.suspend:
        ET.SubElement(ET.SubElement(root, "pm"), "suspend-to-mem", enabled="yes")
    if spec.panic:
        _text(root, "on_crash", "preserve")
    devices = ET.SubElement(root, "devices")
    ET.SubElement(devices, "controller", type="usb", model="none")
    for disk in spec.disks:
        _disk(devices, disk)
    devices.extend(ET.fromstring(disk) for disk in spec.odd_disks)
    if any(disk.bus == "scsi" for disk in spec.disks):
        ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
    serial = ET.SubElement(devices, "serial", type="file")
    # append: else a migration's destination truncates it, and so does every boot
    ET.SubElement(serial, "source", path=str(console), append="on")
    _channels(devices, spec, console)
    ET.SubElement(devices, "memballoon", model="none")
    if spec.panic:
        ET.SubElement(devices, "panic", model="isa")
    if spec.hold:
        command_line = ET.SubElement(root, f"{{{QEMU_NAMESPACE}}}commandline")
        for name, value in (("LD_PRELOAD", hold_library()), ("BED_HOLD", spec.hold)):
            ET.SubElement(command_line, f"{{{QEMU_NAMESPACE}}}env", name=name, value=str(value))
    return ET.tostring(root, encoding="unicode")


def _channels(devices: ET.Element, spec: VmSpec, console: Path) -> None:
    if spec.agent:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if spec.control:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind", path=str(control_socket(console)))
        ET.SubElement(channel, "target", type="virtio", name="org.livesnap.control.0")


def _boot(root: ET.Element, spec: VmSpec) -> None:
    image = guest_image()
    boot = ET.SubElement(root, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    if not spec.suspend:  # only SeaBIOS wakes a machine from its memory
        _text(boot, "loader", QBOOT, type="rom")
    _text(boot, "kernel", str(image.kernel))
    _text(boot, "initrd", str(image.initramfs))
    _text(boot, "cmdline", spec.cmdline)


def _disk(devices: ET.Element, spec: DiskSpec) -> None:
    disk = ET.SubElement(devices, "disk", type=spec.source_type, device=spec.device)
    driver = ET.SubElement(disk, "driver", name="qemu", type=spec.format)
    if spec.error_policy:
        driver.set("error_policy", spec.error_policy)
    ET.SubElement(disk, "source", {"file" if spec.source_type == "file" else "dev": str(spec.path)})
    ET.SubElement(disk, "target", dev=spec.target, bus=spec.bus)
    if spec.serial:
        _text(disk, "serial", spec.serial)
    for name, wanted in (("shareable", spec.shareable), ("readonly", spec.readonly)):
        if wanted:
            ET.SubElement(disk, name)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
