"""Which mounts a pool lets be worked on: pure bookkeeping over real, empty folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import LivesnapError, NotReady, StorageError
from common.ids import PoolId, StorageDomainId, VmId, new_id
from common.images.identity import Identity
from common.images.layout import IDENTITY_FILE
from spm.operations.register_storage_domain import register_storage_domain
from spm.pool import Pool

P1 = PoolId("p1")


def register(root: Path, pool: PoolId = P1) -> Identity:
    root.mkdir()
    return register_storage_domain(root, root.name, pool)


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    return {name: tmp_path / name for name in ("one", "two")}


@pytest.fixture
def pool(roots: dict[str, Path]) -> Iterator[Pool]:
    made = Pool(P1, roots)
    yield made
    made.close()


def refused(pool: Pool, storage_domain_id: StorageDomainId) -> LivesnapError:
    with pytest.raises(LivesnapError) as raised:
        pool.backend(storage_domain_id)
    return raised.value


def test_mounted_ones_are_served_and_the_others_named(pool: Pool, roots: dict[str, Path]) -> None:
    one = register(roots["one"])
    pool.wait_for_leases()
    assert pool.backend(one.storage_domain_id).identity == one
    unknown = refused(pool, StorageDomainId(new_id()))
    assert isinstance(unknown, NotReady)
    assert "may be two" in unknown.message
    assert [(m.name, bool(m.problem)) for m in pool.mount_reports()] == [("one", False), ("two", True)]
    assert [backend.identity for backend in pool.usable()] == [one]


def test_when_all_are_mounted_an_unknown_one_is_an_error_of_the_settings(pool: Pool, roots: dict[str, Path]) -> None:
    for root in roots.values():
        register(root)
    unknown = refused(pool, StorageDomainId(new_id()))
    assert isinstance(unknown, StorageError)
    assert unknown.code == "storage_domain_unknown"


def test_storage_domain_of_another_pool_is_not_touched(pool: Pool, roots: dict[str, Path]) -> None:
    foreign = register(roots["one"], PoolId("p2"))
    before = sorted(roots["one"].iterdir())
    assert refused(pool, foreign.storage_domain_id).code == "storage_unavailable"
    pool.wait_for_leases()
    assert "belongs to pool p2" in pool.mount_reports()[0].problem
    assert sorted(roots["one"].iterdir()) == before


def test_one_mounted_later_is_leased_when_it_is_used(pool: Pool, roots: dict[str, Path]) -> None:
    register(roots["one"])
    pool.wait_for_leases()
    two = register(roots["two"])
    assert pool.backend(two.storage_domain_id).identity == two
    standby = Pool(P1, roots)
    assert isinstance(refused(standby, two.storage_domain_id), NotReady)
    standby.close()


def test_mounts_that_changed_places_are_found_again(pool: Pool, roots: dict[str, Path], tmp_path: Path) -> None:
    one, two = register(roots["one"]), register(roots["two"])
    pool.wait_for_leases()
    roots["one"].rename(tmp_path / "aside")
    roots["two"].rename(roots["one"])
    (tmp_path / "aside").rename(roots["two"])
    for identity in (one, two):
        refused(pool, identity.storage_domain_id)
    # The held leases were of other paths: both are lost, and a new process takes them.
    pool.close()
    fresh = Pool(P1, roots)
    assert fresh.backend(one.storage_domain_id).identity == one
    fresh.close()


def test_one_unmounted_between_two_looks_has_not_lost_its_lease(
    pool: Pool, roots: dict[str, Path], tmp_path: Path
) -> None:
    """Its identity is read from a pipe, whose end comes when the storage domain is gone."""
    one = register(roots["one"])
    pool.backend(one.storage_domain_id)
    identity = roots["one"] / IDENTITY_FILE
    words = identity.read_text()
    identity.unlink()
    os.mkfifo(identity)
    with ThreadPoolExecutor() as executor:
        asked = executor.submit(refused, pool, one.storage_domain_id)
        with identity.open("w") as pipe:
            pipe.write(words)
            roots["one"].rename(tmp_path / "away")
        assert isinstance(asked.result(), NotReady)
    (tmp_path / "away").rename(roots["one"])
    identity.unlink()
    identity.write_text(words)
    assert pool.backend(one.storage_domain_id).identity == one


def test_paths_are_located_in_whichever_storage_domain_they_lie(pool: Pool, roots: dict[str, Path]) -> None:
    register(roots["one"])
    two = register(roots["two"])
    place = pool.locate(str(roots["one"] / "link" / ".." / ".." / "two" / "vms" / "web.qcow2"))
    assert place is not None
    assert (place.storage_domain_id, place.path) == (two.storage_domain_id, "vms/web.qcow2")
    assert pool.locate("/etc/passwd") is None


def test_each_returns_results_and_errors_in_order(pool: Pool) -> None:
    def act(item: int) -> int:
        if item % 3 == 0:
            raise StorageError("storage_full", str(item))
        return item * 10

    seen = [str(outcome) for outcome in pool.each(act, list(range(6)))]
    assert seen == ["storage_full: 0", "10", "20", "storage_full: 3", "40", "50"]
    assert pool.each(act, []) == []


def test_one_vm_has_one_lock(pool: Pool) -> None:
    vm = VmId(new_id())
    assert pool.vm_lock(vm) is pool.vm_lock(VmId(str(vm)))
