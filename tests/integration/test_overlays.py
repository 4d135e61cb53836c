"""An overlay that was made from another one is the file that qemu-img would have made, to the last byte."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from common.errors import StorageError
from common.images import qemu_img
from common.images.locks import opened
from common.images.overlays import Overlays
from common.images.qcow2 import is_empty, parse_header
from common.images.qemu_img import Overlay
from common.messaging.messages import Format
from common.units import GIB, KIB, MIB
from tests.bed.process import run

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

TIB = 1024 * GIB
NAMES = ("3f0e8f4e-0000-4000-8000-000000000001.qcow2", "9a1c2b3d-0000-4000-8000-00000000000f.qcow2")
KINDS = [
    Overlay(size_bytes=size, backing_name="", backing_format=backing, cluster_bytes=cluster, extended_l2=extended)
    for size, backing, (cluster, extended) in product(
        (MIB, 10 * GIB, GIB + 512, 2 * TIB),
        (Format.QCOW2, Format.RAW),
        ((64 * KIB, False), (4 * KIB, False), (2 * MIB, False), (64 * KIB, True), (128 * KIB, True)),
    )
]


SMALL = Overlay(size_bytes=MIB, backing_name=NAMES[0], backing_format=Format.QCOW2)


class Counted:
    """qemu-img, with the files that it has made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, root: Path, path: str, overlay: Overlay) -> None:
        self.made.append(path)
        qemu_img.create(root, path, overlay)


def named(kind: Overlay, name: str) -> Overlay:
    return replace(kind, backing_name=name)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_the_file_that_qemu_img_makes(tmp_path: Path, kind: Overlay) -> None:
    counted = Counted()
    overlays = Overlays(counted)
    for number, name in enumerate((*NAMES, NAMES[0]), start=1):
        overlays.create(tmp_path, f"{number}.qcow2", named(kind, name))
    qemu_img.create(tmp_path, "by-qemu-img.qcow2", named(kind, NAMES[1]))
    first, second, third, theirs = (tmp_path / f"{name}.qcow2" for name in ("1", "2", "3", "by-qemu-img"))
    if first.stat().st_size <= 4 * MIB:
        assert counted.made == ["1.qcow2"]
    else:
        assert counted.made == ["1.qcow2", "2.qcow2", "3.qcow2"], "what is very long is left to qemu-img"
    assert second.read_bytes() == theirs.read_bytes()
    assert third.read_bytes() == first.read_bytes()
    assert second.stat().st_blocks == theirs.stat().st_blocks
    with opened(second, writable=False) as fd:
        assert parse_header(fd, name="it").backing_name == NAMES[1]
        assert is_empty(fd)
    run(["qemu-img", "create", "-q", "-f", kind.backing_format, tmp_path / NAMES[1], str(kind.size_bytes)])
    assert "No errors" in run(["qemu-img", "check", "-f", "qcow2", second])


def test_names_of_other_lengths_and_other_sizes_are_other_kinds(tmp_path: Path) -> None:
    counted = Counted()
    overlays, kind = Overlays(counted), KINDS[0]
    wanted = [named(kind, "../base.img"), named(kind, "../other.img"), named(KINDS[5], "../base.img")]
    for number, overlay in enumerate(wanted):
        overlays.create(tmp_path, f"{number}.qcow2", overlay)
        qemu_img.create(tmp_path, f"{number}.theirs", overlay)
        assert (tmp_path / f"{number}.qcow2").read_bytes() == (tmp_path / f"{number}.theirs").read_bytes()
    assert counted.made == ["0.qcow2", "1.qcow2", "2.qcow2"]


@pytest.mark.parametrize("name", ["qcow2", "lazy refcounts"])
def test_a_name_that_stands_there_twice_is_never_replaced(tmp_path: Path, name: str) -> None:
    """As the backing format's name, or among the names of features."""
    counted = Counted()
    overlays = Overlays(counted)
    for path in ("a", "b"):
        overlays.create(tmp_path, path, named(KINDS[0], name))
    assert counted.made == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_not_as_ordered_serves_nobody_else(tmp_path: Path) -> None:
    """Somebody has put another file there meanwhile: of another size, or with data."""

    def meddled(root: Path, path: str, overlay: Overlay) -> None:
        made.append(path)
        qemu_img.create(root, path, replace(overlay, size_bytes=2 * MIB) if len(made) == 1 else overlay)
        if len(made) == 2:
            run(["qemu-img", "create", "-q", "-f", "qcow2", root / overlay.backing_name, "1M"])
            run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", root / path])

    made: list[str] = []
    overlays = Overlays(meddled)
    for path in ("a", "b", "c", "d"):
        overlays.create(tmp_path, path, named(KINDS[0], NAMES[0]))
    assert made == ["a", "b", "c"]
    assert (tmp_path / "d").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_colon_and_odd_bytes_in_a_name(tmp_path: Path) -> None:
    counted = Counted()
    overlays = Overlays(counted)
    for number, name in enumerate(("nbd:base", "nbd:b\u00e4s", "\udcffodd.img", "\udcfeodd.img")):
        overlays.create(tmp_path, f"{number}", named(KINDS[0], name))
        qemu_img.create(tmp_path, f"{number}.theirs", named(KINDS[0], name))
        assert (tmp_path / f"{number}").read_bytes() == (tmp_path / f"{number}.theirs").read_bytes()
    assert counted.made == ["0", "2", "3"], "our parser refuses the last two"


def test_no_more_kinds_are_remembered_than_can_be_counted(tmp_path: Path) -> None:
    counted = Counted()
    overlays = Overlays(counted)
    for size in range(1, 35):
        overlays.create(tmp_path, f"{size}", replace(SMALL, size_bytes=size * MIB))
    overlays.create(tmp_path, "34.again", replace(SMALL, size_bytes=34 * MIB))
    overlays.create(tmp_path, "1.again", replace(SMALL, size_bytes=MIB))
    assert counted.made[-2:] == ["34", "1.again"]


def failed(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.code


def test_what_cannot_be_written_has_its_code(tmp_path: Path) -> None:
    overlays = Overlays()
    overlays.create(tmp_path, "a", named(KINDS[0], NAMES[0]))
    assert failed(lambda: overlays.create(tmp_path, "nowhere/b", named(KINDS[0], NAMES[1]))) == "storage_io_error"
    (tmp_path / "link").symlink_to("a")
    before = (tmp_path / "a").read_bytes()
    assert failed(lambda: overlays.create(tmp_path, "link", named(KINDS[0], NAMES[1]))) == "storage_io_error"
    assert (tmp_path / "a").read_bytes() == before
