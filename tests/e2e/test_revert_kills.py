"""Kill -9 of each process in each step of going back: it still ends, truthfully, on one branch, with nothing lost.

As test_kills.py does for a snapshot. One machine that is off serves all points, one after the other: what a crash left
behind would be met by the next. The suite plays a sample of the points, `make matrix` all of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.ids import VmId, disk_id
from tests.bed.oracle import content_sha256
from tests.bed.vm import BedVm
from tests.crash import arm, sampled
from tests.e2e.kit import Livesnap, Place
from tests.e2e.scene import Scene

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("steady"),
]

NAME = "reverted"

MANAGER = ["manager.apply.before_commit", "manager.apply.committed", "manager.apply.published"]
MAKING = ["spm.create.begun", "spm.create.linked", "spm.create.metadata_written"]
MOVING = [f"host.redefine.{step}" for step in ("begun", "prepared", "defined", "observed", "done")]
PROVING = ["host.probe.begun", "host.probe.observed", "host.probe.done"]
DROPPING = ["spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned"]


@dataclass(frozen=True, kw_only=True)
class Reverted:
    """A running livesnap with crash points, and a machine with two disks and two snapshots that is off."""

    here: Place
    livesnap: Livesnap
    vm: BedVm
    crashes: Path
    digests: dict[str, tuple[str, ...]]
    """What each snapshot's disks show."""

    def leaves(self) -> tuple[Path, ...]:
        return tuple(Path(path) for _, path in sorted(self.vm.sources(persistent=True).items()))

    def shows(self) -> tuple[str, ...]:
        return tuple(content_sha256(leaf) for leaf in self.leaves())

    def run(self, *words: str, point: str) -> Any:
        """Run a command during which `point` kills; return the job once all is well again."""
        hit = arm(self.crashes, point)
        options = ("--yes",) if words[0] == "revert" else ()
        job = self.livesnap.json("snapshot", *words, *options, "--no-wait")
        ended = self.livesnap.wait_for_end(job["id"])
        assert hit.exists(), f"{point} was not reached; {ended['timeline']}"
        self.check_nothing_is_left()
        return ended

    def check_nothing_is_left(self) -> None:
        """No volume without an owner, no snapshot that shows something else, the definition on the leaves on record."""
        machine = self.livesnap.shows_on(self.vm, self.vm.sources(persistent=True))
        recorded = {self.here.storage / disk["chain"][-1]["path"] for disk in machine["disks"]}
        assert recorded == set(self.leaves())
        used = set(self.leaves())
        if machine["preview"]:
            kept = {disk["kept_volume_id"] for disk in machine["preview"]["disks"]}
            used |= {path for path in self.here.storage.glob("images/*/*.qcow2") if path.stem in kept}
        for snapshot in self.livesnap.json("snapshot", "list", self.vm.name):
            paths = [self.here.storage / disk["path"] for disk in snapshot["disks"]]
            assert tuple(content_sha256(path) for path in paths) == self.digests[snapshot["name"]]
            used |= set(paths)
        mine = {disk_id(VmId(self.vm.uuid), disk.target) for disk in self.vm.spec.disks}
        volumes = {self.here.storage / path for path in self.here.volumes() if path.split("/")[1] in mine}
        assert volumes <= used, f"volumes without an owner: {volumes - used}"


@pytest.fixture
def scene(steady: Scene) -> Reverted:
    """A machine beside that of the scene, written to after each of its snapshots; made for the first test."""
    if "reverted" not in steady.notes:
        steady.notes["reverted"] = prepared(steady)
    made = steady.notes["reverted"]
    assert isinstance(made, Reverted)
    return made


def prepared(steady: Scene) -> Reverted:
    """Make the machine and its snapshots, and stop it."""
    here, livesnap = steady.here, steady.livesnap
    vm = here.guest(NAME, disks=2, ga="none", agent=False)
    livesnap.shows(vm)
    for name in ("old", "new"):
        assert livesnap.run("snapshot", "create", NAME, "--name", name).status == 0
        vm.wait_acks()
    vm.destroy()
    livesnap.shows(vm, "off")
    digests = {}
    for snapshot in livesnap.json("snapshot", "list", NAME):
        paths = [here.storage / disk["path"] for disk in snapshot["disks"]]
        digests[snapshot["name"]] = tuple(content_sha256(path) for path in paths)
    return Reverted(here=here, livesnap=livesnap, vm=vm, crashes=steady.crashes, digests=digests)


def is_given_up_by_the_hosts_own_step(point: str) -> bool:
    """Tell whether a crash there may end the job without its effect: the host alone must not act twice."""
    return point.startswith("host.redefine.")


@pytest.mark.parametrize("point", sampled(*MANAGER, *MAKING, *MOVING, suite=(MAKING[1],)))
def test_killed_in_a_preview(scene: Reverted, point: str) -> None:
    before = scene.leaves()
    job = scene.run("preview", f"{NAME}/old", point=point)
    if job["state"] == "completed":
        assert scene.shows() == scene.digests["old"]
        assert scene.livesnap.run("snapshot", "undo", NAME).status == 0
    else:
        assert is_given_up_by_the_hosts_own_step(point), job
        assert (job["state"], job["error"]["code"]) == ("rolled_back", "pivot_interrupted")
    assert scene.leaves() == before
    scene.check_nothing_is_left()


@pytest.mark.parametrize("point", sampled(*MOVING, *PROVING, *DROPPING, suite=(MOVING[2],)))
def test_killed_in_an_undo(scene: Reverted, point: str) -> None:
    before, shown = scene.leaves(), scene.shows()
    assert scene.livesnap.run("snapshot", "preview", f"{NAME}/old").status == 0
    job = scene.run("undo", NAME, point=point)
    if job["state"] == "rolled_back":
        assert is_given_up_by_the_hosts_own_step(point), job
        assert scene.livesnap.json("vm", "show", NAME)["preview"]
        assert scene.livesnap.run("snapshot", "undo", NAME).status == 0
    assert (scene.leaves(), scene.shows()) == (before, shown)
    scene.check_nothing_is_left()


@pytest.mark.parametrize("point", sampled(*PROVING, *DROPPING, suite=(DROPPING[2],)))
def test_killed_in_a_commit(scene: Reverted, point: str) -> None:
    name = "new" if scene.shows() == scene.digests["old"] else "old"
    before = scene.leaves()
    assert scene.livesnap.run("snapshot", "preview", f"{NAME}/{name}").status == 0
    assert scene.run("commit", NAME, point=point)["state"] == "completed"
    assert scene.livesnap.json("vm", "show", NAME)["preview"] is None
    assert scene.shows() == scene.digests[name]
    assert not any(leaf.exists() for leaf in before)


@pytest.mark.parametrize("point", sampled(*MANAGER, *MOVING, *PROVING, *DROPPING, suite=(MANAGER[1],)))
def test_killed_in_a_revert(scene: Reverted, point: str) -> None:
    name = "new" if scene.shows() == scene.digests["old"] else "old"
    before, shown = scene.leaves(), scene.shows()
    job = scene.run("revert", f"{NAME}/{name}", point=point)
    if job["state"] == "rolled_back":
        assert is_given_up_by_the_hosts_own_step(point), job
        assert (scene.leaves(), scene.shows()) == (before, shown)
    else:
        assert job["state"] == "completed", job
        assert scene.shows() == scene.digests[name]
        assert not any(leaf.exists() for leaf in before)
