"""A host's check on a real guest: each finding as libvirt, QEMU, storage and agent really show it; nothing changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import libvirt
import pytest

from common.clock import SystemClock
from common.ids import StepId, VmId, new_id
from common.messaging.messages import Check, DiskSwitch
from common.messaging.wire import SCHEMA_VERSION, Envelope
from common.preflight import Level, Limits, PreflightLine
from hostagent.operations.check import check
from tests.bed.disks import make_disk, make_overlay
from tests.bed.paths import give
from tests.bed.process import run
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.integration.operations_kit import Bench, bench
from tests.integration.spm_kit import in_use
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("libvirtd", "qemu-img", "libvirt"),
    pytest.mark.xdist_group("check"),
]

WAIT = timedelta(seconds=4)
ROOM = Limits(low_space_bytes=0)


@pytest.fixture(scope="module")
def on() -> Iterator[Bench]:
    with bench() as made:
        made.agent.storage.mounts()  # as at an agent's start: it holds the host's lock from then on
        yield made


@pytest.fixture(scope="module")
def vm(on: Bench) -> BedVm:
    """One machine: vda as it should be, vdb with everything that is only warned of."""
    owner, root = on.host.owner, on.kit.root
    plain = make_disk(root / "chk-vda.qcow2", owner=owner)
    base = make_disk(root / "chk-base.qcow2", owner=owner, fs=None)
    leaf = make_overlay(root / "chk-vdb.qcow2", backing=base, owner=owner, relative=True)
    run(["qemu-img", "bitmap", "--add", "-f", "qcow2", leaf, "of-a-backup-tool"])
    disks = (DiskSpec(path=plain), DiskSpec(path=leaf, target="vdb", error_policy="report"))
    made = define_vm(on.host, VmSpec(name="chk", disks=disks, load="idle"))
    made.start()
    made.wait_ready()
    made.wait_agent()
    return made


def lines_of(on: Bench, vm: BedVm, *targets: str, limits: Limits = ROOM, **changes: Any) -> tuple[PreflightLine, ...]:
    """Let the host check these disks (default: vda) of the machine."""
    disks = tuple(disk for disk in on.intended(vm) if disk.target in (targets or ("vda",)))
    return asked(on, VmId(vm.uuid), disks, limits=limits, **changes)


def asked(
    on: Bench, vm: VmId, disks: tuple[DiskSwitch, ...], *, limits: Limits = ROOM, **changes: Any
) -> tuple[PreflightLine, ...]:
    """Let the host answer a question as it stands."""
    told = {"quiesce": True, "require_quiesce": False, **changes}
    command, now = Check(vm_id=vm, disks=disks, limits=limits, **told), SystemClock().now()
    envelope = Envelope(
        v=SCHEMA_VERSION,
        sender="manager",
        to="host.h1",
        job=None,
        vm=vm,
        step=StepId(new_id()),
        attempt=0,
        issued_at=now,
        deadline=now + WAIT,
        body=command,
    )
    return check(envelope, command, on.agent.deps).lines


def found(lines: tuple[PreflightLine, ...]) -> list[tuple[str, str]]:
    """Return level and code of what is not simply fine."""
    return [(line.level.value, line.code) for line in lines if line.level is not Level.OK]


def as_it_is(on: Bench, vm: BedVm) -> Any:
    """Return what a check must leave as it is: both definitions, the storage, the journal."""
    journal = on.agent.deps.journal
    owners = {path: (path.stat().st_uid, path.stat().st_mode) for path in sorted(on.kit.root.rglob("*"))}
    files = {path: path.read_bytes() for path in owners if path.is_file()}
    return vm.xml(), vm.xml(persistent=True), owners, files, journal.current(VmId(vm.uuid)), journal.frozen_records()


# ---- as it should be ------------------------------------------------------------------------------------------------


def test_a_healthy_machine_is_fine_and_nothing_changes(on: Bench, vm: BedVm) -> None:
    before = as_it_is(on, vm)
    begun = time.monotonic()
    lines = lines_of(on, vm)
    took_s = time.monotonic() - begun
    assert as_it_is(on, vm) == before
    assert found(lines) == []
    uid, gid = on.host.owner
    messages = [line.message for line in lines]
    assert messages[:4] == [
        "running on host h1",
        "the guest's agent answers and offers freezing",
        "qcow2, virtio; a chain of 1 volume(s)",
        f"opened read-write as user {uid}, group {gid}",
    ]
    assert messages[4].endswith(" MiB free")
    assert took_s < 2, "a healthy one takes some 20 ms"
    with vm.libvirt() as handle:
        assert "monitor" not in "; ".join(handle.messages(0)), "a check asks QEMU nothing"


def test_what_is_only_warned_of(on: Bench, vm: BedVm) -> None:
    lines = lines_of(on, vm, "vdb", limits=Limits(deep_chain=2, low_space_bytes=1 << 60))
    assert found(lines) == [
        ("warning", "disk_error_policy"),
        ("warning", "chain_deep"),
        ("warning", "backup_bitmaps"),
        ("warning", "storage_low"),
    ]
    assert all(line.hint for line in lines if line.code)


def test_limits_that_refuse(on: Bench, vm: BedVm) -> None:
    lines = lines_of(on, vm, limits=Limits(max_chain=1, min_free_bytes=1 << 60))
    assert found(lines) == [("refusal", "chain_too_deep"), ("refusal", "storage_full")]


# ---- what libvirt holds or does -------------------------------------------------------------------------------------


@contextmanager
def checkpoint(on: Bench, vm: BedVm) -> Iterator[None]:
    with vm.libvirt() as handle:
        disks = "<disks><disk name='vda' checkpoint='bitmap'/><disk name='vdb' checkpoint='no'/></disks>"
        made = handle.checkpointCreateXML(f"<domaincheckpoint><name>monday</name>{disks}</domaincheckpoint>", 0)
        try:
            yield
        finally:
            made.delete(0)


@contextmanager
def libvirt_snapshot(on: Bench, vm: BedVm) -> Iterator[None]:
    """Have libvirt keep a record of a snapshot, without making one."""
    xml = (
        "<domainsnapshot><name>kept</name><state>disk-snapshot</state><creationTime>1</creationTime><disks>"
        f"<disk name='vda' snapshot='external' type='file'><source file='{vm.sources()['vda']}'/></disk>"
        f"<disk name='vdb' snapshot='no'/></disks>{vm.xml(persistent=True)}</domainsnapshot>"
    )
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    with vm.libvirt() as handle:
        made = handle.snapshotCreateXML(xml, flags)
        try:
            yield
        finally:
            made.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


@contextmanager
def block_job(on: Bench, vm: BedVm) -> Iterator[None]:
    with vm.libvirt() as handle:
        handle.blockCommit("vdb", str(on.kit.root / "chk-base.qcow2"), None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        try:
            yield
        finally:
            handle.blockJobAbort("vdb", 0)


@contextmanager
def frozen(on: Bench, vm: BedVm) -> Iterator[None]:
    vm.freeze()
    try:
        yield
    finally:
        vm.thaw()


@contextmanager
def paused(on: Bench, vm: BedVm) -> Iterator[None]:
    vm.pause()
    try:
        yield
    finally:
        vm.resume()


HELD: list[tuple[Callable[[Bench, BedVm], Any], str, str]] = [
    (checkpoint, "warning", "backup_bitmaps"),
    (libvirt_snapshot, "refusal", "vm_has_libvirt_snapshots"),
    (block_job, "refusal", "vm_busy"),
    (frozen, "refusal", "guest_frozen_by_others"),
    (paused, "refusal", "vm_paused_not_quiesced"),
]


@pytest.mark.parametrize(("holding", "level", "code"), HELD, ids=[code for _, _, code in HELD])
def test_what_holds_a_machine(
    on: Bench, vm: BedVm, holding: Callable[[Bench, BedVm], Any], level: str, code: str
) -> None:
    with holding(on, vm):
        assert found(lines_of(on, vm, require_quiesce=True)) == [(level, code)]
    assert found(lines_of(on, vm, require_quiesce=True)) == []


def test_an_agent_that_hangs_is_given_up_before_whoever_asked_gives_up(on: Bench, vm: BedVm) -> None:
    """The guest stops its agent for a while, and lets it go on."""
    held = "pid=$(pidof qemu-ga); kill -STOP $pid; echo AGENT HELD >/dev/console; sleep 5; kill -CONT $pid"
    vm.agent("guest-exec", path="/bin/busybox", arg=["sh", "-c", held])
    eventually(lambda: "AGENT HELD" in vm.console(), timeout_s=10, what="the guest to stop its agent")
    begun = time.monotonic()
    lines = lines_of(on, vm)
    assert 1 < time.monotonic() - begun < WAIT.total_seconds()
    assert found(lines) == [("warning", "guest_agent_missing")]
    vm.wait_agent()
    assert found(lines_of(on, vm)) == []


# ---- what lies on storage -------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_volumes_and_folders_that_qemus_user_may_not_open(on: Bench, vm: BedVm) -> None:
    leaf, owner = Path(vm.sources()["vda"]), on.host.owner
    os.chown(leaf, 0, 0)
    try:
        lines = lines_of(on, vm)
        assert found(lines) == [("refusal", "volume_permission")], "it is open, but one like it could not be opened"
        (refused,) = [line for line in lines if line.code]
        assert (refused.subject, str(leaf) in refused.message) == ("vda", True)
    finally:
        os.chown(leaf, *owner)
    images = on.kit.root / "images"
    mode = images.stat().st_mode
    os.chown(images, 0, 0)
    images.chmod(0o700)
    try:
        lines = lines_of(on, vm)
        assert found(lines) == [("refusal", "volume_permission")]
        assert f"{images} is closed to it" in next(line.message for line in lines if line.code)
    finally:
        images.chmod(mode)
        os.chown(images, *owner)
    assert found(lines_of(on, vm)) == []


def test_a_leaf_that_is_not_the_one_on_record(on: Bench, vm: BedVm) -> None:
    (disk,) = [disk for disk in on.intended(vm) if disk.target == "vda"]
    other = on.kit.image("other.qcow2")
    give(on.kit.file(other), on.host.owner)
    for wrong, code in ((replace(disk, old=other), "chain_unexpected"), (replace(disk, target="vdz"), "disk_unknown")):
        assert found(asked(on, VmId(vm.uuid), (wrong,))) == [("refusal", code)]


def test_a_stopped_machine(on: Bench, vm: BedVm) -> None:
    """Headers are read whatever state the machine is in; here one of the chain goes wrong while it is off."""
    vm.destroy()
    before = as_it_is(on, vm)
    lines = lines_of(on, vm)
    assert found(lines) == []
    assert f"opened read-write as user {on.host.owner[0]}" in " ".join(line.message for line in lines)
    assert as_it_is(on, vm) == before
    base = on.kit.root / "chk-base.qcow2"
    whole = base.read_bytes()
    base.write_bytes(whole[:32] + (1).to_bytes(4, "big") + whole[36:])  # an encrypted one, by its header
    assert ("refusal", "disk_encrypted") in found(lines_of(on, vm, "vdb"))
    base.unlink()
    assert ("refusal", "volume_not_found") in found(lines_of(on, vm, "vdb"))
    base.write_bytes(whole)
    give(base, on.host.owner)
    with in_use(Path(vm.sources(persistent=True)["vda"])):
        assert found(lines_of(on, vm)) == [("refusal", "vm_busy")]


def test_a_machine_that_is_not_here(on: Bench) -> None:
    stranger = VmId(new_id())
    assert [(line.subject, line.code) for line in asked(on, stranger, ())] == [(stranger, "vm_not_found")]
