"""The pivot succeeds and the guest's first write fails, on a full storage domain or a broken one: nothing is lost."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import libvirt
import pytest

from common.images.locks import image_is_locked
from tests.bed.failing_fs import FailingFs
from tests.bed.oracle import examine
from tests.bed.vm import BedVm
from tests.bed.vm_spec import AgentMode
from tests.e2e.full_disk import MIN_FREE, FullDisk, full_or_failing_disk
from tests.e2e.kit import Livesnap, place, writer_went_on
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "loop", "fuse", "mke2fs", "mount"),
    pytest.mark.xdist_group("full-disk"),
]


@pytest.fixture(scope="module")
def setting() -> Iterator[tuple[FullDisk, Livesnap]]:
    """A running livesnap with the small storage domain."""
    with ExitStack() as stack:
        here = stack.enter_context(place())
        small = stack.enter_context(full_or_failing_disk(here.root, here.host))
        yield small, stack.enter_context(here.livesnap(*small.option, environment=MIN_FREE))


@pytest.fixture(scope="module")
def brim(setting: tuple[FullDisk, Livesnap]) -> BedVm:
    """A guest that each of the first tests leaves as it found it."""
    return booted(*setting, "brim")


@pytest.fixture
def failing(setting: tuple[FullDisk, Livesnap]) -> Iterator[FailingFs]:
    """What can let writes fail; it has room again, and at the end everything works again."""
    small, _ = setting
    small.fs.free()
    assert small.failing is not None
    yield small.failing
    small.failing.heal()


def booted(small: FullDisk, livesnap: Livesnap, name: str, ga: AgentMode = "normal") -> BedVm:
    """Return a guest that writes, and that livesnap knows; the storage domain has room again."""
    small.fs.free()
    vm = small.guest(name, ga=ga)
    vm.wait_ready()
    vm.wait_agent()
    vm.wait_acks()
    livesnap.shows(vm)
    return vm


def check_rolled_back(small: FullDisk, livesnap: Livesnap, vm: BedVm, job: Any) -> None:
    """The guest was on the new volume and is back, has noticed nothing, and nothing is left, in the trash neither."""
    assert job["state"] == "rolled_back"
    assert job["error"]["code"] == "volume_not_writable"
    # The host says so only when QEMU had been on the new volume and came back by a commit.
    assert job["attempts"][-2]["outcome"] == "none_rolled_back"
    assert vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert vm.freeze_status() == "thawed"
    writer_went_on(vm)
    assert vm.sources() == vm.sources(persistent=True) == {"vda": str(vm.spec.disks[0].path)}
    assert small.volumes() == set()
    assert [path for path in (small.path / "trash").rglob("*") if path.is_file()] == []
    assert livesnap.json("snapshot", "list", vm.name) == []


def steps(job: Any) -> list[str]:
    """Return the steps of a job's timeline."""
    return [entry["step"] for entry in job["timeline"]]


def test_room_for_the_volume_and_for_nothing_else(setting: tuple[FullDisk, Livesnap], brim: BedVm) -> None:
    small, livesnap = setting
    small.fill()
    writer_went_on(brim)

    said = livesnap.run("snapshot", "create", "brim", "--name", "one", "--json")

    assert said.status == 1, said.err
    check_rolled_back(small, livesnap, brim, said.json)
    assert steps(said.json) == ["creating_volumes", "pivoting", "deleting_volumes", "rolled_back"]


def test_storage_that_answers_with_an_io_error(
    setting: tuple[FullDisk, Livesnap], brim: BedVm, failing: FailingFs
) -> None:
    small, livesnap = setting
    failing.fail()

    said = livesnap.run("snapshot", "create", "brim", "--name", "one", "--quiesce", "never", "--json")

    assert said.status == 1, said.err
    check_rolled_back(small, livesnap, brim, said.json)
    assert steps(said.json) == ["creating_volumes", "pivoting", "deleting_volumes", "rolled_back"]
    assert "paused by an I/O error on its new volumes" in said.json["error"]["message"]


def test_storage_where_the_previous_volume_fails_too(
    setting: tuple[FullDisk, Livesnap], brim: BedVm, failing: FailingFs
) -> None:
    """The machine stays paused with its chain whole until somebody has given it storage, and says so: not before."""
    small, livesnap = setting
    failing.fail(then=r"brim-vda\.qcow2")

    said = livesnap.run("snapshot", "create", "brim", "--name", "one", "--json")

    assert said.status == 1, said.err
    check_stuck(livesnap, brim, said.json)
    (leaf,) = small.volumes()
    assert not image_is_locked(small.path / leaf), "kept, although nobody uses it"

    assert livesnap.run("job", "resolve", said.json["id"]).status == 0
    eventually(
        lambda: steps(livesnap.job(said.json["id"]))[3:] == ["probing", "repairing", "needs_operator"],
        timeout_s=20,
        what="the job to come back to its operator",
        interval_s=0.2,
    )
    check_stuck(livesnap, brim, livesnap.job(said.json["id"]))

    failing.heal()
    assert livesnap.run("job", "resolve", said.json["id"]).status == 0
    check_rolled_back(small, livesnap, brim, livesnap.wait_for_end(said.json["id"]))


def check_stuck(livesnap: Livesnap, vm: BedVm, job: Any) -> None:
    """The job asks for an operator and says why, and what to do; the machine is locked, paused, on one volume."""
    assert job["state"] == "needs_operator"
    assert job["error"]["code"] == "volume_not_writable"
    assert "resume the machine and resolve the job" in job["error"]["hint"]
    assert job["waiting_for"].startswith("an operator")
    assert vm.state() == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
    assert vm.sources() == vm.sources(persistent=True) == {"vda": str(vm.spec.disks[0].path)}
    assert livesnap.json("vm", "show", vm.name)["busy_with"] == job["id"]


def test_every_acknowledged_write_is_there(brim: BedVm) -> None:
    check_every_acknowledged_write_is_there(brim)


def test_without_a_free_byte_from_the_freeze_on(setting: tuple[FullDisk, Livesnap]) -> None:
    """Somebody else takes the last byte while the guest freezes: the rollback and the deletion need to do with none."""
    small, livesnap = setting
    vm = booted(small, livesnap, "slowly", ga="hookslow")
    job = livesnap.json("snapshot", "create", "slowly", "--no-wait")
    eventually(small.volumes, timeout_s=30, what="the new volume")
    small.fill(leave_bytes=0)
    assert small.fs.free_bytes == 0

    check_rolled_back(small, livesnap, vm, livesnap.wait_for_end(job["id"]))
    check_every_acknowledged_write_is_there(vm)


def test_paused_by_an_io_error_until_there_is_room(setting: tuple[FullDisk, Livesnap]) -> None:
    """Nothing was in the way of its snapshot; later the volume cannot grow, and the guest waits for room."""
    small, livesnap = setting
    vm = booted(small, livesnap, "starved")
    assert livesnap.run("snapshot", "create", "starved", "--name", "before").status == 0
    small.fill(leave_bytes=0)
    livesnap.shows(vm, "paused_io_error")
    jobs = livesnap.json("job", "list")

    error = livesnap.run("snapshot", "create", "starved", "--json").error(status=2)

    assert error["code"] == "vm_paused_io_error"
    assert "virsh resume" in error["hint"]
    assert livesnap.json("job", "list") == jobs
    small.fs.free()
    vm.resume()
    writer_went_on(vm)
    livesnap.shows(vm)
    assert livesnap.run("snapshot", "create", "starved", "--name", "after").status == 0
    vm.destroy()


def check_every_acknowledged_write_is_there(vm: BedVm) -> None:
    """Pull the plug and read the guest's own file system; give its room back."""
    vm.pause()
    acknowledged = vm.last_ack()
    vm.destroy()
    finding = examine(vm.spec.disks[0].path)
    assert finding.fsck_rc == 0
    assert finding.records == tuple(range(1, len(finding.records) + 1))
    assert finding.records[-1] >= acknowledged
    vm.undefine()
    vm.spec.disks[0].path.unlink()
