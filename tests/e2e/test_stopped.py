"""Machines that are off: how clean they were left, what is refused, and that they boot from their new leaf."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed.process import run
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, place
from tests.integration.spm_kit import in_use
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.needs("guest", "redis-server", "qemu-io", "qemu-img"),
    pytest.mark.xdist_group("stopped"),
]

INTERNAL = "<domainsnapshot><name>internal</name></domainsnapshot>"


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


@pytest.fixture(scope="module")
def vm(here: Place, livesnap: Livesnap) -> BedVm:
    """The one machine of these tests; it has a live snapshot. A test leaves it on or off."""
    made = here.guest("many", disks=2)
    livesnap.shows(made)
    assert livesnap.run("snapshot", "create", "many", "--name", "live").status == 0
    return made


def snapshot(livesnap: Livesnap, name: str) -> Any:
    """Take a snapshot of the stopped machine and return it."""
    said = livesnap.run("snapshot", "create", "many", "--name", name, "--json")
    assert said.status == 0, said.out + said.err
    made = livesnap.json("snapshot", "show", f"many/{name}")
    assert made["receipt"]["vm_state"] == "off"
    return made


def label(taken: Any) -> tuple[str, str]:
    return taken["consistency"], taken["consistency_reason"]


def shut_down_seen(livesnap: Livesnap, vm: BedVm) -> None:
    """Shut the guest down from inside; return when the host agent has it on record."""
    before = livesnap.log("host").count("shut_down_cleanly")
    vm.shutdown()
    livesnap.shows(vm, "off")
    assert livesnap.log("host").count("shut_down_cleanly") == before + 1


def boot(vm: BedVm) -> None:
    """Start it if it is off."""
    if vm.qemu_pid is None:
        boots = vm.console().count("GUEST READY")
        vm.start()
        vm.wait_ready(boots=boots + 1)
    vm.wait_agent()
    vm.wait_acks()


def shut_off(livesnap: Livesnap, vm: BedVm) -> None:
    vm.destroy()
    livesnap.shows(vm, "off")


@pytest.mark.matrix
def test_a_run_that_no_agent_saw_makes_it_unknown(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """A clean shutdown is on record; then livesnap is down while the machine runs once more and is destroyed."""
    shut_down_seen(livesnap, vm)
    livesnap.stop()
    boot(vm)
    vm.destroy()
    livesnap.start()
    livesnap.shows(vm, "off")
    taken = snapshot(livesnap, "unseen-run")
    assert label(taken) == ("crash", "shutdown_unknown")
    assert here.content_of(taken).needs_recovery


def test_shut_down_from_inside(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """And before: it boots from the leaf that it was given while it was off, with all that had been written."""
    newest = here.content_of(livesnap.json("snapshot", "list", "many")[0])
    leaves = vm.sources(persistent=True)
    boot(vm)
    assert vm.sources() == leaves
    assert vm.acknowledged()[-1] > newest.records[-1]
    livesnap.shows(vm)
    with here.host.connect() as connection:
        connection.defineXML(vm.xml())  # with the whole chain, as others define it: a new leaf makes that stale
    assert "<backingStore type=" in vm.xml(persistent=True)
    last = vm.last_ack()
    shut_down_seen(livesnap, vm)
    # The record outlives the agent.
    agent = livesnap.pid_of("hostagent.worker")
    os.kill(agent, signal.SIGKILL)

    taken = snapshot(livesnap, "clean")

    assert label(taken) == ("filesystem", "")
    assert taken["receipt"]["clean_shutdown_seen"] is True
    finding = here.content_of(taken)
    assert not finding.needs_recovery
    assert finding.records[-1] >= last
    assert finding.records == tuple(range(1, len(finding.records) + 1))
    new = vm.sources(persistent=True)
    assert all(new[disk["target"]] != str(here.storage / disk["path"]) for disk in taken["disks"])
    assert "backingStore" not in vm.xml(persistent=True)
    assert label(snapshot(livesnap, "clean-again")) == ("filesystem", "")


def test_an_image_that_somebody_reads(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    shut_off(livesnap, vm)
    leaf = Path(vm.sources(persistent=True)["vdb"])
    with in_use(leaf, read_only=True):
        error = livesnap.run("snapshot", "create", "many", "--json").error(status=1)
    assert error["code"] == "vm_busy"
    assert str(leaf) in error["message"]
    assert "qemu-io (pid" in error["message"]


def test_snapshots_of_others(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    shut_off(livesnap, vm)
    with vm.libvirt() as handle:
        internal = handle.snapshotCreateXML(INTERNAL, 0)
        vm.start(paused=True)  # libvirt has no event for a snapshot, but for this
        vm.destroy()
        eventually(
            lambda: livesnap.run("snapshot", "create", "many", "--dry-run", "--json").out.count("vm_has_libvirt"),
            timeout_s=40,
            what="libvirt's snapshot to be noticed",
        )
        error = livesnap.run("snapshot", "create", "many", "--json").error(status=2)
        assert (error["code"], "virsh snapshot-delete" in error["hint"]) == ("vm_has_libvirt_snapshots", True)
        internal.delete(0)

    leaf = vm.sources(persistent=True)["vda"]
    run(["qemu-img", "snapshot", "-c", "inside", leaf])
    vm.start(paused=True)
    vm.destroy()
    error = livesnap.run("snapshot", "create", "many", "--json").error(status=1)
    assert (error["code"], leaf in error["message"]) == ("vm_has_libvirt_snapshots", True)
    run(["qemu-img", "snapshot", "-d", "inside", leaf])


def test_a_managed_save_image(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    boot(vm)
    leaves = vm.sources(persistent=True)
    assert vm.sources() == leaves
    with vm.libvirt() as handle:
        handle.managedSave(0)
        livesnap.shows(vm, "off")
        error = livesnap.run("snapshot", "create", "many", "--json").error(status=2)
        assert (error["code"], "managedsave-remove" in error["hint"]) == ("vm_managed_save", True)
        assert vm.sources(persistent=True) == leaves
        vm.start()
        assert not handle.hasManagedSaveImage(0)
    livesnap.shows(vm)
    vm.wait_acks()
    assert vm.write_errors() == []


def test_a_lock_and_a_shutdown_outlast_livesnap(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    boot(vm)
    locked = livesnap.run("vm", "lock", "many", "--reason", "nightly clone", "--ttl", "1h", "--json")
    assert locked.status == 0, locked.err
    livesnap.stop()
    vm.shutdown()
    livesnap.start()
    livesnap.shows(vm, "off")
    assert livesnap.json("vm", "show", "many")["lock"] == locked.json
    assert [found["lock"] for found in livesnap.json("vm", "list")] == [locked.json]
    error = livesnap.run("snapshot", "create", "many", "--json").error(status=2)
    assert error["code"] == "vm_busy"
    assert "nightly clone" in error["message"]
    assert livesnap.run("vm", "lock", "many", "--reason", "another", "--json").error(status=2)["code"] == "vm_busy"
    assert livesnap.run("vm", "unlock", "many", "--json").json == locked.json
    assert livesnap.run("vm", "unlock", "many", "--json").error(status=2)["code"] == "vm_not_locked"

    job = livesnap.submit(vm, name="unseen-shutdown")
    refused = livesnap.run("vm", "lock", "many", "--reason", "too late", "--json")
    if refused.status:  # the job may have ended by then
        assert job["id"] in refused.error(status=2)["message"]
    assert livesnap.wait_for_end(job["id"])["state"] == "completed"
    taken = livesnap.json("snapshot", "show", "many/unseen-shutdown")
    assert label(taken) == ("crash", "shutdown_unknown")
    assert not here.content_of(taken).needs_recovery
