"""The header parser against hand-made and random files; what QEMU makes is tests/integration/test_images_qemu.py's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import HeaderRefused
from common.images import qcow2
from tests.unit.common.images.header import CLUSTER, Image

QCOW2_FORMAT = (0xE2792ACA, b"qcow2")


@contextmanager
def opened(content: bytes) -> Iterator[int]:
    """Yield a descriptor of a file with that content."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def header_of(image: Image) -> qcow2.Header:
    with opened(image.content()) as fd:
        return qcow2.parse_header(fd, name="it")


def is_empty(image: Image) -> bool:
    with opened(image.content()) as fd:
        return qcow2.is_empty(fd)


def test_sound_header() -> None:
    seen = header_of(Image(backing=b"../base.qcow2", extensions=(QCOW2_FORMAT, (0x6803F857, bytes(48)))))
    assert seen == qcow2.Header(
        version=3,
        size_bytes=1 << 30,
        cluster_bits=16,
        extended_l2=False,
        backing_name="../base.qcow2",
        backing_format="qcow2",
        l1_offset=CLUSTER,
        l1_entries=2,
        snapshots=0,
    )
    assert seen.cluster_bytes == 65536


def test_version_2_header() -> None:
    seen = header_of(Image(version=2, backing=b"base.img", extensions=((0xE2792ACA, b"raw"),)))
    assert (seen.version, seen.backing_name, seen.backing_format) == (2, "base.img", "raw")


def test_dirty_and_compression_type_are_no_obstacle() -> None:
    assert header_of(Image(incompatible=1 | 8)).size_bytes == 1 << 30


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ({"magic": b"QFI\xfa"}, "not a qcow2 image"),
        ({"magic": b"\x7fELF"}, "not a qcow2 image"),
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
        ({"cluster_bits": 8}, "cluster bits 8"),
        ({"cluster_bits": 22}, "cluster bits 22"),
        ({"incompatible": 2}, "corrupt mark"),
        ({"incompatible": 4}, "external data file"),
        ({"autoclear": 2}, "external data file"),
        ({"incompatible": 32}, "unknown incompatible features 0x20"),
        ({"incompatible": 1 << 63}, "unknown incompatible features"),
        ({"header_length": 100}, "header length 100"),
        ({"header_length": 0}, "header length 0"),
        ({"backing": b"x" * 1024}, "a backing name of 1024 bytes"),
        ({"backing": b"x", "backing_length": 0}, "a backing name of 0 bytes"),
        ({"backing": b"x", "backing_offset": CLUSTER}, "a backing name"),
        ({"backing": b"x", "backing_offset": 8}, "a backing name"),
        ({"backing": b"\xff\xfe"}, "not UTF-8"),
        ({"backing": b"a\x00b"}, "control characters"),
        ({"backing": b"a\nb"}, "control characters"),
        ({"extensions": ((0x44415441, b"data.raw"),)}, "data file or encryption"),
        ({"extensions": ((0x0537BE77, bytes(16)),)}, "data file or encryption"),
        ({"l1_size": 0}, "L1 table too short"),
        ({"l1_size": 1}, "L1 table too short"),
        ({"l1_size": (32 << 20) // 8 + 1}, "an L1 table of"),
        ({"l1_offset": 512}, "an L1 table at 512"),
        ({"size": 1 << 63}, "a virtual size"),
        ({"cluster_bits": 13, "l1_size": 128, "incompatible": 16}, "extended L2 entries in small clusters"),
    ],
)
def test_what_is_refused(wrong: dict[str, object], seen: str) -> None:
    with pytest.raises(HeaderRefused) as refused:
        header_of(replace(Image(), **wrong))  # type: ignore[arg-type]
    assert seen in refused.value.message
    assert refused.value.code == "header_refused"


@pytest.mark.parametrize("method", [1, 2])
def test_encryption_has_a_code_of_its_own(tmp_path: Path, method: int) -> None:
    with pytest.raises(HeaderRefused) as refused:
        header_of(Image(crypt=method))
    assert refused.value.code == "disk_encrypted"
    assert f"method {method}" in refused.value.message
    assert qcow2.is_encrypted(Image(crypt=method).write(tmp_path / "a"))
    # Nothing else in the header keeps the word back, and nothing but a crypt method says it.
    assert qcow2.is_encrypted(Image(crypt=method, incompatible=1 << 63, l1_size=0).write(tmp_path / "b"))
    for other in (Image(), Image(incompatible=4), Image(magic=b"LUKS", crypt=method)):
        assert not qcow2.is_encrypted(other.write(tmp_path / "c"))
    (tmp_path / "d").write_bytes(b"QFI\xfb")
    assert not qcow2.is_encrypted(tmp_path / "d")


def test_extension_that_runs_out_of_the_header() -> None:
    content = bytearray(Image().content())
    content[104:112] = (0x1234).to_bytes(4, "big") + (0xFFFFFFF0).to_bytes(4, "big")
    with opened(bytes(content)) as fd, pytest.raises(HeaderRefused):
        qcow2.parse_header(fd, name="it")


@pytest.mark.parametrize("length", [0, 3, 71, 72, 103])
def test_file_that_ends_early(length: int) -> None:
    with opened(Image().content()[:length]) as fd, pytest.raises(HeaderRefused):
        qcow2.parse_header(fd, name="it")


# ---- emptiness --------------------------------------------------------------------------------------------------


def test_no_table_is_empty() -> None:
    assert is_empty(Image())


def test_zero_table_is_empty() -> None:
    assert is_empty(Image(l1=(2 * CLUSTER | 1 << 63, 0), tables={2 * CLUSTER: bytes(CLUSTER)}))


@pytest.mark.parametrize("bit", [0, 1, 9, 40, 62, 63])
@pytest.mark.parametrize("index", [0, 1, 4095, 8191])
def test_one_bit_in_a_table_is_data(bit: int, index: int) -> None:
    """Allocated, compressed, zero cluster, or (with extended L2) a subcluster: whatever it is, it is not nothing."""
    table = bytearray(CLUSTER)
    table[index * 8 : index * 8 + 8] = (1 << bit).to_bytes(8, "big")
    assert not is_empty(Image(l1=(0, 2 * CLUSTER), tables={2 * CLUSTER: bytes(table)}))


@pytest.mark.parametrize(
    "image",
    [
        Image(snapshots=1),
        Image(l1=(64 * CLUSTER,)),
        Image(l1=(2 * CLUSTER + 512,), tables={2 * CLUSTER: bytes(2 * CLUSTER)}),
        Image(l1=(1 << 63,)),
        Image(l1=(1,)),
        Image(l1_offset=8 * CLUSTER),
        Image(l1_offset=(1 << 61)),
    ],
    ids=["snapshots", "outside", "misplaced", "flag-only", "reserved-bit", "no-l1", "l1-far-away"],
)
def test_what_cannot_be_proven_is_not_empty(image: Image) -> None:
    assert not is_empty(image)


def test_work_on_a_hostile_file_is_bounded() -> None:
    """4 Mi L1 entries that all name some table of zeros: 256 GiB to read, if one believed it."""
    with tempfile.TemporaryFile() as file:
        entries = (32 << 20) // 8
        file.write(Image(l1_size=entries).content())
        file.truncate(1 << 40)
        for start in range(0, entries, 4096):
            chunk = range(start, min(start + 4096, entries))
            file.seek(CLUSTER + start * 8)
            file.write(b"".join(((1024 + n % 1_000_000) * CLUSTER).to_bytes(8, "big") for n in chunk))
        file.flush()
        before = bytes_read()
        assert not qcow2.is_empty(file.fileno())
        assert bytes_read() - before < 64 << 20


def bytes_read() -> int:
    """Return how much this process has read so far, as the kernel counts."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_random_bytes_never_do_anything_else_than_be_refused(content: bytes) -> None:
    with opened(b"QFI\xfb" + content) as fd, suppress(HeaderRefused):
        assert qcow2.is_empty(fd) in (True, False)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 260), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_sound_header_with_random_changes(changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(Image(backing=b"base", extensions=(QCOW2_FORMAT,)).content())
    for at, data in changes:
        content[at : at + len(data)] = data
    before = bytes_read()
    with opened(bytes(content)) as fd, suppress(HeaderRefused):
        seen = qcow2.parse_header(fd, name="it")
        assert seen.size_bytes >= 0
        assert qcow2.is_empty(fd) in (True, False)
    assert bytes_read() - before < 64 << 20


def test_path_is_opened_without_following_links(tmp_path: Path) -> None:
    image = Image().write(tmp_path / "image")
    assert qcow2.read_header(image).version == 3
    (tmp_path / "link").symlink_to(image)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(HeaderRefused):
            qcow2.read_header(tmp_path / name)
