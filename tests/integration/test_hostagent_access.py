"""Who may open a volume, tried on real files with that user's own file access; nothing of it stays behind."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import StorageError
from hostagent.access import require_open, require_way
from hostagent.as_user import CannotAct, acting_as
from hostagent.ports import QemuUser
from hostagent.qemu_user import _dynamic_ownership
from tests.bed.paths import short_dir
from tests.bed.process import run

pytestmark = pytest.mark.needs("root")

QEMU = QemuUser(uid=64_000, gid=64_001, groups=(64_001, 64_002))
GIVEN = QemuUser(uid=QEMU.uid, gid=QEMU.gid, groups=QEMU.groups, is_given_files=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with short_dir() as root:
        made = root / "images"
        made.mkdir(mode=0o755)
        yield made


def volume(folder: Path, owner: tuple[int, int], mode: int) -> Path:
    path = folder / "leaf.qcow2"
    path.write_bytes(b"content")
    os.chown(path, *owner)
    path.chmod(mode)
    return path


def refusal(path: Path, user: QemuUser = QEMU) -> str:
    with pytest.raises(StorageError) as refused:
        require_open(path, user)
    assert refused.value.code == "volume_permission"
    assert refused.value.message.startswith(f"user 64000, group 64001 may not open {path}: ")
    return refused.value.message.rpartition(": ")[2]


def only(path: Path, uid: int) -> None:
    """Let an access list give one user what owner and mode do not; written out, so that no tool is needed."""
    everybody = 0xFFFFFFFF
    entries = [(0x01, 6, everybody), (0x02, 6, uid), (0x04, 0, everybody), (0x10, 6, everybody), (0x20, 0, everybody)]
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Give this process another effective user for a while."""
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


MAY = [((64_000, 0), 0o600), ((0, 64_001), 0o660), ((0, 64_002), 0o660), ((0, 0), 0o666)]
MAY_NOT = [((0, 0), 0o600), ((0, 0), 0o660), ((64_000, 0), 0o400), ((64_000, 64_001), 0o066), ((65_534, 65_534), 0o644)]


@pytest.mark.parametrize(("owner", "mode"), MAY)
def test_it_may(folder: Path, owner: tuple[int, int], mode: int) -> None:
    path = volume(folder, owner, mode)
    before = path.stat()
    access = require_open(path, QEMU)
    assert (access.how, access.by_mode) == ("opened read-write as user 64000, group 64001", True)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, path.read_bytes()) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
        b"content",
    )


@pytest.mark.parametrize(("owner", "mode"), MAY_NOT)
def test_it_may_not(folder: Path, owner: tuple[int, int], mode: int) -> None:
    assert refusal(volume(folder, owner, mode)) == "Permission denied"


def test_a_closed_folder_is_named(folder: Path) -> None:
    path = volume(folder, (64_000, 64_001), 0o600)
    folder.chmod(0o700)
    assert refusal(path) == f"{folder} is closed to it"
    with pytest.raises(StorageError, match="is closed to it") as refused:
        require_way(folder, QEMU)
    assert refused.value.code == "volume_permission"
    folder.chmod(0o711)
    require_way(folder, QEMU)


def test_an_access_list_counts_but_a_new_file_will_not_have_it(folder: Path) -> None:
    path = volume(folder, (0, 0), 0o600)
    only(path, 64_000)
    access = require_open(path, QEMU)
    assert (access.how, access.by_mode) == ("opened read-write as user 64000, group 64001", False)
    only(path, 64_003)
    assert refusal(path) == "Permission denied"


@pytest.mark.needs("mount")
def test_storage_that_is_read_only(folder: Path) -> None:
    volume(folder, (64_000, 64_001), 0o600)
    mounted = folder.with_name("mounted")
    mounted.mkdir()
    run(["mount", "--bind", folder, mounted])
    try:
        run(["mount", "-o", "remount,bind,ro", mounted])
        assert refusal(mounted / "leaf.qcow2") == "Read-only file system"
        assert refusal(mounted / "leaf.qcow2", GIVEN) == "Read-only file system"
    finally:
        run(["umount", mounted])


def test_what_libvirt_gives_to_qemu(folder: Path) -> None:
    path = volume(folder, (0, 0), 0o600)
    assert "libvirt gives it to user 64000" in require_open(path, GIVEN).how
    assert refusal(path) == "Permission denied"
    os.chown(path, 65_534, 65_534)
    assert refusal(path, GIVEN) == "Permission denied", "as where storage squashes root: nobody can give it away"
    os.chown(path, 0, 0)
    folder.chmod(0o700)
    assert refusal(path, GIVEN) == f"{folder} is closed to it", "libvirt gives files away, not folders"


def test_a_process_that_is_not_root_goes_by_owner_and_mode_and_says_so(folder: Path) -> None:
    path = volume(folder, (64_000, 64_001), 0o600)
    with unprivileged():
        access = require_open(path, QEMU)
        require_way(folder, QEMU)
    assert access.how.startswith("owner and mode let user 64000, group 64001 open it (not tried: ")
    path.chmod(0o400)
    with unprivileged():
        assert refusal(path) == "by owner and mode"


def test_a_process_tries_as_itself_without_root(folder: Path) -> None:
    path = volume(folder, (65_534, 65_534), 0o600)
    with unprivileged():
        assert require_open(path, QemuUser(uid=65_534, gid=65_534)).how.startswith("opened read-write")


def test_nothing_stays_with_this_process(folder: Path) -> None:
    def users() -> set[str]:
        found = (Path(f"/proc/self/task/{task}/status").read_text() for task in os.listdir("/proc/self/task"))
        return {line for text in found for line in text.splitlines() if line.startswith(("Uid:", "Gid:", "Groups:"))}

    before = users()
    assert "64000" in acting_as(QEMU, lambda: Path("/proc/thread-self/status").read_text())
    with pytest.raises(PermissionError):
        acting_as(QEMU, lambda: volume(folder, (0, 0), 0o600).open("r+b"))
    with unprivileged(), pytest.raises(CannotAct):
        acting_as(QEMU, lambda: None)
    assert users() == before


@pytest.mark.parametrize(
    ("conf", "gives"),
    [
        ("", True),
        ('user = "root"\n# dynamic_ownership = 0\n', True),
        ("dynamic_ownership = 0\n", False),
        ("  dynamic_ownership=0\n", False),
        ("dynamic_ownership = 0\ndynamic_ownership = 1\n", True),
    ],
)
def test_libvirts_setting(tmp_path: Path, conf: str, gives: bool) -> None:
    (tmp_path / "qemu.conf").write_text(conf)
    assert _dynamic_ownership(tmp_path / "qemu.conf") is gives
    assert _dynamic_ownership(tmp_path / "missing")
    with unprivileged():
        assert not _dynamic_ownership(tmp_path / "qemu.conf"), "what cannot be read is not counted on"
