"""Our parser and locks against what QEMU itself makes and holds."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from common.errors import HeaderRefused
from common.images import qcow2
from common.images.locks import image_is_locked, image_lock, opened
from tests.bed.process import run
from tests.integration.spm_kit import in_use, write_data
from tests.wait import eventually

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

OPTIONS = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "extended_l2=on,cluster_size=128k",
    "lazy_refcounts=on",
    "refcount_bits=1",
    "compression_type=zstd",
]


def create(path: Path, *words: str, size: str = "1G") -> Path:
    run(["qemu-img", "create", "-q", "-f", "qcow2", *words, path, size])
    return path


def is_empty(path: Path) -> bool:
    with opened(path, writable=False) as fd:
        return qcow2.is_empty(fd)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", ["0", "1", "1G", "63G"])
def test_header_says_what_qemu_img_says(tmp_path: Path, options: str, size: str) -> None:
    if "cluster_size=512" in options and size == "63G":
        size = "7G"  # QEMU's own limit of the L1 table
    path = create(tmp_path / "image", "-o", options, size=size)
    seen = qcow2.read_header(path)
    said = json.loads(run(["qemu-img", "info", "--output=json", "-f", "qcow2", path]))
    assert (seen.size_bytes, seen.cluster_bytes) == (said["virtual-size"], said["cluster-size"])
    assert seen.extended_l2 == said["format-specific"]["data"].get("extended-l2", False)
    assert is_empty(path)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("command", ["write 0 1", "write 900M 64k", "write -z 512M 64k", "write -z -u 0 1M"])
def test_any_write_makes_it_not_empty(tmp_path: Path, options: str, command: str) -> None:
    path = create(tmp_path / "image", "-o", options)
    write_data(path, command)
    # Version 2 has no zero clusters: without a base, zeros over nothing leave nothing behind.
    nothing_written = "compat=0.10" in options and " -z " in command
    assert is_empty(path) == nothing_written


def test_compressed_and_preallocated_clusters_are_data(tmp_path: Path) -> None:
    path = create(tmp_path / "compressed")
    write_data(path, "write -c 0 64k")
    assert not is_empty(path)
    assert not is_empty(create(tmp_path / "metadata", "-o", "preallocation=metadata", size="16M"))


def test_one_subcluster_of_zeros_is_data(tmp_path: Path) -> None:
    path = create(tmp_path / "image", "-o", "extended_l2=on,cluster_size=64k")
    write_data(path, "write -z 2k 2k")
    assert not is_empty(path)


def test_internal_snapshot_is_data(tmp_path: Path) -> None:
    path = create(tmp_path / "image", size="16M")
    run(["qemu-img", "snapshot", "-c", "one", path])
    assert not is_empty(path)


def test_zeros_over_a_bases_data_are_data(tmp_path: Path) -> None:
    base = create(tmp_path / "base")
    write_data(base)
    for n, command in enumerate(("discard 0 64k", "write -z 0 64k")):
        overlay = create(tmp_path / f"overlay{n}", "-F", "qcow2", "-b", "base")
        assert is_empty(overlay)
        write_data(overlay, command)
        assert not is_empty(overlay)


def test_reading_leaves_it_empty(tmp_path: Path) -> None:
    path = create(tmp_path / "image")
    write_data(path, "read 0 1M")
    assert is_empty(path)


def test_image_that_was_killed_in_use_can_be_read(tmp_path: Path) -> None:
    path = create(tmp_path / "image", "-o", "lazy_refcounts=on", size="16M")
    said = run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "sigraise 9", path], ok=(-9,))
    assert said is not None
    assert qcow2.read_header(path).version == 3
    assert not is_empty(path)


def test_backing_name_and_format(tmp_path: Path) -> None:
    create(tmp_path / "base")
    seen = qcow2.read_header(create(tmp_path / "overlay", "-F", "qcow2", "-b", "./base"))
    assert (seen.backing_name, seen.backing_format) == ("./base", "qcow2")


@pytest.mark.parametrize("image_format", ["raw", "vmdk", "vdi", "qed"])
def test_other_formats_are_refused(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / "image"
    run(["qemu-img", "create", "-q", "-f", image_format, path, "16M"])
    with pytest.raises(HeaderRefused):
        qcow2.read_header(path)


def test_an_encrypted_image_is_refused(tmp_path: Path) -> None:
    """Its first bytes are written here: qemu-img times its own key derivation, and fails at that on a busy machine."""
    path = tmp_path / "image"
    path.write_bytes(b"LUKS\xba\xbe\x00\x01".ljust(2 << 20, b"\0"))
    with pytest.raises(HeaderRefused):
        qcow2.read_header(path)


# ---- locks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_every_use_by_qemu_is_seen(tmp_path: Path, read_only: bool, image_format: str) -> None:
    path = tmp_path / "image"
    run(["qemu-img", "create", "-q", "-f", image_format, path, "16M"])
    assert not image_is_locked(path)
    with in_use(path, image_format=image_format, read_only=read_only), image_lock(path) as fd:
        assert fd is None
    with image_lock(path) as fd:
        assert fd is not None


def test_backing_file_in_use_is_seen(tmp_path: Path) -> None:
    base = create(tmp_path / "base", size="16M")
    overlay = create(tmp_path / "overlay", "-F", "qcow2", "-b", "base", size="16M")
    with in_use(overlay):
        assert image_is_locked(base)


@pytest.mark.needs("qemu-nbd")
def test_exported_image_is_seen(tmp_path: Path) -> None:
    path = create(tmp_path / "image", size="16M")
    address = tmp_path / "socket"
    words = ["qemu-nbd", "-f", "qcow2", "-k", str(address), "-t", str(path)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # Not merely locked: qemu-nbd opens the image first, and forgets a SIGTERM that comes before its main loop.
        eventually(lambda: is_served(address), timeout_s=10, what="qemu-nbd to greet a client")
        assert image_is_locked(path)
    finally:
        server.terminate()
        server.wait(10)
    assert not image_is_locked(path)


def is_served(address: Path) -> bool:
    """Whether an NBD server greets there; its greeting begins with NBDMAGIC (NBD protocol, handshake phase)."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        if client.connect_ex(str(address)) != 0:
            return False
        return client.recv(8) == b"NBDMAGIC"
