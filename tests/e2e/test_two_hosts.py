"""Two hypervisor hosts on one storage domain, and real live migrations before, during and after snapshots."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from common.ids import new_id
from hostagent import vm_xml
from tests.bed.disks import make_disk
from tests.bed.migration import migrating
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.crash import arm
from tests.e2e.hosts import Fleet, two_hosts
from tests.e2e.kit import writer_went_on
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("two-hosts"),
]

REPORTS = {"LIVESNAP_REPORT_INTERVAL_S": "1", "LIVESNAP_HOST_SILENT_AFTER_S": "5"}
"""So that a silent host is seen in seconds. Nothing else here waits for a periodic report: events tell."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two hosts and their livesnap."""
    with two_hosts(environment=REPORTS) as made:
        yield made


@pytest.fixture(scope="module")
def mover(fleet: Fleet) -> BedVm:
    """A guest that was booted on the first host; where it is now, a test finds out."""
    return fleet.place.guest("mover")


@pytest.fixture(scope="module")
def slow(fleet: Fleet) -> BedVm:
    """A guest that takes its time to freeze, so that something can happen meanwhile."""
    return fleet.place.guest("slow", ga="hookslow", hook_s=2)


def here(fleet: Fleet, vm: BedVm) -> BedVm:
    """Return the handle of a guest on the host where it runs now."""
    host = next(host for host in (fleet.place.host, fleet.second.host) if vm.name in host.qemu_pids())
    return BedVm(host, vm.spec, vm.console_path)


def name_of(fleet: Fleet, vm: BedVm) -> str:
    return "h1" if vm.host is fleet.place.host else "h2"


def other(fleet: Fleet, vm: BedVm) -> Any:
    """Return the host where a guest is not."""
    return fleet.second.host if vm.host is fleet.place.host else fleet.place.host


def move(fleet: Fleet, vm: BedVm, **options: Any) -> BedVm:
    """Migrate a guest to the other host and wait until livesnap knows; return its handle there."""
    moved = vm.migrate_to(other(fleet, vm), **options)
    fleet.shows_on(moved, name_of(fleet, moved))
    return moved


def check_leaves(fleet: Fleet, vm: BedVm) -> None:
    """Fail unless both definitions are on the leaves on record, and the guest writes on without a gap."""
    sources = vm.sources()
    assert vm.sources(persistent=True) == sources
    fleet.livesnap.shows_on(vm, sources)
    writer_went_on(vm)


def snapshot(fleet: Fleet, vm: BedVm, name: str) -> Any:
    """Take a snapshot and return it."""
    said = fleet.livesnap.run("snapshot", "create", vm.name, "--name", name, "--json")
    assert (said.status, said.json.get("state")) == (0, "completed"), said.out
    return fleet.livesnap.json("snapshot", "show", f"{vm.name}/{name}")


@contextmanager
def agent_stopped(fleet: Fleet, host: str) -> Iterator[None]:
    """Stop a host's agent (SIGSTOP) for the block: what is sent to it waits in its queue."""
    if host == "h1":
        with fleet.livesnap.stopped("hostagent.worker"):
            yield
        return
    fleet.second.agent.sigstop()
    try:
        yield
    finally:
        fleet.second.agent.sigcont()


def test_snapshots_before_and_after_a_migration(fleet: Fleet, mover: BedVm) -> None:
    fleet.shows_on(mover, "h1")
    first = snapshot(fleet, mover, "on-h1")
    there = move(fleet, mover)
    second = snapshot(fleet, there, "on-h2")
    assert [(each["consistency"], each["consistency_reason"]) for each in (first, second)] == [("filesystem", "")] * 2
    check_leaves(fleet, there)
    assert [fleet.place.content_of(each).needs_recovery for each in (first, second)] == [False, False]
    assert fleet.place.content_of(first).records[-1] < fleet.place.content_of(second).records[-1]
    assert [fleet.host(host)["vm_count"] for host in ("h1", "h2")] == [0, 1]
    assert fleet.livesnap.json("vm", "show", "mover")["problem"] == ""


def test_a_machine_that_moves_between_request_and_pivot_is_followed(fleet: Fleet, mover: BedVm) -> None:
    vm = here(fleet, mover)
    was, becomes = name_of(fleet, vm), "h1" if name_of(fleet, vm) == "h2" else "h2"
    with agent_stopped(fleet, was):
        job = fleet.livesnap.submit(vm, name="followed")
        eventually(
            lambda: fleet.livesnap.job(job["id"])["state"] == "pivoting", timeout_s=30, what="the pivot", interval_s=0.1
        )
        moved = vm.migrate_to(other(fleet, vm))
    job = fleet.livesnap.wait_for_end(job["id"])
    assert job["state"] == "completed", job
    sent = [each["to"] for each in job["attempts"] if each["step"] == "pivoting"]
    assert (sent[0], sent[-1]) == (f"host.{was}", f"host.{becomes}")
    assert any("following it" in line["detail"] for line in job["timeline"])
    taken = fleet.livesnap.json("snapshot", "show", "mover/followed")
    assert (taken["consistency"], fleet.place.content_of(taken).needs_recovery) == ("filesystem", False)
    check_leaves(fleet, moved)


def test_a_migration_that_begins_in_the_middle_of_a_job(fleet: Fleet, slow: BedVm) -> None:
    fleet.shows_on(slow, "h1")
    before, volumes, hooks = slow.sources(), fleet.place.volumes(), slow.console().count("HOOK freeze")
    job = fleet.livesnap.submit(slow)
    eventually(lambda: slow.console().count("HOOK freeze") > hooks, timeout_s=30, what="the freeze to begin")
    with migrating(slow, fleet.second.host) as migration:
        waiting = eventually(
            lambda: (fleet.livesnap.job(job["id"])["error"] or {}).get("code") == "vm_migrating",
            timeout_s=30,
            what="the job to see the migration",
            interval_s=0.1,
        )
        assert waiting
        slow.wait_acks(more=3)
        assert not migration.is_over, "the guest writes although the migration goes on"
        again = fleet.livesnap.run("snapshot", "create", "slow", "--json")
        assert (again.status, again.json["error"]["code"]) == (2, "vm_busy")
        there = migration.finish()
    ended = fleet.livesnap.wait_for_end(job["id"])
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "vm_migrating"), ended
    assert there.sources() == there.sources(persistent=True) == before
    assert fleet.place.volumes() == volumes, "its new volume is gone, and only that"
    assert vm_xml.frozen_mark(there.xml()) == ""
    check_leaves(fleet, there)


@pytest.mark.matrix
def test_a_guest_that_leaves_frozen_is_thawed_where_it_arrives(fleet: Fleet, slow: BedVm) -> None:
    """Agent and guard of the second host die with the guest frozen; somebody migrates it away."""
    vm = here(fleet, slow)
    assert name_of(fleet, vm) == "h2"
    before, volumes, hooks = vm.sources(), fleet.place.volumes(), vm.console().count("HOOK freeze")
    crashes = fleet.place.root / "crashes"
    hit = arm(crashes, "host.pivot.frozen")
    fleet.second.agent.stop()
    fleet.second.agent.start(LIVESNAP_CRASH_POINTS=str(crashes))
    fleet.shows_on(vm, "h2")
    job = fleet.livesnap.submit(vm)
    eventually(lambda: vm.console().count("HOOK freeze") > hooks, timeout_s=30, what="the freeze to begin")
    fleet.second.guard.kill9()
    eventually(lambda: not fleet.second.agent.alive, timeout_s=30, what="the agent's death")
    assert hit.exists()
    assert vm.freeze_status() == "frozen"

    there = vm.migrate_to(fleet.place.host)

    there.wait_acks(timeout_s=20)
    eventually(lambda: vm_xml.frozen_mark(there.xml()) == "", timeout_s=10, what="the mark to be cleared")
    assert there.freeze_status() == "thawed"
    fleet.second.guard.start()
    fleet.second.agent.start()
    ended = fleet.livesnap.wait_for_end(job["id"])
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "vm_migrating"), ended
    assert there.sources() == there.sources(persistent=True) == before
    assert fleet.place.volumes() == volumes
    eventually(lambda: fleet.host("h2")["frozen"] == [], timeout_s=10, what="no guest frozen on h2", interval_s=0.1)
    check_leaves(fleet, there)
    there.destroy()


@pytest.mark.matrix
def test_a_host_that_is_not_heard_from_is_shown_as_such(fleet: Fleet, mover: BedVm) -> None:
    vm = here(fleet, mover)
    if name_of(fleet, vm) == "h1":
        vm = move(fleet, vm)
    heard = fleet.host("h2")["seen_at"]
    with agent_stopped(fleet, "h2"):
        await_state(fleet, "h2", "silent")
        since, others = fleet.host("h2")["seen_at"], fleet.host("h1")["seen_at"]
        assert heard <= since < others
        assert since[:19].replace("T", " ") in fleet.livesnap.run("host", "list").out
        machine = fleet.livesnap.json("vm", "show", "mover")
        assert (machine["host"], machine["host_state"], machine["state"]) == ("h2", "silent", "running")
        assert "silent since" in fleet.livesnap.run("vm", "list").out
        job = fleet.livesnap.submit(vm)
        eventually(
            lambda: "h2" in fleet.livesnap.job(job["id"])["waiting_for"], timeout_s=30, what="the host", interval_s=0.2
        )
    assert fleet.livesnap.wait_for_end(job["id"])["state"] == "completed"
    await_state(fleet, "h2", "up")
    check_leaves(fleet, vm)

    fleet.second.agent.stop()  # SIGTERM
    await_state(fleet, "h2", "silent")
    vm.pause()
    fleet.second.agent.start()
    fleet.shows_on(vm, "h2", "paused")
    await_state(fleet, "h2", "up")
    vm.resume()
    fleet.shows_on(vm, "h2")


def await_state(fleet: Fleet, host: str, state: str) -> None:
    """Wait until a host is shown in a state, in the text that people read too."""
    eventually(lambda: fleet.host(host)["state"] == state, timeout_s=40, what=f"{host} {state}", interval_s=0.2)
    shown = fleet.livesnap.json("host", "list")
    assert {each["id"]: each["state"] for each in shown}[host] == state


def test_defined_on_two_hosts(fleet: Fleet, mover: BedVm) -> None:
    """Where it runs counts; stopped on both it is refused until one definition is gone."""
    vm = here(fleet, mover)
    left = BedVm(vm.host, vm.spec, vm.console_path)
    moved = move(fleet, vm, leave_definition=True)
    before = left.sources(persistent=True)
    snapshot(fleet, moved, "where-it-runs")
    assert fleet.livesnap.json("vm", "show", "mover")["problem"] == ""
    check_leaves(fleet, moved)
    assert left.sources(persistent=True) == before != moved.sources()

    moved.destroy()
    eventually(
        lambda: fleet.livesnap.ask("/v1/vms/mover")["problem"] == "vm_ambiguous_host",
        timeout_s=20,
        what="both stopped",
        interval_s=0.1,
    )
    jobs = fleet.livesnap.ask("/v1/jobs")
    refused = fleet.livesnap.run("snapshot", "create", "mover", "--json")
    error = refused.json["error"]
    assert (refused.status, error["code"]) == (2, "vm_ambiguous_host")
    assert all(host in error["message"] for host in ("h1", "h2"))
    assert "Undefine" in error["hint"]
    assert fleet.livesnap.ask("/v1/jobs") == jobs

    left.undefine()
    eventually(
        lambda: fleet.livesnap.ask("/v1/vms/mover")["problem"] == "", timeout_s=20, what="one left", interval_s=0.1
    )
    snapshot(fleet, moved, "stopped")
    fleet.livesnap.shows_on(moved, moved.sources(persistent=True))


@pytest.mark.matrix
def test_replaced_by_another_of_its_name(fleet: Fleet) -> None:
    """The same name and the same disk, but another machine: nothing is done to it on the old one's behalf."""
    owner = fleet.place.host.owner
    disk = DiskSpec(path=make_disk(fleet.place.storage / "twin.qcow2", owner=owner))
    old = define_vm(fleet.place.host, VmSpec(name="twin", disks=(disk,), uuid=new_id()))
    old_id = old.uuid
    fleet.shows_on(old, "h1", "off")
    with agent_stopped(fleet, "h1"):
        job = fleet.livesnap.submit(old, name="late")
        eventually(
            lambda: fleet.livesnap.job(job["id"])["state"] == "pivoting", timeout_s=30, what="the pivot", interval_s=0.1
        )
        old.undefine()
        new = define_vm(fleet.place.host, VmSpec(name="twin", disks=(disk,), uuid=new_id()))
        definition = new.xml()
    ended = fleet.livesnap.wait_for_end(job["id"])
    assert (ended["state"], ended["error"]["code"]) == ("rolled_back", "vm_not_found"), ended
    outcomes = [each["outcome"] for each in ended["attempts"] if each["step"] == "pivoting"]
    assert set(outcomes) == {"not_here"}
    assert new.xml() == definition
    assert disk.path.exists()
    assert not [path for path in fleet.place.volumes() if ended["snapshot_id"] in path]

    fleet.shows_on(new, "h1", "off")
    refused = fleet.livesnap.run("snapshot", "create", old_id, "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "vm_not_found")
    assert new.xml() == definition
    snapshot(fleet, new, "its-own")
    assert new.sources(persistent=True)["vda"] != str(disk.path)
