"""A live merge that finds no room any more: the chain stays as it is and works, and the job says so and goes on."""

from collections.abc import Iterator

import libvirt
import pytest

from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm
from tests.e2e.delete_kit import Story, begin, boot, ends_well
from tests.e2e.full_disk import MIN_FREE
from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "loop", "mke2fs", "mount"),
    pytest.mark.xdist_group("delete-full-disk"),
]

FS_MIB = 256


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[Place, SmallFs, Livesnap]]:
    """A running livesnap whose storage domain is a small file system."""
    with place() as here, SmallFs(FS_MIB, here.root / "small", here.host.owner) as fs:
        onto = Place(host=here.host, root=here.root, storage=fs.path)
        with onto.livesnap(environment=MIN_FREE) as livesnap:
            yield onto, fs, livesnap


def bring_back(livesnap: Livesnap, vm: BedVm) -> None:
    """Do what an operator does once there is room again.

    QEMU 7.2 aborts where the machine is stopped for want of room while a commit that has failed for the same reason
    still sleeps for its bandwidth: the commit ends within the flush of the stop, and wants permissions that nobody has
    there ("Unexpected error in bdrv_a_allow_b").
    """
    match vm.state():
        case (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            vm.resume()
        case (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED):
            boot(livesnap, vm)
        case (state, _):
            assert state == libvirt.VIR_DOMAIN_RUNNING


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["b", "a"])
def test_without_room_in_the_midst_of_a_copy(small: tuple[Place, SmallFs, Livesnap], name: str) -> None:
    """b: the machine writes to what is merged; a: the middle of its chain."""
    here, fs, livesnap = small
    vm = here.guest(f"starved-{name}", control=True)
    livesnap.shows(vm)
    story = Story(here, livesnap, vm)
    story.take("first", "a")
    vm.shell("dd if=/dev/urandom of=/mnt/vda/one bs=1M count=8 && sync", timeout_s=60)
    story.take("b")
    vm.shell("dd if=/dev/urandom of=/mnt/vda/two bs=1M count=8 && sync", timeout_s=60)
    leaves = vm.sources()
    job = begin(story, name)

    fs.fill()
    ended = livesnap.wait_for_end(job["id"])

    assert (ended["state"], ended["error"]["code"]) == ("needs_operator", "storage_full"), ended
    assert ended["error"]["hint"]
    assert ended["waiting_for"].startswith("an operator")
    assert vm.sources() == vm.sources(persistent=True) == leaves
    # What has begun may have changed what the snapshot itself shows; all others show what they did.
    others = {other: shown for other, shown in story.shown.items() if other != name}
    assert {other: story.now_shows(other) for other in others} == others
    assert livesnap.json("vm", "show", vm.name)["busy_with"] == job["id"]

    # The guest itself waits for room, or writes where its volume has some; it goes on from there, on its whole chain.
    fs.free()
    bring_back(livesnap, vm)
    writer_went_on(vm)
    assert livesnap.run("job", "resolve", job["id"]).status == 0
    eventually(lambda: livesnap.job(job["id"])["state"] != "needs_operator", timeout_s=20, what="the job to go on")
    ends_well(story, job, name)
    vm.destroy()
