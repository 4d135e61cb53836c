"""`job cancel` in each step of the saga: it ends completed or rolled back, and says truthfully which.

A step is held by stopping the process that is at work in it, or by its death at a crash point; then the job is
cancelled, and the process let go, or started again. Cancelling is a wish: what the machine's host says is what happens.
"""

from contextlib import ExitStack

import pytest

from tests.crash import arm
from tests.e2e.scene import AGENT, SPM, Scene
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.own_backends,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("steady"),
]


def test_cancelled_while_its_volumes_are_made(steady: Scene) -> None:
    """The creation and its deletion wait in the SPM's queue side by side; whichever is first, nothing is left."""
    before = steady.vm.sources()
    with steady.held(SPM):
        job = steady.livesnap.submit(steady.vm)
        steady.reaches(job, "creating_volumes", waiting_for="the SPM of pool default")
        assert steady.cancel(job)["state"] == "deleting_volumes"
        assert steady.cancel(job)["state"] == "deleting_volumes", "saying so twice changes nothing"
    ended = steady.ends_well(job)
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "job_cancelled")
    assert steady.vm.sources() == before


def test_cancelled_before_the_host_has_begun(steady: Scene) -> None:
    """The pivot may still be the first that the host takes: then the snapshot is there, and the job says so."""
    before = steady.vm.sources()
    with steady.held(AGENT):
        job = steady.livesnap.submit(steady.vm)
        steady.reaches(job, "pivoting", waiting_for="host h1")
        assert steady.cancel(job)["state"] == "probing"
        assert steady.cancel(job)["state"] == "probing"
    ended = steady.ends_well(job)
    if ended["state"] == "completed":
        assert steady.vm.sources() != before
        assert ended["error"] is None
    else:
        assert steady.vm.sources() == before
        assert ended["error"]["code"] == "job_cancelled"


@pytest.mark.parametrize(
    ("point", "state"), [("host.pivot.frozen", "rolled_back"), ("host.pivot.switched", "completed")]
)
def test_cancelled_in_the_midst_of_the_pivot(steady: Scene, point: str, state: str) -> None:
    """What QEMU had done when the agent died decides, and not that somebody wanted the job to end."""
    before = steady.vm.sources()
    with steady.dead_agent(point) as job:
        assert steady.cancel(job)["state"] == "probing"
    ended = steady.ends_well(job)
    assert ended["state"] == state, ended["timeline"]
    assert (steady.vm.sources() == before) == (state == "rolled_back")
    assert (ended["error"] or {}).get("code") == ("job_cancelled" if state == "rolled_back" else None)


def test_cancelled_while_its_host_is_silent_and_while_it_is_rolled_back(steady: Scene) -> None:
    """Nobody can say what is true, so that nothing ends: everything is kept until the host answers."""
    before = steady.here.volumes()
    with ExitStack() as spm_held:
        with steady.dead_agent("host.pivot.defined") as job:
            steady.cancel(job)
            waiting = steady.reaches(job, "awaiting_host", waiting_for="host h1, last heard at")
            assert waiting["error"]["code"] == "job_cancelled"
            assert steady.cancel(job)["state"] == "awaiting_host"
            assert len(steady.here.volumes() - before) == 2
            spm_held.enter_context(steady.held(SPM))
        steady.reaches(job, "deleting_volumes")
        assert steady.cancel(job)["state"] == "deleting_volumes"
    assert steady.ends_well(job)["state"] == "rolled_back"
    assert steady.here.volumes() == before


@pytest.mark.matrix
def test_cancelled_while_mixed_volumes_are_repaired(steady: Scene) -> None:
    """QEMU has one of two disks on its new volume; the agent dies again in the repair, and there the job is held."""
    before = steady.vm.sources()
    hit = arm(steady.crashes, "host.repair.begun")
    with steady.dead_agent("host.pivot.issued") as job:
        steady.vm.switch_behind_libvirt("vda", steady.vm.sources(persistent=True)["vda"])
        steady.cancel(job)
    steady.is_back(AGENT)
    with steady.livesnap.nothing_restarted():
        eventually(hit.exists, timeout_s=60, what="the agent's death in its repair")
        assert steady.cancel(job)["state"] == "repairing"
    ended = steady.ends_well(job)
    assert (ended["state"], steady.vm.sources()) == ("rolled_back", before)
