"""The host agent as its own process on a real broker, libvirt and guest; the test is the Manager."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from common.ids import JobId, VmId, new_id
from common.images import locks
from common.messaging.messages import LeavesObserved, Outcome, Probe, Refusal, Refused
from common.messaging.reports import AgentState, HostReport, VmReport, VmState
from common.receipt import Consistency, label
from hostagent import places, vm_xml
from hostagent.journal import SqliteJournal
from hostagent.vm_locks import VmLockFiles
from tests.bed.host import IsolatedHost
from tests.bed.vm import BedVm, define_vm
from tests.crash import crash_at, sampled
from tests.fakes.clock import FakeClock
from tests.integration.host_kit import HOST, HostScene, host_scene
from tests.wait import eventually

pytestmark = [
    pytest.mark.needs("libvirtd", "qemu-img", "redis-server", "libvirt"),
    pytest.mark.xdist_group("hostagent-worker"),
]


@pytest.fixture(scope="module")
def module_scene() -> Iterator[HostScene]:
    with host_scene() as made:
        yield made


@pytest.fixture(scope="module")
def web(module_scene: HostScene) -> BedVm:
    return module_scene.boot("web", disks=2)


@pytest.fixture
def scene(module_scene: HostScene, web: BedVm) -> Iterator[HostScene]:
    """The same scene for all, in order again after a test that broke something on purpose."""
    module_scene.forget()
    yield module_scene
    for daemon in (module_scene.host, module_scene.guard, module_scene.agent):
        if not daemon.alive:
            daemon.start()
    web.wait_agent()
    web.thaw()


FREEZING = ("host.pivot.armed", "host.pivot.frozen", "host.pivot.issued")
ATTEMPTS = iter(range(1, 1000))


def a_job() -> JobId:
    return JobId(new_id())


def await_report(scene: HostScene, what: str, **wanted: object) -> HostReport:
    """Wait for a report of which these fields are so, and return the newest."""

    def found() -> list[HostReport]:
        return [r for r in scene.reports() if all(getattr(r, name) == value for name, value in wanted.items())]

    return eventually(found, timeout_s=10, what=what)[-1]


def await_vm(scene: HostScene, vm: BedVm, **wanted: object) -> VmReport:
    """Wait for a report on that vm of which these fields are so, and return it."""
    vm_id = vm.uuid

    def found() -> list[VmReport]:
        shown = [shown for report in scene.reports() for shown in report.vms if shown.vm_id == vm_id]
        return [s for s in shown if all(getattr(s, name) == value for name, value in wanted.items())]

    return eventually(found, timeout_s=10, what=f"a report on {vm.name} with {wanted}")[-1]


def journal_of(scene: HostScene) -> SqliteJournal:
    return SqliteJournal(places.journal_file(scene.state_dir), boot_id="b", clock=FakeClock())


def frozen_records(scene: HostScene) -> int:
    journal = journal_of(scene)
    try:
        return len(journal.frozen_records())
    finally:
        journal.close()


def is_frozen(vm: BedVm) -> bool:
    return vm.freeze_status() == "frozen"


# ---- commands -------------------------------------------------------------------------------------------------------


def test_a_quiesced_pivot_over_the_queue(scene: HostScene, web: BedVm) -> None:
    switches, attempt, job = scene.switches(web), next(ATTEMPTS), a_job()
    new = {disk.target: str(scene.kit.file(disk.new)) for disk in switches}
    step = scene.send(scene.pivot(web, switches), job=job, attempt=attempt)
    answer = scene.answer(step)
    assert isinstance(answer, LeavesObserved)
    assert answer.outcome is Outcome.ALL_NEW, answer
    assert web.sources() == web.sources(persistent=True) == new
    assert answer.receipt is not None
    assert label(answer.receipt) == (Consistency.FILESYSTEM, "")
    assert answer.receipt.frozen_filesystems == answer.receipt.thawed_filesystems == 2
    web.wait_acks()
    assert web.write_errors() == []
    assert not is_frozen(web)
    assert frozen_records(scene) == 0

    # The same attempt again, as the outbox re-sends it: the same answer, and no second switch.
    again = scene.ask(scene.pivot(web, switches), job=job, attempt=attempt)
    assert again == answer
    assert web.sources() == new

    # A probe fences what is older, and still knows the receipt.
    probe_attempt = next(ATTEMPTS)
    probed = scene.ask(Probe(vm_id=VmId(web.uuid), disks=switches), job=job, attempt=probe_attempt)
    assert (probed.outcome, probed.receipt) == (Outcome.ALL_NEW, answer.receipt)
    late = scene.answer(scene.send(scene.pivot(web, switches), job=job, attempt=attempt))
    assert isinstance(late, Refused)
    assert (late.why, late.highest) == (Refusal.STALE, probe_attempt)

    # The vm is reported on its new leaves at once, with the attempt that put it there.
    shown = await_vm(scene, web, attempt=probe_attempt, in_flight=False)
    assert {disk.target: disk.source for disk in shown.disks} == new


def test_without_libvirt_a_command_is_refused_untouched(scene: HostScene, web: BedVm) -> None:
    before, command = web.sources(), scene.pivot(web, scene.switches(web))
    scene.host.kill9()
    down = await_report(scene, "the loss of libvirt", libvirt_up=False)
    assert not down.full
    assert down.vms == ()
    assert down.problem
    attempt = next(ATTEMPTS)
    refused = scene.answer(scene.send(command, job=a_job(), attempt=attempt))
    assert isinstance(refused, Refused)
    assert refused.why is Refusal.NOT_READY
    scene.forget()
    scene.host.start()
    up = await_report(scene, "a full report after the reconnection", libvirt_up=True, full=True)
    assert [vm.name for vm in up.vms] == ["web"]
    assert web.sources() == before
    # Nothing was begun, so the very same attempt can be carried out now.
    done = scene.ask(command, job=a_job(), attempt=attempt)
    assert done.outcome is Outcome.ALL_NEW


def test_a_missing_mount_is_refused_untouched(scene: HostScene, web: BedVm) -> None:
    switches, before = scene.switches(web), web.sources()
    identity = scene.kit.root / "livesnap.json"
    hidden = identity.rename(identity.with_name("hidden.json"))
    try:
        refused = scene.answer(scene.send(scene.pivot(web, switches), job=a_job(), attempt=next(ATTEMPTS)))
        assert isinstance(refused, Refused)
        assert refused.why is Refusal.NOT_READY
        assert "storage" in refused.message
    finally:
        hidden.rename(identity)
    assert web.sources() == before


# ---- reports --------------------------------------------------------------------------------------------------------


def test_the_first_report_tells_everything(scene: HostScene, web: BedVm) -> None:
    old = scene.agent.said().count("reported")
    scene.agent.restart()
    first = await_report(scene, "a full report", full=True)
    assert (first.host_id, first.libvirt_up, first.sequence, first.gone, first.frozen) == (HOST, True, 1, (), ())
    (mount,) = first.storage_domains
    assert (mount.storage_domain_id, mount.name, mount.problem) == (scene.kit.id, "main", "")
    assert mount.total_bytes > mount.free_bytes > 0
    (vm,) = first.vms
    assert (vm.name, vm.state, vm.agent, vm.persistent) == ("web", VmState.RUNNING, AgentState.CONNECTED, True)
    assert (vm.migrating, vm.managed_save, vm.libvirt_snapshots) == (False, False, 0)
    assert vm.runtime_id.startswith(f"{web.qemu_pid}.")
    for disk in vm.disks:
        assert disk.source == disk.persistent_source == web.sources()[disk.target]
        assert disk.storage_domain_id == scene.kit.id
        assert str(scene.kit.root / disk.path) == disk.source
    assert scene.agent.said().count("reported") > old


def test_the_host_holds_its_own_lock_while_an_agent_lives(scene: HostScene) -> None:
    def is_held() -> bool:
        with scene.host_lock.open("rb") as file:
            return locks.is_held(file.fileno(), locks.WHOLE)

    assert is_held()
    second = scene.second_agent()
    with second:
        scene.agent.kill9()
        assert is_held()
    eventually(lambda: not is_held(), timeout_s=5, what="the lock to go with the last agent")


def test_what_happens_to_a_vm_is_reported_at_once(scene: HostScene, web: BedVm) -> None:
    web.pause()
    await_vm(scene, web, state=VmState.PAUSED)
    scene.forget()
    web.resume()
    await_vm(scene, web, state=VmState.RUNNING)
    extra = replace(web.spec, name="extra", disks=(), uuid=new_id())
    scene.forget()
    vm = define_vm(scene.host, extra)
    shown = await_vm(scene, vm, state=VmState.OFF)
    assert shown.runtime_id == ""
    vm_id = VmId(vm.uuid)
    vm.undefine()
    gone = await_report(scene, "the end of the definition", gone=(vm_id,))
    assert not gone.full


# ---- freezes that nobody owns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", sampled(*FREEZING, suite=("host.pivot.frozen",)))
def test_an_agent_killed_while_frozen(scene: HostScene, web: BedVm, point: str) -> None:
    switches, before = scene.switches(web), web.sources()
    attempt, job = next(ATTEMPTS), a_job()
    armed, hit = crash_at(point, scene.state_dir / new_id())
    scene.agent.stop()
    scene.agent.start(**armed)
    scene.send(scene.pivot(web, switches), job=job, attempt=attempt)
    eventually(lambda: not scene.agent.alive, timeout_s=15, what="the crash")
    assert hit.exists()
    web.wait_acks(timeout_s=10)
    assert not is_frozen(web), "the guard has not thawed"
    scene.agent.start()
    eventually(lambda: frozen_records(scene) == 0, timeout_s=10, what="the sweep to clear the intent")
    probed = scene.ask(Probe(vm_id=VmId(web.uuid), disks=switches), job=job, attempt=next(ATTEMPTS))
    assert probed.outcome is Outcome.NONE
    assert web.sources() == web.sources(persistent=True) == before


def test_a_freeze_whose_agent_and_guard_are_dead(scene: HostScene, web: BedVm) -> None:
    run = await_vm_runtime(scene, web)
    scene.agent.kill9()
    scene.guard.kill9()
    journal = journal_of(scene)
    journal.maybe_frozen(VmId(web.uuid), "h1/1.2/abc", run)
    mark(web, "h1/1.2/abc")
    web.freeze()
    scene.agent.start()
    eventually(lambda: not journal.frozen_records(), timeout_s=10, what="the sweep at start")
    journal.close()
    assert not is_frozen(web)
    assert vm_xml.frozen_mark(web.xml()) == ""


def test_a_living_siblings_freeze_is_not_swept(scene: HostScene, web: BedVm) -> None:
    vm_id = VmId(web.uuid)
    journal, vm_locks = journal_of(scene), VmLockFiles(places.vm_locks_dir(scene.state_dir))
    run = await_vm_runtime(scene, web)
    scene.forget()
    with vm_locks(vm_id) as held:
        assert held
        journal.maybe_frozen(vm_id, "h1/1.2/abc", run)
        web.freeze()
        with scene.second_agent():
            report = await_report(scene, "the second agent's report", full=True)
            assert report.frozen == (vm_id,)
            assert report.vms[0].in_flight
            scene.host.kill9()
            scene.host.start()
            web.wait_agent()
            assert is_frozen(web)
            assert journal.frozen_records()
    scene.agent.restart()
    eventually(lambda: not journal.frozen_records(), timeout_s=10, what="the sweep of the orphan")
    journal.close()
    assert not is_frozen(web)


def await_vm_runtime(scene: HostScene, vm: BedVm) -> str:
    vm.pause()
    vm.resume()
    return await_vm(scene, vm, state=VmState.RUNNING).runtime_id


def test_somebody_elses_freeze_is_not_swept(scene: HostScene, web: BedVm) -> None:
    web.freeze()
    scene.agent.restart()
    await_report(scene, "a full report", full=True)
    await_vm_runtime(scene, web)
    assert is_frozen(web)


@pytest.mark.matrix
def test_a_guest_that_arrives_frozen_by_us_is_thawed(scene: HostScene) -> None:
    with IsolatedHost("b", scene.host.dir.parent) as other:
        there = scene.boot("wanderer", load="idle").migrate_to(other)
        there.wait_agent()
        mark(there, "h2/1.2/abc")
        there.freeze()
        here = there.migrate_to(scene.host)
        eventually(lambda: "abc" not in here.xml(), timeout_s=15, what="the mark to be cleared")
        assert not is_frozen(here)
        here.destroy()
        here.undefine()


def mark(vm: BedVm, token: str) -> None:
    """Leave the mark that an agent of the other host would have left."""
    with vm.libvirt() as handle:
        handle.setMetadata(2, vm_xml.frozen_element(token), "livesnap", vm_xml.METADATA_NAMESPACE, 1)


def test_sigterm_lets_the_command_finish(scene: HostScene, web: BedVm) -> None:
    switches = scene.switches(web)
    step = scene.send(scene.pivot(web, switches), job=a_job(), attempt=next(ATTEMPTS))
    eventually(lambda: frozen_records(scene), timeout_s=15, interval_s=0.001, what="the freeze")
    scene.agent.stop()
    answer = scene.answer(step)
    assert isinstance(answer, LeavesObserved)
    assert answer.outcome is Outcome.ALL_NEW
    assert not is_frozen(web)
