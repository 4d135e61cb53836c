"""The pivot succeeds and the guest's first write fails, because the storage domain is full: nothing may be lost."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import libvirt
import pytest

from tests.bed.oracle import examine
from tests.bed.vm import BedVm
from tests.bed.vm_spec import AgentMode
from tests.e2e.full_disk import MIN_FREE, FullDisk, full_disk
from tests.e2e.kit import Livesnap, place, writer_went_on
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "loop", "mke2fs", "mount"),
    pytest.mark.xdist_group("full-disk"),
]


@pytest.fixture(scope="module")
def setting() -> Iterator[tuple[FullDisk, Livesnap]]:
    """A running livesnap with the small storage domain."""
    with ExitStack() as stack:
        here = stack.enter_context(place())
        small = stack.enter_context(full_disk(here.root, here.host))
        yield small, stack.enter_context(here.livesnap(*small.option, environment=MIN_FREE))


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
    """The guest was on the new volume and is back, has noticed nothing, and nothing is left."""
    assert job["state"] == "rolled_back"
    assert job["error"]["code"] == "volume_not_writable"
    steps = [entry["step"] for entry in job["timeline"]]
    assert steps == ["creating_volumes", "pivoting", "deleting_volumes", "rolled_back"]
    # The host says so only when QEMU had been on the new volume and came back by a commit.
    outcomes = {attempt["outcome"] for attempt in job["attempts"] if attempt["step"] == "pivoting"}
    assert outcomes == {"none_rolled_back"}
    assert vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert vm.freeze_status() == "thawed"
    writer_went_on(vm)
    assert vm.sources() == vm.sources(persistent=True) == {"vda": str(vm.spec.disks[0].path)}
    assert small.volumes() == set()
    assert livesnap.json("snapshot", "list", vm.name) == []
    check_every_acknowledged_write_is_there(vm)


def test_room_for_the_volume_and_for_nothing_else(setting: tuple[FullDisk, Livesnap]) -> None:
    small, livesnap = setting
    vm = booted(small, livesnap, "brim")
    small.fill()
    writer_went_on(vm)

    said = livesnap.run("snapshot", "create", "brim", "--name", "one", "--json")

    assert said.status == 1, said.err
    check_rolled_back(small, livesnap, vm, said.json)


def test_without_a_free_byte_from_the_freeze_on(setting: tuple[FullDisk, Livesnap]) -> None:
    """Somebody else takes the last byte while the guest freezes: the rollback and the deletion need to do with none."""
    small, livesnap = setting
    vm = booted(small, livesnap, "slowly", ga="hookslow")
    job = livesnap.json("snapshot", "create", "slowly", "--no-wait")
    eventually(small.volumes, timeout_s=30, what="the new volume")
    small.fill(leave_bytes=0)
    assert small.fs.free_bytes == 0

    check_rolled_back(small, livesnap, vm, livesnap.wait_for_end(job["id"]))


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
