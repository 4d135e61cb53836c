"""Open file description locks: two descriptors of one process are two holders already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import HeaderRefused
from common.images.locks import (
    IMAGE,
    WHOLE,
    Span,
    image_is_locked,
    image_lock,
    is_held,
    lock_file,
    opened,
    try_lock,
    wait_lock,
)

# One byte of each of QEMU's two ranges, and the first and last byte of all.
QEMU_BYTES = (100, 101, 163, 200, 201, 299)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("byte", QEMU_BYTES)
def test_read_lock_on_any_byte_of_qemu_is_seen(path: Path, byte: int) -> None:
    with opened(path, writable=False) as other:
        assert try_lock(other, Span(start=byte, length=1), shared=True)
        assert image_is_locked(path)
        with image_lock(path) as fd:
            assert fd is None
    assert not image_is_locked(path)


@pytest.mark.parametrize("byte", [0, 99, 300])
def test_bytes_that_qemu_does_not_use_do_not_matter(path: Path, byte: int) -> None:
    with opened(path, writable=True) as other:
        assert try_lock(other, Span(start=byte, length=1))
        assert not image_is_locked(path)


def test_holding_keeps_everybody_out_until_the_end(path: Path) -> None:
    with image_lock(path) as fd:
        assert fd is not None
        with opened(path, writable=False) as other:
            assert not try_lock(other, Span(start=100, length=1), shared=True)
            assert is_held(other, IMAGE)
        assert not is_held(fd, IMAGE)  # one's own lock is no conflict
    with opened(path, writable=False) as other:
        assert try_lock(other, Span(start=100, length=1), shared=True)


def test_lock_follows_the_file_through_a_rename(path: Path) -> None:
    with image_lock(path) as fd:
        assert fd is not None
        moved = path.rename(path.with_name("moved"))
        assert image_is_locked(moved)


def test_lock_goes_with_its_process(path: Path) -> None:
    program = (
        "import sys, pathlib\nfrom common.images.locks import lock_file\n"
        "print(lock_file(pathlib.Path(sys.argv[1])), flush=True)\nsys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip().isdigit()
        assert lock_file(path) is None
    finally:
        child.kill()
        child.communicate()
    fd = lock_file(path)
    assert fd is not None
    os.close(fd)


def test_shared_locks_get_along_and_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "host"
    held = [lock_file(path, shared=True), lock_file(path, shared=True)]
    assert None not in held
    assert lock_file(path) is None
    with opened(path, writable=False) as fd:
        assert is_held(fd, WHOLE)
    for each in held:
        assert each is not None
        os.close(each)
    with opened(path, writable=True) as fd:
        wait_lock(fd, WHOLE)


def test_what_is_no_file_is_refused_and_what_is_missing_said(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(HeaderRefused), image_lock(tmp_path / name):
            pass
    with pytest.raises(FileNotFoundError), image_lock(tmp_path / "missing"):
        pass
