"""Disks that no snapshot can take, of every kind that libvirt offers, on a real host."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost
from tests.bed.paths import give
from tests.bed.process import run
from tests.wait import eventually

TOOLS: Final = ("loop", "losetup", "qemu-nbd")
SIZE_MIB: Final = 4
_PASSPHRASE = "correct horse"


@dataclass(frozen=True, kw_only=True)
class OddDisk:
    """One disk: its <disk> element, and the code with which it is refused."""

    target: str
    xml: str
    code: str
    is_data: bool = True


class OddDisks:
    """Makes them below a storage domain, with what they need round them: a loop device, an NBD server, a secret."""

    def __init__(self, host: IsolatedHost, storage: Path, outside: Path, stack: ExitStack) -> None:
        self._host, self._storage, self._outside = host, storage, outside
        self._secret = str(uuid4())
        self._socket = storage / "odd.sock"
        self._loop = stack.enter_context(_loop_device(self._raw("block"), host))
        stack.enter_context(_nbd_server(self._raw("nbd"), self._socket, host))

    def that_run(self) -> tuple[OddDisk, ...]:
        """Return those that a machine starts with. The drives' media are not writable, or not there."""
        with self._host.connect() as connection:
            secret = f"<secret ephemeral='no' private='no'><uuid>{self._secret}</uuid></secret>"
            connection.secretDefineXML(secret).setValue(_PASSPHRASE.encode(), 0)
            self._raw("volume")
            pool = f"<pool type='dir'><name>odd</name><target><path>{self._storage}</path></target></pool>"
            connection.storagePoolCreateXML(pool)
        socket = f"<host transport='unix' socket='{self._socket}'/>"
        return (
            OddDisk(target="sdc", xml=self._file("sdc", "shared", "<shareable/>"), code="disk_shareable"),
            OddDisk(target="sdd", xml=self._file("sdd", "fixed", "<readonly/>"), code="disk_readonly", is_data=False),
            OddDisk(target="sde", xml=_disk("sde", f"<source dev='{self._loop}'/>", "block"), code="disk_block_device"),
            OddDisk(
                target="sdf",
                xml=_disk("sdf", f"<source protocol='nbd' name='odd'>{socket}</source>", "network"),
                code="disk_network",
            ),
            OddDisk(
                target="sdg",
                xml=_disk("sdg", "<source pool='odd' volume='volume.raw'/>", "volume"),
                code="disk_libvirt_volume",
            ),
            OddDisk(target="sdh", xml=self._encrypted("sdh", by_definition=True), code="disk_encrypted"),
            OddDisk(target="sdi", xml=self._transient("sdi"), code="disk_transient"),
            OddDisk(target="sdj", xml=self.cdrom("first"), code="disk_cdrom", is_data=False),
            OddDisk(target="fda", xml=self._drive("fda", "boot", "fdc", "floppy"), code="disk_floppy"),
            OddDisk(
                target="sdk",
                xml="<disk type='file' device='cdrom'><target dev='sdk' bus='sata'/><readonly/></disk>",
                code="disk_cdrom",
                is_data=False,
            ),
        )

    def that_only_exist(self) -> tuple[OddDisk, ...]:
        """Return those of a machine that is never started."""
        lun = _disk("sdb", f"<source dev='{self._loop}'/>", "block", device="lun")
        vmdk = self._file("sde", "foreign").replace("type='raw'", "type='vmdk'")
        far = make_disk(self._outside / "far.raw", fs=None, format="raw", size_mib=SIZE_MIB, owner=self._host.owner)
        slices = "<slices><slice type='storage' offset='0' size='1048576'/></slices>"
        sliced = _disk("sdd", f"<source file='{self._raw('sliced')}'>{slices}</source>")
        return (
            OddDisk(target="sdb", xml=lun, code="disk_direct_lun"),
            OddDisk(target="sdc", xml=self._encrypted("sdc", by_definition=False), code="disk_encrypted"),
            OddDisk(target="sdd", xml=sliced, code="disk_unsupported"),
            OddDisk(target="sde", xml=vmdk, code="disk_format_unsupported"),
            OddDisk(target="sdf", xml=_disk("sdf", f"<source file='{far}'/>"), code="disk_outside_storage_domain"),
        )

    def cdrom(self, medium: str) -> str:
        """Return the CD-ROM drive `sdj` with another medium."""
        return self._drive("sdj", medium, "sata", "cdrom", "<readonly/>")

    def _raw(self, name: str) -> Path:
        path = self._storage / f"{name}.raw"
        return make_disk(path, fs=None, format="raw", size_mib=SIZE_MIB, owner=self._host.owner)

    def _file(self, target: str, name: str, more: str = "") -> str:
        return _disk(target, f"<source file='{self._raw(name)}'/>{more}")

    def _drive(self, target: str, medium: str, bus: str, device: str, more: str = "") -> str:
        return _disk(target, f"<source file='{self._raw(medium)}'/>{more}", bus=bus, device=device)

    def _transient(self, target: str) -> str:
        path = make_disk(self._storage / "passing.qcow2", fs=None, size_mib=SIZE_MIB, owner=self._host.owner)
        return _disk(target, f"<source file='{path}'/><transient/>", image_format="qcow2")

    def _encrypted(self, target: str, *, by_definition: bool) -> str:
        """Without <encryption> in the definition only the image's own header tells of it."""
        path = self._storage / f"secret-{target}.qcow2"
        key = ("--object", f"secret,id=s,data={_PASSPHRASE}")
        # qemu-img times its key derivation by user time and gives up ("Unable to get accurate CPU usage") when
        # that is 0 ms; sha512 takes several ticks of the clock, sha256 sometimes none.
        how = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.hash-alg=sha512"
        run(["qemu-img", "create", "-q", "-f", "qcow2", *key, "-o", how, path, f"{SIZE_MIB}M"])
        give(path, self._host.owner)
        secret = f"<encryption format='luks'><secret type='passphrase' uuid='{self._secret}'/></encryption>"
        source = f"<source file='{path}'>{secret if by_definition else ''}</source>"
        return _disk(target, source, image_format="qcow2")


def _disk(
    target: str,
    inner: str,
    kind: str = "file",
    *,
    bus: str = "scsi",
    device: str = "disk",
    image_format: str = "raw",
) -> str:
    driver = f"<driver name='qemu' type='{image_format}'/>"
    return f"<disk type='{kind}' device='{device}'>{driver}{inner}<target dev='{target}' bus='{bus}'/></disk>"


@contextmanager
def _loop_device(path: Path, host: IsolatedHost) -> Iterator[str]:
    device = run(["losetup", "--find", "--show", path]).strip()
    before = os.stat(device)
    try:
        give(Path(device), host.owner)
        yield device
    finally:
        os.chown(device, before.st_uid, before.st_gid)
        run(["losetup", "--detach", device])


@contextmanager
def _nbd_server(path: Path, socket: Path, host: IsolatedHost) -> Iterator[None]:
    words = ["qemu-nbd", "--persistent", "--format=raw", f"--socket={socket}", "--export-name=odd", str(path)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as server:
        try:
            eventually(socket.exists, timeout_s=10, what="the NBD server's socket")
            give(socket, host.owner)
            yield
        finally:
            server.terminate()
