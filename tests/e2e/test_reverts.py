"""Going back to snapshots with real guests: trial, undo, commit, revert; deep chains, branches, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.images.qcow2 import read_header
from tests.bed.oracle import content_sha256
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, Said, place

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "qemu-img"),
    pytest.mark.xdist_group("reverts"),
]


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """An isolated host."""
    with place() as opened:
        yield opened


@pytest.fixture(scope="module")
def livesnap(here: Place) -> Iterator[Livesnap]:
    """A running livesnap on it."""
    with here.livesnap() as running:
        yield running


def take(livesnap: Livesnap, vm: BedVm, name: str, quiesce: str = "auto") -> Any:
    """Take a snapshot and return it."""
    said = livesnap.run("snapshot", "create", vm.name, "--name", name, "--quiesce", quiesce, "--json")
    assert said.status == 0, said.out + said.err
    return livesnap.json("snapshot", "show", f"{vm.name}/{name}")


def done(said: Said) -> Any:
    """Return the job of a command that has done what was asked."""
    assert said.status == 0, said.out + said.err
    assert said.json["state"] == "completed"
    return said.json


def snapshot(livesnap: Livesnap, *words: str) -> Any:
    """Run a command that must do what it is asked, and return its job."""
    return done(livesnap.run("snapshot", *words, "--json"))


def refused(livesnap: Livesnap, *words: str) -> str:
    """Return the code that a command is refused with."""
    return str(livesnap.run("snapshot", *words, "--json").error(status=2)["code"])


def off(livesnap: Livesnap, vm: BedVm) -> None:
    """Pull the plug, and wait until livesnap knows."""
    vm.destroy()
    livesnap.shows(vm, "off")


def boot(livesnap: Livesnap, vm: BedVm) -> str:
    """Boot the machine until its guest writes; return what the console has said since, and check that it lost nothing
    of what its disk shows."""
    before = len(vm.console())
    vm.start()
    vm.wait_ready(boots=vm.console()[:before].count("GUEST READY") + 1)
    for disk in vm.spec.disks:
        vm.wait_acks(target=disk.target)
    assert vm.write_errors() == []
    livesnap.shows(vm)
    return vm.console()[before:]


def leaves(vm: BedVm) -> dict[str, Path]:
    return {target: Path(path) for target, path in vm.sources(persistent=True).items()}


def trashed(here: Place, leaf: Path) -> list[str]:
    """Return under which words a volume lies in the trash."""
    return [path.name.split(".")[2] for path in here.storage.glob(f"trash/*/{leaf.stem}.*")]


def stands_on(leaf: Path) -> Path:
    """Return the backing file that a header names."""
    return (leaf.parent / read_header(leaf).backing_name).resolve()


def content(here: Place, shown: Any, target: str = "vda") -> Path:
    """Return the file that holds a snapshot's content."""
    (disk,) = [disk for disk in shown["disks"] if disk["target"] == target]
    path: str = disk["path"]
    return (here.storage / path).resolve()


def test_one_disk_there_and_back(here: Place, livesnap: Livesnap) -> None:
    vm = here.guest("solo")
    livesnap.shows(vm)
    quiet = take(livesnap, vm, "quiet")
    assert quiet["consistency"] == "filesystem"
    vm.wait_acks()
    torn = take(livesnap, vm, "torn", quiesce="never")
    vm.wait_acks()
    torn_to, written = here.content_of(torn).records[-1], vm.last_ack()
    assert here.content_of(quiet).records[-1] < torn_to < written

    assert refused(livesnap, "preview", "solo/quiet") == "vm_running"
    assert refused(livesnap, "revert", "solo/quiet", "--yes") == "vm_running"
    assert refused(livesnap, "commit", "solo") == "vm_not_previewed"
    off(livesnap, vm)
    present = leaves(vm)["vda"]
    before = content_sha256(present)

    try_it(here, livesnap, vm, quiet)
    assert (leaves(vm)["vda"], content_sha256(present)) == (present, before), "not exactly where it was"
    boot(livesnap, vm)
    assert vm.acknowledged()[0] > written

    off(livesnap, vm)
    asked = livesnap.run("snapshot", "revert", "solo/torn", "--json").error(status=2)
    assert asked["code"] == "confirmation_needed"
    assert "gives up all that was written to vda of solo since" in asked["message"]
    assert leaves(vm)["vda"] == present
    assert snapshot(livesnap, "revert", "solo/torn", "--yes")["kind"] == "revert"
    assert (stands_on(leaves(vm)["vda"]), trashed(here, present)) == (content(here, torn), ["abandoned"])
    said = boot(livesnap, vm)
    assert "EXT4-fs (vda): recovery complete" in said
    assert vm.acknowledged()[0] == torn_to + 1


def try_it(here: Place, livesnap: Livesnap, vm: BedVm, quiet: Any) -> None:
    """Preview a quiesced snapshot of a stopped machine, boot it, and undo that."""
    present = leaves(vm)["vda"]
    job = snapshot(livesnap, "preview", "solo/quiet")
    assert (job["kind"], job["snapshot_id"]) == ("preview", quiet["id"])
    trial = leaves(vm)["vda"]
    assert (stands_on(trial), present.is_file()) == (content(here, quiet), True)
    shown = livesnap.shows_on(vm, {"vda": str(trial)})
    assert shown["preview"]["snapshot_name"] == "quiet"
    assert "snapshot quiet on vda" in livesnap.run("vm", "show", "solo").out
    said = boot(livesnap, vm)
    assert "recovery complete" not in said
    assert vm.acknowledged()[0] == here.content_of(quiet).records[-1] + 1
    livesnap.shows_on(vm, {"vda": str(trial)})
    for words in (("create", "solo"), ("preview", "solo/torn"), ("revert", "solo/torn", "--yes")):
        assert refused(livesnap, *words) == "vm_previewed"
    assert refused(livesnap, "undo", "solo") == "vm_running"
    assert livesnap.json("doctor")["findings"] == []

    off(livesnap, vm)
    snapshot(livesnap, "undo", "solo")
    assert (trial.exists(), trashed(here, trial)) == (False, ["abandoned"])
    assert livesnap.json("vm", "show", "solo")["preview"] is None
    assert refused(livesnap, "undo", "solo") == "vm_not_previewed"


@pytest.mark.matrix
def test_a_tree_of_branches(here: Place, livesnap: Livesnap) -> None:
    """Back to an older snapshot, on from there, and then the later one again: nothing of either branch is lost."""
    vm = here.guest("tree")
    livesnap.shows(vm)
    first = take(livesnap, vm, "first")
    vm.wait_acks()
    later = take(livesnap, vm, "later")
    vm.wait_acks()
    first_to, later_to = here.content_of(first).records[-1], here.content_of(later).records[-1]
    off(livesnap, vm)
    snapshot(livesnap, "revert", "tree/first", "--yes")
    said = boot(livesnap, vm)
    assert "recovery complete" not in said
    assert vm.acknowledged()[0] == first_to + 1
    branch = take(livesnap, vm, "branch")
    vm.wait_acks()
    branch_to = here.content_of(branch).records[-1]
    assert stands_on(content(here, branch)) == stands_on(content(here, later)) == content(here, first)

    off(livesnap, vm)
    present = leaves(vm)["vda"]
    snapshot(livesnap, "preview", "tree/later")
    boot(livesnap, vm)
    assert vm.acknowledged()[0] == later_to + 1
    off(livesnap, vm)
    assert snapshot(livesnap, "commit", "tree")["kind"] == "commit"
    assert trashed(here, present) == ["abandoned"]
    assert livesnap.json("vm", "show", "tree")["preview"] is None
    assert [each["name"] for each in livesnap.json("snapshot", "list", "tree")] == ["branch", "later", "first"]
    assert here.content_of(branch).records[-1] == branch_to

    snapshot(livesnap, "revert", "tree/branch", "--yes")
    boot(livesnap, vm)
    assert vm.acknowledged()[0] == branch_to + 1
    assert livesnap.json("doctor")["findings"] == []


@pytest.mark.matrix
def test_four_disks_in_a_deep_chain(here: Place, livesnap: Livesnap) -> None:
    vm = here.guest("four", disks=4)
    livesnap.shows(vm)
    targets = [disk.target for disk in vm.spec.disks]
    taken = [take(livesnap, vm, name) for name in ("a", "b", "c", "d")]
    reach = {target: here.content_of(taken[1], target).records[-1] for target in targets}
    for target in targets:
        vm.wait_acks(target=target)
    off(livesnap, vm)
    present = leaves(vm)
    snapshot(livesnap, "revert", "four/b", "--yes")
    assert {target: stands_on(leaf) for target, leaf in leaves(vm).items()} == {
        target: content(here, taken[1], target) for target in targets
    }
    assert [trashed(here, leaf) for leaf in present.values()] == [["abandoned"]] * 4
    said = boot(livesnap, vm)
    assert "recovery complete" not in said
    assert {target: vm.acknowledged(target)[0] for target in targets} == {
        target: number + 1 for target, number in reach.items()
    }

    # one disk of an older one, and a later branch with all
    off(livesnap, vm)
    before = leaves(vm)
    snapshot(livesnap, "preview", "four/a", "--disk", "vdb")
    assert {target for target, leaf in leaves(vm).items() if leaf != before[target]} == {"vdb"}
    snapshot(livesnap, "undo", "four")
    assert leaves(vm) == before
    snapshot(livesnap, "preview", "four/d")
    assert len(livesnap.json("vm", "show", "four")["preview"]["disks"]) == 4
    snapshot(livesnap, "commit", "four")
    boot(livesnap, vm)
    assert {target: vm.acknowledged(target)[0] for target in targets} == {
        target: here.content_of(taken[3], target).records[-1] + 1 for target in targets
    }


def test_bad_input_changes_nothing(here: Place, livesnap: Livesnap) -> None:
    vm = here.guest("bad", agent=False, ga="none")
    livesnap.shows(vm)
    take(livesnap, vm, "one")
    vm.pause()
    livesnap.shows(vm, "paused")
    assert refused(livesnap, "preview", "bad/one") == "vm_running"
    off(livesnap, vm)
    before, volumes = leaves(vm), here.volumes()
    assert refused(livesnap, "preview", "bad/none") == "snapshot_not_found"
    assert refused(livesnap, "revert", "bad/none", "--yes") == "snapshot_not_found"
    assert refused(livesnap, "preview", "bad/one", "--disk", "vdz") == "disk_unknown"
    assert refused(livesnap, "commit", "nobody") == "vm_not_found"
    livesnap.run("vm", "lock", "bad", "--reason", "being cloned")
    assert refused(livesnap, "preview", "bad/one") == "vm_busy"
    assert refused(livesnap, "revert", "bad/one", "--yes") == "vm_busy"
    livesnap.run("vm", "unlock", "bad")
    assert (leaves(vm), here.volumes()) == (before, volumes)

    # twice at once: one job, and one refusal
    with livesnap.stopped("spm.worker"):
        started = livesnap.json("snapshot", "preview", "bad/one", "--no-wait")
        assert refused(livesnap, "preview", "bad/one") == "vm_busy"
        assert refused(livesnap, "revert", "bad/one", "--yes") == "vm_busy"
    assert livesnap.wait_for_end(started["id"])["state"] == "completed"

    # started behind livesnap's back while the SPM makes the volumes
    snapshot(livesnap, "undo", "bad")
    with livesnap.stopped("spm.worker"):
        started = livesnap.json("snapshot", "revert", "bad/one", "--yes", "--no-wait")
        vm.start()
    ended = livesnap.wait_for_end(started["id"])
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "vm_running")
    assert {Path(path) for path in vm.sources().values()} == set(before.values())
    assert here.volumes() == volumes
