"""`python -m spm.register`: making a folder a storage domain, and refusing what cannot be one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import LivesnapError
from common.ids import PoolId, is_uuid
from common.images.identity import read_identity
from spm.operations.register_storage_domain import register_storage_domain


def register(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "spm.register", *words], capture_output=True, text=True, timeout=30, check=False
    )


def test_folder_becomes_a_storage_domain(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    done = register("main", str(tmp_path), "--pool", "p1", "--read-only-base", "/golden")
    assert done.returncode == 0, done.stderr
    identity = read_identity(tmp_path)
    assert (identity.name, identity.pool, identity.read_only_bases) == ("main", "p1", ("/golden",))
    assert done.stdout == f"{identity.storage_domain_id}\n"
    assert is_uuid(identity.storage_domain_id)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"images": 0o755, "hosts": 0o755, "trash": 0o755, "livesnap.json": 0o644}


@pytest.mark.needs("root")
def test_folders_belong_to_the_roots_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    register_storage_domain(tmp_path, "main", PoolId("p1"))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir() if path.is_dir()} == {
        (65534, 65534)
    }


def test_again_is_the_same(tmp_path: Path) -> None:
    first = register_storage_domain(tmp_path, "main", PoolId("p1"))
    assert register_storage_domain(tmp_path, "main", PoolId("p1")) == first
    changed = register_storage_domain(tmp_path, "main", PoolId("p1"), read_only_bases=("/golden",))
    assert changed.storage_domain_id == first.storage_domain_id
    assert read_identity(tmp_path).read_only_bases == ("/golden",)


@pytest.mark.parametrize(("name", "pool"), [("main", "p2"), ("other", "p1")])
def test_another_pool_or_name_is_refused(tmp_path: Path, name: str, pool: str) -> None:
    first = register_storage_domain(tmp_path, "main", PoolId("p1"))
    done = register(name, str(tmp_path), "--pool", pool)
    assert (done.returncode, done.stdout) == (2, "")
    assert "of pool p1" in done.stderr
    assert read_identity(tmp_path) == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("main", "/nowhere/at/all"), "not a folder"),
        (("main", "{}", "--pool", "Not A Pool"), "not a host or pool name"),
        (("main", "{}", "--read-only-base", "relative"), "absolute"),
    ],
)
def test_wrong_arguments(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = register(*(word.format(tmp_path) for word in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "livesnap.json").exists()


def test_storage_without_hard_links_is_refused() -> None:
    """Final names are given by link(2): a file system without it cannot be a storage domain."""
    with pytest.raises(LivesnapError):
        register_storage_domain(Path("/proc/self"), "main", PoolId("p1"))
