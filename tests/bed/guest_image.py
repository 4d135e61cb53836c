"""Builds the guest's kernel and initramfs, once per machine."""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bed.need import tool
from tests.bed.paths import cache_dir
from tests.bed.process import run

SOURCES = Path(__file__).with_name("guest")
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
#: Loaded in this order, `base` at every boot; what they depend on goes first (virtio_ring before virtio: depmod knows).
MODULES = {
    "base": ("virtio_pci", "virtio_blk", "virtio_console"),
    "scsi": ("virtio_scsi", "sd_mod"),
    "xfs": ("xfs",),
    "panic": ("pvpanic-mmio",),
}
#: Ends a signed module; before it stand 12 bytes about the signature, the last four its length.
SIGNED = b"~Module signature appended~\n"
#: Begins what Debian's kernels are packed with ("legacy frame").
LZ4 = bytes.fromhex("02214c18")
#: Where the guest looks for each of our scripts.
SCRIPTS = {
    "init.sh": "init",
    "shutdown.sh": "sbin/shutdown",
    "agent.sh": "sbin/agent",
    "hookfail.sh": "hooks/hookfail",
    "hookslow.sh": "hooks/hookslow",
    "hookstop.sh": "hooks/hookstop",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestImage:
    """What QEMU boots directly: both files are readable by every user."""

    kernel: Path
    initramfs: Path


def guest_image() -> GuestImage:
    """Return the guest image, built at the first call on this machine (some seconds, one package download).

    Processes that call at the same time build it once: the others wait at a file lock. A build that was killed leaves
    only a temporary folder; the finished one appears by rename. The key covers all inputs but the kernel, which is
    what the distribution had at the first build. Raises FileNotFoundError for a missing tool, ToolFailed for a step
    that failed.
    """
    folder = cache_dir() / f"guest-{_key()}"
    with file_lock(cache_dir() / "guest.lock"):
        if not folder.exists():
            _build(folder)
    return GuestImage(kernel=folder / "kernel", initramfs=folder / "initramfs.cpio")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel releases it if the holder dies."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key() -> str:
    """Hash the inputs of the build: our sources, this builder and the programs that go into the image."""
    inputs = [*sorted(SOURCES.iterdir()), Path(__file__), Path(tool("busybox")), Path(tool("qemu-ga"))]
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _build(folder: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        unpacked = _unpack_kernel(work)
        root, finished = work / "root", work / "finished"
        finished.mkdir()
        _add_programs(root)
        _add_modules(root, unpacked)
        (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
        _unpack(kernel, finished / "kernel")
        # Uncompressed: unpacking it costs the emulated CPU more than reading it (0.2 s of boot).
        run(["sh", "-c", "find . | cpio --quiet -o -H newc -R 0:0 > ../finished/initramfs.cpio"], cwd=root)
        for path in (finished, *finished.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        finished.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack_kernel(work: Path) -> Path:
    """Download the kernel package that the meta package names, and unpack it without installing it."""
    depends = run(["apt-cache", "depends", KERNEL_META_PACKAGE])
    names = re.findall(r"Depends: (linux-image-\S+)", depends)
    if not names:
        raise FileNotFoundError(f"apt knows no package {KERNEL_META_PACKAGE}: run `apt-get update` first")
    run(["apt-get", "download", "-q", names[0]], cwd=work)
    (package,) = work.glob("linux-image-*.deb")
    unpacked = work / "kernel"
    run(["dpkg", "-x", package, unpacked])
    return unpacked


def _unpack(kernel: Path, target: Path) -> None:
    """Write the kernel unpacked, which would cost the emulated CPU 0.4 s: QEMU starts an ELF file by its PVH note.

    Where the payload of the Linux boot protocol lies: setup sectors at 0x1f1, payload's offset and length at 0x248; the
    last four bytes are its unpacked size. A kernel that is packed otherwise boots as it is, only later.
    """
    content = kernel.read_bytes()
    offset, length = struct.unpack_from("<II", content, 0x248)
    begin = ((content[0x1F1] or 4) + 1) * 512 + offset
    payload = content[begin : begin + length - 4]
    if not payload.startswith(LZ4):
        shutil.copyfile(kernel, target)
        return
    packed = kernel.with_suffix(".lz4")
    packed.write_bytes(payload)
    run(["lz4", "-d", "-q", packed, target])


def _add_programs(root: Path) -> None:
    for folder in ("bin", "sbin", "hooks", "modules"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for source, target in SCRIPTS.items():
        shutil.copyfile(SOURCES / source, root / target)
        (root / target).chmod(0o755)
    shutil.copy(tool("busybox"), root / "bin/busybox")
    for applet in run([tool("busybox"), "--list"]).split():  # here and not in the guest, which would take 0.1 s
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    run(["gcc", "-O2", "-static", "-Wall", "-s", "-o", root / "bin/writer", SOURCES / "writer.c"])
    agent = tool("qemu-ga")
    shutil.copy(agent, root / "bin/qemu-ga")
    for library in re.findall(r"(/\S+) \(0x", run(["ldd", agent])):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def _add_modules(root: Path, unpacked: Path) -> None:
    """Copy the modules and write the order of loading, one list per occasion."""
    (tree,) = (unpacked / "lib/modules").iterdir()
    run(["depmod", "-b", unpacked, tree.name])
    depends = _dependencies(tree / "modules.dep")
    loaded: list[str] = []
    for occasion, names in MODULES.items():
        order = [path for name in names for path in depends[name]]
        fresh = [path for path in dict.fromkeys(order) if path not in loaded]
        loaded += fresh
        files = [_copy_module(tree / path, root / "modules") for path in fresh]
        (root / "modules" / f"{occasion}.list").write_text("".join(f"{name}\n" for name in files))


def _dependencies(modules_dep: Path) -> dict[str, list[str]]:
    """Read depmod's table: module name -> the files to load for it, in order (the table has the last needed first)."""
    table = {}
    for line in modules_dep.read_text().splitlines():
        path, _, needed = line.partition(":")
        table[Path(path).name.split(".")[0]] = [*reversed(needed.split()), path]
    return table


def _copy_module(source: Path, folder: Path) -> str:
    """Copy one module and return its file name.

    Unpacked, since later Debian releases compress what busybox cannot read, and without its signature, which the
    emulated CPU would check at each boot (this, and SCSI only where it is needed, saved 0.2 s of 3.3 s).
    """
    target = folder / source.name.removesuffix(".xz")
    content = lzma.decompress(source.read_bytes()) if source.suffix == ".xz" else source.read_bytes()
    if content.endswith(SIGNED):
        about = content[: -len(SIGNED)][-12:]
        content = content[: -len(SIGNED) - len(about) - int.from_bytes(about[-4:], "big")]
    target.write_bytes(content)
    return target.name
