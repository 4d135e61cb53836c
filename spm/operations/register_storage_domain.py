"""Make a folder a storage domain, after testing that what livesnap stands on works there: locks and hard links."""

import os
from dataclasses import replace
from pathlib import Path

from common import logs
from common.errors import LivesnapError, StorageError
from common.ids import PoolId, StorageDomainId, new_id
from common.images.files import storage_errors
from common.images.identity import Identity, read_identity, write_identity
from common.images.layout import HOSTS_DIR, IDENTITY_FILE, IMAGES_DIR, TRASH_DIR
from common.images.locks import IMAGE, is_held, opened, try_lock

_log = logs.get()


def register_storage_domain(root: Path, name: str, pool: PoolId, *, read_only_bases: tuple[str, ...] = ()) -> Identity:
    """Return the identity of the storage domain at `root`, making it one if it is not; safe to repeat.

    Raises LivesnapError(settings_invalid) for a folder that is not there or belongs to another pool or name,
    StorageError(locking_unproven) where locks or hard links do not work. A crash leaves empty folders at most: the
    identity is written last.
    """
    if not root.is_dir():
        raise LivesnapError("settings_invalid", f"{root} is not a folder; mount or make it first")
    existing = _existing(root, name, pool)
    _require_locks(root)
    _require_links(root)
    with storage_errors(f"making the folders of {root}"):
        for folder in (IMAGES_DIR, HOSTS_DIR, TRASH_DIR):
            _make_folder(root, folder)
        try:
            wanted = Identity(
                storage_domain_id=StorageDomainId(new_id()), pool=pool, name=name, read_only_bases=read_only_bases
            )
        except ValueError as error:
            raise LivesnapError("settings_invalid", f"registering {root}: {error}") from None
        if existing is None:
            write_identity(root, wanted)
            _log.info("storage_domain.registered", id=wanted.storage_domain_id, name=name, pool=pool, root=str(root))
            return wanted
        if read_only_bases and existing.read_only_bases != read_only_bases:
            existing = replace(existing, read_only_bases=read_only_bases)
            write_identity(root, existing)
        return existing


def _existing(root: Path, name: str, pool: PoolId) -> Identity | None:
    if not (root / IDENTITY_FILE).exists():
        return None
    identity = read_identity(root)
    if (identity.pool, identity.name) != (pool, name):
        raise LivesnapError(
            "settings_invalid",
            f"{root} is storage domain {identity.name!r} of pool {identity.pool}, not {name!r} of {pool}",
        )
    return identity


def _make_folder(root: Path, name: str) -> None:
    """Make a folder that QEMU's user may walk through, owned like the root (a session's QEMU is no superuser)."""
    folder = root / name
    if folder.is_dir():
        return
    folder.mkdir()
    owner = root.stat()
    try:
        os.chown(folder, owner.st_uid, owner.st_gid)
    except PermissionError:
        _log.info("folder.owner_kept", path=str(folder), wanted=f"{owner.st_uid}:{owner.st_gid}")
    folder.chmod(0o755)


def _require_locks(root: Path) -> None:
    """Test that another process sees our lock, is refused its own, and gets it once ours is gone."""
    path = root / f".locking.{new_id()}.tmp"
    with storage_errors(f"testing locks below {root}"):
        path.touch(exist_ok=False)
        try:
            with opened(path, writable=True) as fd:
                ours = try_lock(fd, IMAGE)
                refused = _in_child(path) == (True, False)
            free = _in_child(path) == (False, True)
        finally:
            path.unlink()
    if not (ours and refused and free):
        raise StorageError(
            "locking_unproven", f"locks do not work below {root}: held={ours} seen={refused} freed={free}"
        )


def _in_child(path: Path) -> tuple[bool, bool]:
    """Return what another process sees: is a lock held on the file, and could it take one?"""
    pid = os.fork()
    if pid == 0:
        seen = 255
        try:
            with opened(path, writable=True) as fd:
                seen = 2 * is_held(fd, IMAGE) + try_lock(fd, IMAGE)
        finally:
            os._exit(seen)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in range(4):
        raise OSError(f"the child that tried the lock ended with {status}")
    return bool(status & 2), bool(status & 1)


def _require_links(root: Path) -> None:
    """Test that link(2) works and never replaces: final names are given by it."""
    one, two = (root / f".linking.{new_id()}.tmp" for _ in range(2))
    with storage_errors(f"testing hard links below {root}"):
        try:
            one.touch(exist_ok=False)
            two.touch(exist_ok=False)
            try:
                os.link(one, two)
            except FileExistsError:
                two.unlink()
                os.link(one, two)
                return
            finally:
                one.unlink(missing_ok=True)
                two.unlink(missing_ok=True)
        except PermissionError as error:
            raise StorageError("locking_unproven", f"hard links do not work below {root}: {error}") from error
    raise StorageError("locking_unproven", f"link(2) replaces existing files below {root}")
