"""The pivot succeeds and the guest's first write fails, because the storage domain is full: nothing may be lost."""

from collections.abc import Iterator
from contextlib import ExitStack

import libvirt
import pytest

from tests.bed.oracle import examine
from tests.bed.vm import BedVm
from tests.e2e.full_disk import MIN_FREE, FullDisk, full_disk
from tests.e2e.kit import Livesnap, place, writer_went_on

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


def booted(small: FullDisk, livesnap: Livesnap, name: str) -> BedVm:
    """Return a guest that writes, on a storage domain that is full."""
    vm = small.guest(name)
    vm.wait_ready()
    vm.wait_agent()
    vm.wait_acks()
    livesnap.shows(vm)
    small.fill()
    return vm


def test_rolled_back_without_a_lost_write(setting: tuple[FullDisk, Livesnap]) -> None:
    small, livesnap = setting
    vm = booted(small, livesnap, "brim")
    before = vm.sources()
    writer_went_on(vm)

    said = livesnap.run("snapshot", "create", "brim", "--name", "one", "--json")

    assert said.status == 1, said.err
    job = said.json
    assert job["state"] == "rolled_back"
    assert job["error"]["code"] == "volume_not_writable"
    steps = [entry["step"] for entry in job["timeline"]]
    assert steps == ["creating_volumes", "pivoting", "deleting_volumes", "rolled_back"]
    # The host says "rolled back" only when QEMU had been on the new volume and came back by a commit.
    outcomes = {attempt["outcome"] for attempt in job["attempts"] if attempt["step"] == "pivoting"}
    assert outcomes == {"none_rolled_back"}
    assert vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert vm.freeze_status() == "thawed"
    writer_went_on(vm)
    assert vm.sources() == vm.sources(persistent=True) == before
    assert small.volumes() == set()
    assert livesnap.json("snapshot", "list", "brim") == []
    check_every_acknowledged_write_is_there(vm)


def check_every_acknowledged_write_is_there(vm: BedVm) -> None:
    """Pull the plug and read the guest's own file system."""
    vm.pause()
    acknowledged = vm.last_ack()
    vm.destroy()
    finding = examine(vm.spec.disks[0].path)
    assert finding.fsck_rc == 0
    assert finding.records == tuple(range(1, len(finding.records) + 1))
    assert finding.records[-1] >= acknowledged
