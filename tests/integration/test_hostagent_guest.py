"""The real guest where the contract's fake has nothing to compare: stuck calls, passwords, a root libvirtd."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import libvirt
import pytest

from common.errors import LivesnapError, OutcomeUnknown
from common.ids import VmId, new_id
from common.messaging.reports import VmState
from hostagent import processes, vm_xml
from hostagent.connection import Connection, VmEvent
from hostagent.guest import LibvirtGuest
from hostagent.ports import QemuUser
from hostagent.qemu_user import QemuUsers
from hostagent.vm_state import Lifecycle
from tests.bed.disks import make_disk, make_overlay
from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.root_host import RootHost
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.wait import eventually

pytestmark = [pytest.mark.needs("libvirtd", "qemu-img", "libvirt"), pytest.mark.xdist_group("hostagent-guest")]

WITH_PASSWORD = """\
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><os><type>hvm</type></os>
<devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/nowhere/a.qcow2'/>
    <target dev='vda' bus='virtio'/></disk>
  <graphics type='vnc' passwd='secret'/>
</devices></domain>
"""


@pytest.fixture(scope="module")
def host() -> Iterator[IsolatedHost]:
    with short_dir() as root, IsolatedHost("a", root) as made:
        yield made


@pytest.fixture(scope="module")
def connection(host: IsolatedHost) -> Iterator[Connection]:
    with connected(host) as made:
        yield made


@contextmanager
def connected(host: IsolatedHost) -> Iterator[Connection]:
    made = Connection(host.uri)
    made.start()
    assert made.wait(10)
    yield made
    made.stop()


def boot(host: IsolatedHost, name: str, **options: object) -> BedVm:
    disk = DiskSpec(path=make_disk(host.dir / f"vms/{name}.qcow2", owner=host.owner))
    vm = define_vm(host, VmSpec(name=name, disks=(disk,), load="idle", **options))  # type: ignore[arg-type]
    vm.start()
    return vm


def started(act: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `act` in a thread; its result or error will stand in the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(act())
        except LivesnapError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def at_once(act: Callable[[], object]) -> object:
    """Return what `act` returns, which must not take long."""
    begun = time.monotonic()
    result = act()
    assert time.monotonic() - begun < 2, act
    return result


@pytest.mark.matrix  # 35 s: libvirt gives such a call up after 30. The barrier itself: test_probe.py, test_migration.py
def test_a_stuck_call_holds_up_the_barrier_and_nothing_that_only_looks(
    host: IsolatedHost, connection: Connection
) -> None:
    vm = boot(host, "stuck")
    vm.wait_ready()
    guest = LibvirtGuest(connection, VmId(vm.uuid))
    leaf = make_overlay(host.dir / "vms/leaf.qcow2", backing=vm.spec.disks[0].path, owner=host.owner)
    request = vm_xml.snapshot_xml({"vda": str(leaf)}, ("vda",))
    pid = vm.qemu_pid
    assert pid is not None
    with stopped(pid):
        switch, switched = started(lambda: guest.switch_leaves(request))
        eventually(lambda: is_held_up(vm), timeout_s=5, what="the snapshot call to hold libvirt's job")
        barrier, held = started(guest.touch_modify_job)
        reading, read = started(guest.layers)
        assert at_once(guest.state) is VmState.RUNNING
        assert at_once(guest.runtime_id) == processes.process_name(pid)
        assert at_once(guest.exists)
        assert vm_xml.sources(str(at_once(guest.live_xml)))["vda"] != str(leaf)
        assert [listed.name for listed in connection.vms()] == ["stuck"]
        assert at_once(connection.vms)
        barrier.join(40)
        reading.join(40)
        assert [type(result) for result in (*held, *read)] == [OutcomeUnknown, OutcomeUnknown]
        assert switched == []
    switch.join(10)
    assert switched == [None], "the call that was held up has succeeded in the end"
    guest.touch_modify_job()
    assert guest.layers()["vda"][0].path == str(leaf)
    vm.destroy()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_held_up(vm: BedVm) -> bool:
    with vm.libvirt() as handle:
        return bool(handle.controlInfo(0)[0] != libvirt.VIR_DOMAIN_CONTROL_OK)


def test_a_new_leaf_keeps_the_password(host: IsolatedHost, connection: Connection) -> None:
    vm_id = VmId(new_id())
    with host.connect() as raw:
        handle = raw.defineXML(WITH_PASSWORD.format(name="secretive", uuid=vm_id))
        guest = LibvirtGuest(connection, vm_id)
        shown = guest.persistent_xml()
        assert "secret" not in shown.replace("secretive", "")
        guest.define(vm_xml.with_sources(shown, {"vda": ("/nowhere/b.qcow2", "qcow2")}))
        whole = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        handle.undefine()
    assert vm_xml.leaves(whole) == {"vda": ("/nowhere/b.qcow2", "qcow2")}
    assert "passwd='secret'" in whole


def test_the_list_tells_what_libvirt_knows(host: IsolatedHost, connection: Connection) -> None:
    vm = boot(host, "listed", agent=False)
    vm_id = VmId(vm.uuid)
    with vm.libvirt() as handle:
        (running,) = connection.vms({vm_id})
        assert (running.name, running.state, running.snapshots) == ("listed", VmState.RUNNING, 0)
        assert vm_xml.is_active(running.live_xml)
        assert vm_xml.sources(running.persistent_xml) == vm_xml.sources(running.live_xml)
        handle.undefine()
        (transient,) = connection.vms({vm_id})
        assert transient.persistent_xml == ""
        with host.connect() as other:
            other.defineXML(running.persistent_xml)
        handle.managedSave()
        (saved,) = connection.vms({vm_id})
        assert (saved.state, saved.managed_save, saved.live_xml) == (VmState.OFF, True, "")
        assert LibvirtGuest(connection, vm_id).has_managed_save()
        handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    assert connection.vms({vm_id}) == ()


def test_events_come_again_after_a_loss(host: IsolatedHost) -> None:
    seen: list[VmEvent] = []
    returned: list[bool] = []
    watching = Connection(host.uri)
    watching.on_event(seen.append)
    watching.on_reconnect(lambda: returned.append(True))
    watching.start()
    assert watching.wait(10)
    for _ in range(2):
        seen.clear()
        with host.connect() as raw:
            raw.defineXML(WITH_PASSWORD.format(name="eventful", uuid=new_id())).undefine()
        eventually(lambda: len(seen) >= 2, timeout_s=5, what="two lifecycle events")
        first = watching.libvirtd_instance()
        assert first == processes.process_name(host.pid)
        host.kill9()
        eventually(lambda: not watching.is_up, timeout_s=5, what="the loss")
        assert watching.libvirtd_instance() == ""
        host.start()
        assert watching.wait(10)
        assert watching.libvirtd_instance() not in ("", first)
    eventually(lambda: len(returned) == 3, timeout_s=5, what="the listeners to be told")
    watching.stop()


def test_a_qemu_that_somebody_ends_is_no_guests_shutdown(host: IsolatedHost) -> None:
    told: list[Lifecycle] = []
    watching = Connection(host.uri)
    watching.on_event(lambda event: told.append(event.lifecycle) if event.lifecycle else None)
    watching.start()
    assert watching.wait(10)
    vm = define_vm(host, VmSpec(name="ended", load="idle"))

    def kill(sig: signal.Signals) -> None:
        assert vm.qemu_pid is not None
        os.kill(vm.qemu_pid, sig)

    ends: list[tuple[Callable[[], object], list[Lifecycle]]] = [
        (lambda: kill(signal.SIGTERM), [Lifecycle.OTHER, Lifecycle.ENDED_BY_SHUTDOWN]),
        (lambda: kill(signal.SIGKILL), [Lifecycle.ENDED]),
        (vm.destroy, [Lifecycle.OTHER, Lifecycle.ENDED]),
    ]
    for end, last in ends:
        vm.start(paused=True)
        eventually(lambda: Lifecycle.STARTED in told, timeout_s=10, what="the start to be told")
        end()
        eventually(
            lambda: {Lifecycle.ENDED, Lifecycle.ENDED_BY_SHUTDOWN} & set(told), timeout_s=20, what="the end to be told"
        )
        assert told[-len(last) :] == last
        assert Lifecycle.GUEST_SHUT_DOWN not in told
        eventually(lambda: vm.state()[0] == libvirt.VIR_DOMAIN_SHUTOFF, timeout_s=10, what="the end")
        told.clear()
    watching.stop()


@pytest.mark.needs("root")
def test_a_root_libvirtds_qemu_is_found() -> None:
    with short_dir() as root, RootHost("r", root) as host, connected(host) as connection:
        vm = boot(host, "system", agent=False)
        run = LibvirtGuest(connection, VmId(vm.uuid)).runtime_id()
        assert run == processes.process_name(vm.qemu_pid or 0)
        found = processes.credentials(run)
        assert found is not None
        assert found.uid == host.owner[0]
        qemu_user = QemuUsers(connection)
        running = QemuUser(uid=found.uid, gid=found.gid, groups=found.groups, is_given_files=True)
        assert qemu_user(run) == running
        assert connection.libvirtd_instance() != ""
        vm.destroy()
        assert processes.credentials(run) is None
        assert qemu_user(run) is None
        next_one = qemu_user("")
        assert next_one is not None
        assert (next_one.uid, next_one.gid, next_one.is_given_files) == (found.uid, found.gid, True)
        assert set(next_one.groups) == set(found.groups), "as libvirt starts it"


def test_a_merge_that_is_ready_and_one_that_has_ended_are_events(host: IsolatedHost) -> None:
    told: list[VmEvent] = []
    watching = Connection(host.uri)
    watching.on_event(lambda event: told.append(event) if event.kind == "block_job" else None)
    watching.start()
    assert watching.wait(10)
    vm = boot(host, "merged", agent=False)
    with vm.libvirt() as handle:
        base = vm.sources()["vda"]
        handle.snapshotCreateXML(
            "<domainsnapshot><disks><disk name='vda' snapshot='external'>"
            f"<source file='{base}.above'/></disk></disks></domainsnapshot>",
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
        )
        handle.blockCommit("vda", base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        eventually(lambda: len(told) == 1, timeout_s=20, what="the commit that is ready")
        handle.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        eventually(lambda: len(told) == 2, timeout_s=20, what="the commit that has ended")
    assert {event.vm_id for event in told} == {vm.uuid}
    watching.stop()
