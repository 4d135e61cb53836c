"""Kill -9 of each process in each step of the saga: it still ends, truthfully, with nothing lost and nothing left.

One test per crash point (the whole matrix of points, faults and repetitions is kept apart). Each asserts that its
point was hit: the marker that the dying process wrote is there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.wait import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.needs("guest", "redis-server")]

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

ROLLING_BACK = ["spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned"]
"""On the way back; reached by a snapshot that must be quiesced and cannot."""


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """One host for all crash points of this worker."""
    with place() as opened:
        yield opened


def crash_once(here: Place, point: str, vm: BedVm, *words: str) -> tuple[Livesnap, Any]:
    """Run one snapshot with `point` armed; return the instance, stopped, and the job after its end."""
    marker = here.root / f"{point}.hit"
    livesnap = here.livesnap(environment={"LIVESNAP_CRASH_POINT": f"{point}={marker}"}, state=f"s-{point}")
    with livesnap:
        livesnap.shows(vm)
        started = livesnap.json("snapshot", "create", vm.name, "--no-wait", *words)
        job = livesnap.wait_for_end(started["id"])
        assert marker.exists(), f"{point} was not reached; the timeline: {job['timeline']}"
        check_nothing_is_left(here, livesnap, vm, job)
    return livesnap, job


def check_nothing_is_left(here: Place, livesnap: Livesnap, vm: BedVm, job: Any) -> None:
    """No frozen guest, no lost write, no volume without an owner, both definitions on the leaf on record."""
    eventually(lambda: vm.freeze_status() == "thawed" or not vm.spec.agent, timeout_s=10, what="a thawed guest")
    writer_went_on(vm)
    live = vm.sources()
    assert live == vm.sources(persistent=True)
    shown = {disk["target"]: disk["path"] for disk in livesnap.json("vm", "show", vm.name)["disks"]}
    if job["state"] == "completed":
        assert live == shown
        assert livesnap.json("snapshot", "list", vm.name)[0]["id"] == job["snapshot_id"]
    else:
        assert livesnap.json("snapshot", "list", vm.name) == []
    used = {Path(path) for path in live.values()}
    for disk in [disk for snapshot in livesnap.json("snapshot", "list", vm.name) for disk in snapshot["disks"]]:
        used.add(here.storage / disk["path"])
    mine = {here.storage / path for path in here.volumes() if path.split("/")[1] in disk_ids(vm)}
    assert mine <= used, f"volumes without an owner: {mine - used}"


def disk_ids(vm: BedVm) -> set[str]:
    """Return the ids of a machine's disks, which name its folders on the storage domain."""
    from common.ids import VmId, disk_id

    return {disk_id(VmId(vm.uuid), disk.target) for disk in vm.spec.disks}


@pytest.mark.parametrize("point", STRAIGHT)
def test_killed_on_the_way(here: Place, point: str) -> None:
    vm = here.guest(f"g-{point}", disks=2)
    try:
        _, job = crash_once(here, point, vm)
        assert job["state"] in ("completed", "rolled_back"), job
        if not point.startswith("host.pivot."):
            assert job["state"] == "completed", "nothing but the host's own step may be given up"
        check_label(here, vm, job)
    finally:
        vm.destroy()


def check_label(here: Place, vm: BedVm, job: Any) -> None:
    """What the snapshot says of itself is what the guest's own file system says."""
    if job["state"] != "completed":
        return
    livesnap = here.livesnap(state=f"s-{vm.name.removeprefix('g-')}")
    with livesnap:
        snapshot = livesnap.json("snapshot", "show", job["snapshot_id"])
    finding = here.content_of(snapshot)
    assert finding.fsck_rc == 0
    if snapshot["consistency"] == "filesystem":
        assert not finding.needs_recovery
    assert finding.records == tuple(range(finding.records[0], finding.records[-1] + 1))


@pytest.mark.parametrize("point", ROLLING_BACK)
def test_killed_on_the_way_back(here: Place, point: str) -> None:
    vm = here.guest(f"b-{point}", disks=2, ga="none")
    try:
        before = vm.sources()
        _, job = crash_once(here, point, vm, "--quiesce", "require")
        assert job["state"] == "rolled_back", job
        assert job["error"]["code"] == "guest_agent_missing"
        assert vm.sources() == before
    finally:
        vm.destroy()


@pytest.mark.parametrize("point", ["host.probe.begun", "host.probe.done"])
def test_killed_while_it_is_probed(here: Place, point: str) -> None:
    """The pivot is cancelled under way, which leads to a probe; the agent dies in that."""
    vm = here.guest(f"p-{point}", ga="hookslow", hook_s=2)
    marker = here.root / f"{point}.hit"
    try:
        with here.livesnap(environment={"LIVESNAP_CRASH_POINT": f"{point}={marker}"}, state=f"s-{point}") as livesnap:
            livesnap.shows(vm)
            job = livesnap.json("snapshot", "create", vm.name, "--no-wait")
            eventually(
                lambda: livesnap.job(job["id"])["state"] == "pivoting", timeout_s=20, what="the pivot", interval_s=0.1
            )
            assert livesnap.run("job", "cancel", job["id"]).status == 0
            ended = livesnap.wait_for_end(job["id"])
            assert marker.exists(), f"{point} was not reached; the timeline: {ended['timeline']}"
            assert ended["state"] in ("completed", "rolled_back"), ended
            check_nothing_is_left(here, livesnap, vm, ended)
    finally:
        vm.destroy()
