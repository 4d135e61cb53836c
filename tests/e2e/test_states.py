"""Machines in every state in which somebody finds them: snapshotted, waited for, or refused with the way out."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest

from common.ids import VmId
from hostagent import places
from hostagent.vm_locks import VmLockFiles
from tests.bed.disks import make_overlay
from tests.bed.hold import held
from tests.bed.piped import piped
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.needs("guest", "redis-server", "gcc"),
    pytest.mark.xdist_group("states"),
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


@pytest.fixture(scope="module")
def vm(here: Place, livesnap: Livesnap) -> BedVm:
    """The one machine of these tests; each leaves it running."""
    made = here.guest("many", disks=2, suspend=True, panic=True, hold=here.root / "hold")
    livesnap.shows(made)
    return made


def snapshot(livesnap: Livesnap, name: str, **wanted: str) -> Any:
    """Take a snapshot and return it; fail unless it is labelled so."""
    said = livesnap.run("snapshot", "create", "many", "--name", name, "--json")
    assert said.status == 0, said.out + said.err
    made = livesnap.json("snapshot", "show", f"many/{name}")
    assert {key: made[key] for key in wanted} == wanted
    return made


def refusal(livesnap: Livesnap, *options: str) -> Any:
    """Ask for a snapshot and return why it is refused at once: without a job."""
    return livesnap.run("snapshot", "create", "many", *options, "--json").error(status=2)


def failure(livesnap: Livesnap) -> Any:
    """Ask for a snapshot and return why its job fails."""
    return livesnap.run("snapshot", "create", "many", "--json").error(status=1)


def goes_on(vm: BedVm) -> None:
    """Fail unless the guest writes on: not by its numbers, since its kernel speaks in between after such a pause."""
    vm.wait_acks()
    assert vm.write_errors() == []


def test_paused_stays_paused(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    vm.pause()
    livesnap.shows(vm, "paused")
    taken = snapshot(livesnap, "paused", consistency="crash", consistency_reason="paused")
    assert vm.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    assert refusal(livesnap, "--quiesce", "require")["code"] == "vm_paused_not_quiesced"
    vm.resume()
    writer_went_on(vm)
    assert here.content_of(taken).needs_recovery


def test_a_block_job_of_somebody_else(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    copy = here.storage / "copy.qcow2"
    with vm.libvirt() as handle:
        target = f"<disk type='file'><driver type='qcow2'/><source file='{copy}'/></disk>"
        handle.blockCopy("vdb", target, flags=libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        error = failure(livesnap)
        assert error["code"] == "vm_busy"
        assert "block job on vdb" in error["message"]
        handle.blockJobAbort("vdb", 0)
    copy.unlink()
    snapshot(livesnap, "no-job", consistency="filesystem")
    writer_went_on(vm)


def test_off_its_chain(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """Somebody else's snapshot, which libvirt announces by no event; then somebody's definition."""

    def problem() -> str:
        return str(livesnap.ask(f"/v1/vms/{vm.name}")["problem"])

    leaf = vm.sources()["vda"]
    overlay = make_overlay(here.storage / "foreign.qcow2", backing=here.storage / leaf, owner=here.host.owner)
    vm.snapshot({"vda": overlay})
    vm.pause()
    vm.resume()
    eventually(lambda: problem() == "vm_off_chain", timeout_s=45, what="the foreign leaf to be noticed")
    assert [found["problem"] for found in livesnap.json("vm", "list")] == ["vm_off_chain"]
    assert str(overlay) in livesnap.json("vm", "show", "many")["problem_detail"]
    error = refusal(livesnap)
    assert (error["code"], str(overlay) in error["message"]) == ("vm_off_chain", True)
    assert any("vm.off_chain" in line and str(overlay) in line for line in livesnap.log("manager").splitlines())
    with vm.libvirt() as handle:
        handle.blockCommit("vda", leaf, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        eventually(lambda: "ready='yes'" in handle.XMLDesc(), timeout_s=20, what="the foreign layer to be committed")
        handle.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    eventually(lambda: problem() == "", timeout_s=45, what="the chain to be as recorded again")

    right = vm.xml(persistent=True)
    with here.host.connect() as connection:
        connection.defineXML(right.replace(leaf, str(overlay)))
        eventually(lambda: problem() == "vm_off_chain", timeout_s=45, what="the other definition to be noticed")
        assert "its definition names" in refusal(livesnap)["message"]
        connection.defineXML(right)
    eventually(lambda: problem() == "", timeout_s=45, what="the definition to be as recorded again")
    overlay.unlink()
    snapshot(livesnap, "on-chain", consistency="filesystem")


def test_being_dumped(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    with piped(vm, here.root, lambda handle, path: handle.coreDump(path, 0)):
        livesnap.shows(vm, "dumping")
        assert refusal(livesnap)["code"] == "vm_dumping"
    livesnap.shows(vm)
    with piped(vm, here.root, lambda handle, path: handle.coreDump(path, libvirt.VIR_DUMP_LIVE)):
        error = failure(livesnap)
        assert error["code"] == "vm_dumping"
        assert "domjobabort" in error["hint"]
    livesnap.shows(vm)
    snapshot(livesnap, "dumped", consistency="filesystem")


def test_being_saved(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    def save(handle: libvirt.virDomain, path: str) -> None:
        with suppress(libvirt.libvirtError):  # the abort below
            handle.save(path)

    with piped(vm, here.root, save), vm.libvirt() as handle:
        livesnap.shows(vm, "saving")
        error = refusal(livesnap)
        assert error["code"] == "vm_saving"
        assert "domjobabort" in error["hint"]
        handle.abortJob()
    livesnap.shows(vm)
    goes_on(vm)


def in_progress(livesnap: Livesnap, vm: BedVm) -> bool:
    """Tell whether the host agent is at work on a machine: it has begun a command and has not ended it."""
    return VmLockFiles(places.vm_locks_dir(livesnap.state_dir / "host")).is_held(VmId(vm.uuid))


def test_shutting_down_and_starting_up_are_waited_for(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    with held(here.root / "hold"):
        with vm.libvirt() as handle:
            handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        livesnap.shows(vm, "stopping")
        job = livesnap.submit(vm, name="stopping")
        eventually(lambda: in_progress(livesnap, vm), timeout_s=20, what="the host to begin")
        assert livesnap.job(job["id"])["state"] == "pivoting"
    assert livesnap.wait_for_end(job["id"])["state"] == "completed"
    taken = livesnap.json("snapshot", "show", "many/stopping")
    assert taken["receipt"]["vm_state"] == "off"
    assert not here.content_of(taken).needs_recovery

    with ThreadPoolExecutor(1) as pool:
        with held(here.root / "hold"):
            start = pool.submit(vm.start)
            starting = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
            eventually(lambda: vm.state() == starting, timeout_s=20, what="the start to be held")
            job = livesnap.submit(vm, name="starting", quiesce="never")
            eventually(lambda: in_progress(livesnap, vm), timeout_s=20, what="the host to begin")
            assert livesnap.job(job["id"])["state"] == "pivoting"
        start.result()
    assert livesnap.wait_for_end(job["id"])["state"] == "completed"
    assert livesnap.json("snapshot", "show", "many/starting")["receipt"]["vm_state"] == "running"
    vm.wait_ready(boots=2)
    vm.wait_agent()
    goes_on(vm)


def test_suspended_by_the_guest(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """It cannot be treated as paused: libvirt itself refuses the switch. The way out that the refusal names works."""
    with vm.libvirt() as handle:
        handle.pMSuspendForDuration(libvirt.VIR_NODE_SUSPEND_TARGET_MEM, 0, 0)
        livesnap.shows(vm, "pmsuspended")
        error = refusal(livesnap)
        assert error["code"] == "vm_pmsuspended"
        assert "dompmwakeup" in error["hint"]
        leaves = vm.sources()
        overlays = {
            target: make_overlay(here.storage / f"{target}.qcow2", backing=Path(leaf), owner=here.host.owner)
            for target, leaf in leaves.items()
        }
        with pytest.raises(libvirt.libvirtError, match="PMSUSPENDED"):
            vm.snapshot(overlays)
        assert vm.sources() == leaves
        handle.pMWakeup(0)
    livesnap.shows(vm)
    goes_on(vm)
    vm.wait_agent()
    snapshot(livesnap, "woken", consistency="filesystem")


def test_crashed_and_destroyed(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """The last one: the guest does not come back from it."""
    with suppress(libvirt.libvirtError):  # the agent may be gone before it answers
        vm.agent("guest-exec", path="/bin/busybox", arg=["sh", "-c", "echo c >/proc/sysrq-trigger"])
    livesnap.shows(vm, "crashed")
    assert vm.qemu_pid is not None
    assert os.path.exists(f"/proc/{vm.qemu_pid}")
    error = refusal(livesnap)
    assert error["code"] == "vm_crashed"
    assert "virsh destroy" in error["hint"]
    vm.destroy()
    livesnap.shows(vm, "off")
    taken = snapshot(livesnap, "destroyed", consistency="crash", consistency_reason="shutdown_unknown")
    assert here.content_of(taken).needs_recovery
