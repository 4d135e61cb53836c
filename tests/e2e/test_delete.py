"""Snapshots are deleted through the whole product, on real guests: what is kept shows what it showed before."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.disks import make_disk
from tests.bed.oracle import content_sha256
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.crash import arm, sampled
from tests.e2e.delete_kit import Story, begin, boot, ends_well, stopped, submit
from tests.e2e.kit import Livesnap, Place, place

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "qemu-img"),
    pytest.mark.xdist_group("delete"),
]


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """An isolated host."""
    with place() as opened:
        yield opened


@pytest.fixture(scope="module")
def crashes(here: Place) -> Path:
    """The folder of crash points."""
    folder = here.root / "crashes"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def livesnap(here: Place, crashes: Path) -> Iterator[Livesnap]:
    """A running livesnap on it."""
    with here.livesnap(environment={"LIVESNAP_CRASH_POINTS": str(crashes)}) as running:
        yield running


@pytest.fixture(scope="module")
def vm(here: Place, livesnap: Livesnap) -> BedVm:
    """A running machine with one disk."""
    made = here.guest("one")
    livesnap.shows(made)
    return made


@pytest.fixture(scope="module")
def heavy(here: Place, livesnap: Livesnap) -> BedVm:
    """A running machine whose merges have much to copy."""
    made = here.guest("heavy", control=True)
    livesnap.shows(made)
    return made


@pytest.fixture(scope="module")
def big(here: Place, livesnap: Livesnap) -> BedVm:
    """A running machine with four disks."""
    made = here.guest("four", disks=4)
    livesnap.shows(made)
    return made


@pytest.fixture
def off(here: Place, livesnap: Livesnap) -> BedVm:
    """A machine that is off, and never was on."""
    path = make_disk(here.storage / "off-vda.qcow2", owner=here.host.owner)
    made = define_vm(here.host, VmSpec(name="off", disks=(DiskSpec(path=path),)))
    livesnap.shows(made, "off")
    return made


@pytest.fixture
def story(here: Place, livesnap: Livesnap, vm: BedVm) -> Iterator[Story]:
    story = Story(here, livesnap, vm)
    yield story
    story.wipe()


def test_every_place_of_a_running_chain(story: Story) -> None:
    """The last snapshot (the machine writes on top of it), one in the middle, and the first."""
    story.take("a", "b", "c", "d")
    before = story.vm.acknowledged()
    job = story.delete("d")
    assert job["kind"] == "delete"
    assert job["state"] == "completed"
    story.delete("b")
    story.delete("a")
    assert story.vm.acknowledged()[: len(before)] == before


@pytest.mark.matrix
def test_several_in_one_job_are_deleted_one_after_the_other(story: Story) -> None:
    story.take("a", "b", "c", "d", "e")
    job = story.delete("e", "b", "c")
    assert [entry["detail"] for entry in job["timeline"]][-1] == "snapshot c is deleted"


@pytest.mark.matrix
def test_four_disks(here: Place, livesnap: Livesnap, big: BedVm) -> None:
    story = Story(here, livesnap, big)
    story.take("a", "b", "c")
    story.delete("b")
    story.delete("c", "a")


def test_stopped_machine(livesnap: Livesnap, story: Story) -> None:
    story.take("a", "b", "c", "d")
    stopped(livesnap, story.vm)
    leaf = content_sha256(Path(story.vm.sources(persistent=True)["vda"]))
    story.delete("b")
    assert content_sha256(Path(story.vm.sources(persistent=True)["vda"])) == leaf
    story.delete("d")
    assert content_sha256(Path(story.vm.sources(persistent=True)["vda"])) == leaf
    last, count = story.vm.last_ack(), len(story.vm.acks())
    boot(livesnap, story.vm)
    assert story.vm.acks()[count].n > last
    story.check()


# ---- half-way -----------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(here: Place, livesnap: Livesnap, heavy: BedVm) -> Iterator[Story]:
    """A machine with snapshots a, b, c; what was written since b, and since c, takes twelve seconds at 1 MiB/s."""
    story = Story(here, livesnap, heavy)
    story.take("a", "b")
    heavy.shell("dd if=/dev/urandom of=/mnt/vda/fill bs=1M count=12 && sync", timeout_s=60)
    story.take("c")
    heavy.shell("dd if=/dev/urandom of=/mnt/vda/fill bs=1M count=12 && sync", timeout_s=60)
    yield story
    story.wipe()


@pytest.mark.parametrize("name", sampled("c", "b", suite=()))
def test_cancelled_it_leaves_the_chain_as_it_was_and_goes_on_when_asked_again(slow: Story, name: str) -> None:
    """c: the machine writes to what is merged; b: the middle of its chain."""
    leaf = slow.vm.sources()
    job = begin(slow, name)
    refused = slow.livesnap.run("snapshot", "delete", f"{slow.vm.name}/a", "--json")
    assert refused.error(status=2)["code"] == "vm_busy"
    assert slow.livesnap.json("snapshot", "show", f"{slow.vm.name}/{name}")["state"] == "deleting"
    assert slow.livesnap.run("job", "cancel", job["id"]).status == 0
    ended = slow.livesnap.wait_for_end(job["id"])
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "job_cancelled")
    assert slow.vm.sources() == leaf
    # Its volume is half of another now: all others show what they did.
    assert slow.livesnap.json("snapshot", "show", f"{slow.vm.name}/{name}")["state"] == "half_merged"
    others = {other: shown for other, shown in slow.shown.items() if other != name}
    assert {other: slow.now_shows(other) for other in others} == others
    slow.delete(name)


@pytest.mark.parametrize("who", sampled("hostagent.worker", "spm.worker", "manager.worker", "libvirtd", suite=()))
def test_killed_in_the_midst_of_a_copy_it_goes_on(here: Place, slow: Story, who: str) -> None:
    job = begin(slow, "c")
    if who == "libvirtd":
        here.host.kill9()
        here.host.start()
    else:
        os.kill(slow.livesnap.pid_of(who), signal.SIGKILL)
    ends_well(slow, job, "c")


@pytest.mark.matrix
def test_stopped_in_the_midst_of_a_copy_it_is_merged_cold(slow: Story) -> None:
    job = begin(slow, "c")
    stopped(slow.livesnap, slow.vm)
    ends_well(slow, job, "c")
    boot(slow.livesnap, slow.vm)


MANAGER = ("manager.apply.before_commit", "manager.apply.committed", "manager.apply.published")
HOST = ("host.merge.begun", "host.merge.started", "host.merge.ready", "host.merge.pivoted")
DELETE = ("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned")
COLD = ("spm.merge.begun", "spm.merge.started", "spm.merge.committed", "host.merge.aligned")
LIFT = ("spm.merge.rebased", "spm.merge.recorded")


@pytest.mark.parametrize("point", sampled(*MANAGER, "spm.merge.marked", *HOST, *DELETE, suite=("host.merge.pivoted",)))
def test_killed_at_each_step_of_a_live_merge(story: Story, crashes: Path, point: str) -> None:
    if story.vm.qemu_pid is None:
        boot(story.livesnap, story.vm)
    story.take("a", "b")
    hit = arm(crashes, point)
    job = submit(story, "b")
    ends_well(story, job, "b")
    assert hit.exists()


@pytest.mark.parametrize("point", sampled(*COLD, *LIFT, suite=("spm.merge.started",)))
def test_killed_at_each_step_of_a_cold_merge(livesnap: Livesnap, story: Story, crashes: Path, point: str) -> None:
    """The last snapshot; to lift what stands on the merged volume, the one before it."""
    if story.vm.qemu_pid is None:
        boot(livesnap, story.vm)
    story.take("a", "b", "c")
    story.vm.wait_acks(more=2)  # else what is merged may be empty, and need no copy
    stopped(livesnap, story.vm)
    hit = arm(crashes, point)
    name = "b" if point in LIFT else "c"
    job = submit(story, name)
    ends_well(story, job, name)
    assert hit.exists()


# ---- refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_deleted_is_refused_and_nothing_changes(livesnap: Livesnap, story: Story, off: BedVm) -> None:
    story.take("a")
    other = Story(story.here, livesnap, off)
    other.take("z")
    for references, code in (
        (("nothing-of-that-name",), "snapshot_not_found"),
        (("one/a", "off/z"), "snapshots_of_several_vms"),
        (("x" * 2000,), "request_malformed"),
    ):
        said = livesnap.run("snapshot", "delete", *references, "--json")
        assert said.error(status=2)["code"] == code
    plan = livesnap.json("snapshot", "delete", "one/a", "--dry-run")
    (disk,) = plan[0]["disks"]
    assert str(story.here.storage / disk["vanishes"]) == story.vm.sources()["vda"]
    assert story.livesnap.run("vm", "lock", "one", "--reason", "backup").status == 0
    assert livesnap.run("snapshot", "delete", "one/a", "--json").error(status=2)["code"] == "vm_busy"
    assert story.livesnap.run("vm", "unlock", "one").status == 0
    story.check()
    other.wipe()
