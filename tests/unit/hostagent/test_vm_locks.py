"""One lock per vm, between threads and processes alike, that dies with its holder."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.ids import VmId, new_id
from hostagent.vm_locks import VmLockFiles

VM, OTHER = VmId(new_id()), VmId(new_id())
ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from hostagent.vm_locks import VmLockFiles
with VmLockFiles(Path(sys.argv[1]))(sys.argv[2]) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def locks(tmp_path: Path) -> VmLockFiles:
    return VmLockFiles(tmp_path / "locks")


def test_one_holder_at_a_time(locks: VmLockFiles) -> None:
    assert not locks.is_held(VM)
    with locks(VM) as held:
        assert held
        assert locks.is_held(VM)
        assert not locks.is_held(OTHER)
        with locks(VM) as second:
            assert not second
        # A failed attempt must not have let go of the first one.
        assert locks.is_held(VM)
        with locks(OTHER) as other:
            assert other
    assert not locks.is_held(VM)
    with locks(VM) as again:
        assert again


def test_looking_does_not_stand_in_the_way(locks: VmLockFiles) -> None:
    with locks(VM):
        assert [locks.is_held(VM) for _ in range(3)] == [True] * 3
    with locks(VM) as held:
        assert held


def test_a_killed_holder_lets_go(locks: VmLockFiles, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "locks"), VM]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        assert locks.is_held(VM)
        with locks(VM) as held:
            assert not held
        holder.kill()
        holder.wait(10)
        with locks(VM) as held:
            assert held


def test_only_an_id_becomes_a_file_name(locks: VmLockFiles) -> None:
    with pytest.raises(ValueError, match="UUID"), locks(VmId("../x")):
        pass
