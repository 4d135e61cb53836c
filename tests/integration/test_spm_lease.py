"""The lease: one SPM acts, others stand by, and who lost it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from common.errors import LivesnapError, NotReady
from common.ids import PoolId
from spm import lease
from spm.operations.register_storage_domain import register_storage_domain
from spm.pool import Pool
from tests.wait import eventually

FCNTL = "72"  # x86_64

HOLDER = """
import sys, pathlib
from common import logs
from spm import lease
logs.configure(log_format="text", process="holder")
held = lease.wait_for(pathlib.Path(sys.argv[1]))
print(held.epoch, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    register_storage_domain(tmp_path, "main", PoolId("p1"))
    return tmp_path


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that waits for the lease, prints its epoch and keeps it."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def epoch_of(child: subprocess.Popen[str]) -> int:
    assert child.stdout is not None
    return int(child.stdout.readline())


def waits_for_lock(pid: int) -> bool:
    """Tell whether a process is blocked in fcntl, by the number of the system call that it is in."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == FCNTL


def test_only_one_holds_it(root: Path) -> None:
    with holder(root) as child:
        assert epoch_of(child) == 1
        assert lease.take(root) is None


def test_every_holder_raises_the_epoch(root: Path) -> None:
    for expected in (1, 2, 3):
        held = lease.take(root)
        assert held is not None
        assert held.epoch == expected
        held.require()
        held.release()
    assert lease.wait_for(root, at_least=10).epoch == 10


def test_standby_takes_over_when_the_holder_is_killed(root: Path) -> None:
    with holder(root) as active:
        assert epoch_of(active) == 1
        with holder(root) as standby:
            eventually(lambda: waits_for_lock(standby.pid), timeout_s=20, what="the standby to wait for the lease")
            active.kill()
            assert epoch_of(standby) == 2


def test_stopped_holder_is_not_superseded(root: Path) -> None:
    with holder(root) as child:
        epoch_of(child)
        os.kill(child.pid, signal.SIGSTOP)
        assert lease.take(root) is None
        os.kill(child.pid, signal.SIGCONT)


def test_waiting_ends_with_the_process(root: Path) -> None:
    with holder(root) as active:
        epoch_of(active)
        with holder(root) as standby:
            eventually(lambda: waits_for_lock(standby.pid), timeout_s=20, what="the standby to wait for the lease")
            standby.terminate()
            assert standby.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("how", ["replaced", "removed", "raised"])
def test_loss_is_noticed(root: Path, how: str) -> None:
    held = lease.take(root)
    assert held is not None
    path = root / "spm.lease"
    match how:
        case "replaced":
            path.rename(root / "old")
            path.write_text("epoch 1\n")
        case "removed":
            path.unlink()
        case _:
            path.write_text("epoch 2\n")
    with pytest.raises(LivesnapError) as lost:
        held.require()
    assert lost.value.code == "lease_lost"


def test_unreadable_epoch_is_no_obstacle(root: Path) -> None:
    (root / "spm.lease").write_bytes(b"\xff" * 40)
    held = lease.take(root)
    assert held is not None
    held.require()


def test_pool_refuses_while_another_spm_holds_a_lease_and_serves_afterwards(root: Path) -> None:
    identity = register_storage_domain(root, "main", PoolId("p1"))
    pool = Pool(PoolId("p1"), {"main": root})
    with holder(root) as child:
        epoch_of(child)
        with pytest.raises(NotReady) as refused:
            pool.backend(identity.storage_domain_id)
        assert "another SPM" in refused.value.message
        assert pool.mount_reports()[0].problem
    assert pool.backend(identity.storage_domain_id).identity == identity
    assert pool.epoch == 2
    pool.close()


def test_pool_raises_one_epoch_above_all_its_storage_domains(tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in "abc"}
    for name, root in roots.items():
        root.mkdir()
        register_storage_domain(root, name, PoolId("p1"))
        held = lease.take(root, at_least={"a": 4, "b": 9, "c": 1}[name])
        assert held is not None
        held.release()
    pool = Pool(PoolId("p1"), roots)
    pool.wait_for_leases()
    assert pool.epoch == 10
    pool.close()


def test_lost_lease_ends_the_work(root: Path) -> None:
    lost: list[str] = []

    def remember(error: LivesnapError) -> NoReturn:
        lost.append(error.code)
        raise error

    identity = register_storage_domain(root, "main", PoolId("p1"))
    pool = Pool(PoolId("p1"), {"main": root}, on_lease_lost=remember)
    pool.backend(identity.storage_domain_id)
    (root / "spm.lease").write_text("epoch 7\n")
    with pytest.raises(LivesnapError):
        pool.backend(identity.storage_domain_id)
    assert lost == ["lease_lost"]
    pool.close()
