"""Deleting snapshots and going back to them, with a machine that migrates between two hosts meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.bed.vm import BedVm
from tests.crash import arm
from tests.e2e.delete_kit import Story, begin, boot, submit
from tests.e2e.hosts import Fleet, two_hosts
from tests.e2e.kit import Place
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "qemu-img"),
    pytest.mark.xdist_group("two-hosts-trees"),
]

REPORTS = {"LIVESNAP_REPORT_INTERVAL_S": "1"}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two hosts and their livesnap."""
    with two_hosts(environment=REPORTS) as made:
        yield made


@pytest.fixture(scope="module")
def guest(fleet: Fleet) -> BedVm:
    """A guest that was booted on the first host."""
    return fleet.place.guest("mover")


@pytest.fixture
def story(fleet: Fleet, guest: BedVm) -> Iterator[Story]:
    """The guest where it runs now, without snapshots; it runs on afterwards."""
    host = next(host for host in (fleet.place.host, fleet.second.host) if "mover" in host.qemu_pids())
    there = BedVm(host, guest.spec, guest.console_path)
    fleet.shows_on(there, name_of(fleet, there))
    story = Story(place_of(fleet, there), fleet.livesnap, there)
    yield story
    story.wipe()


def name_of(fleet: Fleet, vm: BedVm) -> str:
    return "h1" if vm.host is fleet.place.host else "h2"


def place_of(fleet: Fleet, vm: BedVm) -> Place:
    return Place(host=vm.host, root=fleet.place.root, storage=fleet.place.storage)


def move(fleet: Fleet, story: Story) -> None:
    """Migrate the guest to the other host, and wait until livesnap knows."""
    other = fleet.second.host if story.vm.host is fleet.place.host else fleet.place.host
    story.vm = story.vm.migrate_to(other)
    fleet.shows_on(story.vm, name_of(fleet, story.vm))


@pytest.mark.matrix
def test_taken_on_one_host_and_deleted_on_the_other(fleet: Fleet, story: Story) -> None:
    """The middle and the end of the chain; what was merged there goes with the machine when it comes back."""
    story.take("a", "b", "c", "d")
    was = name_of(fleet, story.vm)
    move(fleet, story)
    story.delete("b")
    story.delete("d")
    assert name_of(fleet, story.vm) != was
    move(fleet, story)
    story.check()
    story.delete("a")


@pytest.mark.matrix
def test_a_deletion_follows_a_machine_that_moves_before_it_begins(fleet: Fleet, story: Story) -> None:
    story.take("a", "b")
    was = name_of(fleet, story.vm)
    held = fleet.livesnap.stopped("hostagent.worker") if was == "h1" else None
    if held is None:
        fleet.second.agent.sigstop()
        job = submit(story, "b")
        asked(fleet, job)
        story.vm = story.vm.migrate_to(fleet.place.host)
        fleet.second.agent.sigcont()
    else:
        with held:
            job = submit(story, "b")
            asked(fleet, job)
            story.vm = story.vm.migrate_to(fleet.second.host)
    ended = fleet.livesnap.wait_for_end(job["id"])
    assert ended["state"] == "completed", (ended["error"], ended["timeline"])
    sent = [each["to"] for each in ended["attempts"] if each["step"] == "merging"]
    assert (sent[0], sent[-1]) == (f"host.{was}", f"host.{name_of(fleet, story.vm)}")
    story.check("b")


def asked(fleet: Fleet, job: Any) -> None:
    """Wait until the machine's host was told to merge."""
    eventually(
        lambda: fleet.livesnap.job(job["id"])["state"] == "merging", timeout_s=30, what="the merge", interval_s=0.1
    )


@pytest.mark.matrix
def test_merged_on_a_host_that_has_not_told_and_then_moved(fleet: Fleet, story: Story) -> None:
    """The agent dies right after the machine went on to the lower volume, and the machine moves away: what its new host
    sees proves nothing there. What the former host had begun, it says once it is back."""
    if name_of(fleet, story.vm) == "h1":
        move(fleet, story)
    story.take("a", "b")
    crashes = fleet.place.root / "crashes"
    hit = arm(crashes, "host.merge.pivoted")
    fleet.second.agent.stop()
    fleet.second.agent.start(LIVESNAP_CRASH_POINTS=str(crashes))
    fleet.shows_on(story.vm, "h2")
    job = submit(story, "b")
    eventually(lambda: not fleet.second.agent.alive, timeout_s=60, what="the agent's death")
    assert hit.exists()
    move(fleet, story)
    fleet.second.agent.start()
    ended = fleet.livesnap.wait_for_end(job["id"], timeout_s=200)
    assert ended["state"] == "completed", (ended["error"], ended["timeline"])
    story.check("b")


@pytest.mark.matrix
def test_a_machine_whose_volumes_are_being_merged_stays_where_it_is(fleet: Fleet) -> None:
    """libvirt itself refuses to migrate it meanwhile; afterwards it moves, with what was merged."""
    vm = fleet.place.guest("anchor", control=True)
    fleet.shows_on(vm, "h1")
    story = Story(fleet.place, fleet.livesnap, vm)
    story.take("a")
    vm.shell("dd if=/dev/urandom of=/mnt/vda/fill bs=1M count=12 && sync", timeout_s=60)
    story.take("b")
    vm.shell("dd if=/dev/urandom of=/mnt/vda/fill bs=1M count=12 && sync", timeout_s=60)
    job = begin(story, "b")
    with pytest.raises(libvirt.libvirtError, match="block job"):
        vm.migrate_to(fleet.second.host)
    ended = fleet.livesnap.wait_for_end(job["id"])
    assert ended["state"] == "completed", (ended["error"], ended["timeline"])
    story.check("b")
    move(fleet, story)
    story.check()
    story.wipe()
    story.vm.destroy()


@pytest.mark.matrix
@pytest.mark.parametrize("end", ["undo", "commit"])
def test_a_trial_goes_with_the_machine(fleet: Fleet, story: Story, end: str) -> None:
    """Previewed on one host, tried there, moved, and ended where it is then."""
    story.take("a", "b")
    off(fleet, story)
    present = leaf(story)
    done(story, "preview", "mover/a")
    boot(fleet.livesnap, story.vm)
    move(fleet, story)
    assert fleet.livesnap.json("vm", "show", "mover")["preview"]["snapshot_name"] == "a"
    off(fleet, story)
    done(story, end, "mover")
    assert (leaf(story) == present, present.exists()) == ((True, True) if end == "undo" else (False, False))
    boot(fleet.livesnap, story.vm)
    story.check()


@pytest.mark.matrix
def test_reverted_on_the_other_host(fleet: Fleet, story: Story) -> None:
    """To a snapshot that was taken where the machine was before; the branch that it left is deleted there too."""
    story.take("a", "b")
    move(fleet, story)
    off(fleet, story)
    done(story, "revert", "mover/a", "--yes")
    boot(fleet.livesnap, story.vm)
    story.check()
    story.take("c")
    story.delete("b")


def off(fleet: Fleet, story: Story) -> None:
    story.vm.destroy()
    fleet.shows_on(story.vm, name_of(fleet, story.vm), "off")


def leaf(story: Story) -> Path:
    return Path(story.vm.sources(persistent=True)["vda"])


def done(story: Story, *words: str) -> None:
    """Run a command that must do what it is asked."""
    said = story.livesnap.run("snapshot", *words, "--json")
    assert said.status == 0, said.out + said.err
    assert said.json["state"] == "completed"
