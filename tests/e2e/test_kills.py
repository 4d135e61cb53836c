"""Kill -9 of each process in each step of the saga: it still ends, truthfully, with nothing lost and nothing left.

One test per crash point (the whole matrix of points, faults and repetitions is kept apart). Each asserts that its
point was hit: the file that the dying process renamed is there. One livesnap and one guest serve them all, one after
the other: what a crash left behind would be met by the next.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.bed.vm import BedVm
from tests.crash import arm, sampled
from tests.e2e.scene import Scene

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
]

STRAIGHT = [
    "manager.apply.before_commit",
    "manager.apply.committed",
    "manager.apply.published",
    "spm.create.begun",
    "spm.create.linked",
    "spm.create.metadata_written",
    "host.pivot.begun",
    "host.pivot.prepared",
    "host.pivot.defined",
    "host.pivot.armed",
    "host.pivot.frozen",
    "host.pivot.issued",
    "host.pivot.switched",
    "host.pivot.thawed",
    "host.pivot.observed",
    "host.pivot.done",
]
"""On the way to a completed snapshot."""

EACH_STEP = (
    "manager.apply.committed",
    "spm.create.begun",
    "host.pivot.frozen",
    "host.pivot.switched",
)
"""Those that the suite plays."""

ROLLING_BACK = ["spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned"]
"""On the way back; reached by a snapshot that must be quiesced and cannot."""

REPAIRING = ["host.repair.begun", "host.repair.committed", "host.repair.done"]
"""While mixed volumes are brought back; reached where QEMU has switched one of two disks and no definition says so."""

PROBING = ["host.probe.begun", "host.probe.done"]
"""While the outcome is being found out; reached by a pivot that is cancelled while its agent is dead."""


@pytest.fixture(scope="module")
def mute() -> Iterator[list[BedVm]]:
    """The guest without an agent, once a test has wanted it; it ends with this module, not with the shared scene."""
    started: list[BedVm] = []
    yield started
    for vm in started:
        vm.destroy()


@pytest.fixture
def agentless(steady: Scene, mute: list[BedVm]) -> Scene:
    """The scene with a guest that has no agent."""
    if not mute:
        mute.append(steady.here.guest("mute", disks=2, ga="none"))
        steady.livesnap.shows(mute[0])
    return replace(steady, vm=mute[0])


@pytest.mark.xdist_group("steady")
@pytest.mark.parametrize("point", sampled(*STRAIGHT, suite=EACH_STEP))
def test_killed_on_the_way(steady: Scene, point: str) -> None:
    check_killed_on_the_way(steady, point)


@pytest.mark.rabbit
@pytest.mark.own_backends
@pytest.mark.needs("rabbitmq", "postgres")
@pytest.mark.xdist_group("production")
@pytest.mark.parametrize("point", sampled(*STRAIGHT, suite=("manager.apply.published", "host.pivot.frozen")))
def test_killed_on_the_way_in_production(production: Scene, point: str) -> None:
    check_killed_on_the_way(production, point)


def check_killed_on_the_way(scene: Scene, point: str) -> None:
    """Take a snapshot during which `point` kills; hold job, machine, storage and label against each other."""
    arm(scene.crashes, point)
    job = scene.crash_once(point, scene.livesnap.submit(scene.vm))
    assert job["state"] in ("completed", "rolled_back"), job
    if not point.startswith("host.pivot."):
        assert job["state"] == "completed", "nothing but the host's own step may be given up"
    if job["state"] == "completed":
        snapshot = scene.livesnap.json("snapshot", "show", job["snapshot_id"])
        finding = scene.here.content_of(snapshot)
        assert finding.fsck_rc == 0
        assert not (snapshot["consistency"] == "filesystem" and finding.needs_recovery), "the label promises too much"
        assert finding.records == tuple(range(finding.records[0], finding.records[-1] + 1))


@pytest.mark.xdist_group("steady")
@pytest.mark.parametrize("point", sampled(*ROLLING_BACK, suite=("spm.delete.begun", "spm.delete.trashed")))
def test_killed_on_the_way_back(agentless: Scene, point: str) -> None:
    before = agentless.vm.sources()
    arm(agentless.crashes, point)
    started = agentless.livesnap.json("snapshot", "create", "mute", "--quiesce", "require", "--no-wait")
    job = agentless.crash_once(point, started)
    assert job["state"] == "rolled_back", job
    assert job["error"]["code"] == "guest_agent_missing"
    assert agentless.vm.sources() == before


@pytest.mark.xdist_group("steady")
@pytest.mark.parametrize("point", sampled(*PROBING, suite=("host.probe.begun",)))
def test_killed_while_it_is_probed(agentless: Scene, point: str) -> None:
    """The agent dies in its pivot, and again in the probe that a cancel causes."""
    with agentless.dead_agent("host.pivot.defined") as job:
        agentless.livesnap.run("job", "cancel", job["id"])
        arm(agentless.crashes, point)
    ended = agentless.crash_once(point, job)
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "job_cancelled"), ended


@pytest.mark.xdist_group("steady")
@pytest.mark.parametrize("point", sampled(*REPAIRING, suite=("host.repair.committed",)))
def test_killed_while_mixed_volumes_are_repaired(steady: Scene, point: str) -> None:
    """The agent dies right before the switch; by the time it looks, QEMU has one disk on its new volume (H1)."""
    vm, before = steady.vm, steady.vm.sources()
    with steady.dead_agent("host.pivot.issued") as job:
        vm.switch_behind_libvirt("vda", vm.sources(persistent=True)["vda"])
        arm(steady.crashes, point)
    ended = steady.crash_once(point, job)
    assert ended["state"] == "rolled_back", ended
    assert "repairing" in [entry["step"] for entry in ended["timeline"]]
    assert vm.sources() == before
