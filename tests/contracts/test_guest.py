"""The contract of `Guest` (hostagent/ports.py): the same tests on a real vm and on both fakes, quick and slow."""

from collections.abc import Iterator
from functools import partial

import pytest

from common.errors import GuestAgentMissing, HypervisorError, NotReady
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.ports import BlockNode
from tests.bench.simulated.guest import SimulatedGuest
from tests.contracts.guest_benches import TARGETS, Bench, FakeBench, RealBench, real_bench
from tests.wait import eventually

LIMIT_MS = 10_000

pytestmark = pytest.mark.xdist_group("guest-contract")


@pytest.fixture(scope="module")
def real() -> Iterator[RealBench]:
    with real_bench() as bench:
        yield bench


@pytest.fixture(
    params=["fake", "simulated", pytest.param("real", marks=pytest.mark.needs("libvirtd", "qemu-img", "libvirt"))]
)
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "fake":
        return FakeBench()
    if request.param == "simulated":
        return FakeBench(SimulatedGuest)
    found: RealBench = request.getfixturevalue("real")
    found.reset()
    return found


def live(bench: Bench) -> dict[str, str]:
    return vm_xml.sources(bench.guest.live_xml())


def persistent(bench: Bench) -> dict[str, str]:
    return vm_xml.sources(bench.guest.persistent_xml())


def new_leaves(bench: Bench) -> dict[str, str]:
    return {target: bench.new_leaf(target) for target in TARGETS}


def request_for(bench: Bench, leaves: dict[str, str]) -> str:
    return vm_xml.snapshot_xml(leaves, vm_xml.targets(bench.guest.live_xml()))


def formats(nodes: tuple[BlockNode, ...]) -> dict[tuple[str, int], str]:
    """Return what each place of a chain holds."""
    return {(node.device, node.depth): node.path for node in nodes if node.device}


# ---- what it is -----------------------------------------------------------------------------------------------------


def test_a_running_vm(bench: Bench) -> None:
    guest = bench.guest
    assert guest.exists()
    assert guest.state() is VmState.RUNNING
    assert not guest.has_managed_save()
    assert guest.libvirt_snapshot_count() == 0
    assert guest.job_running() == ""
    assert not guest.has_moved_away()
    assert guest.block_job_targets() == ()
    assert guest.frozen_mark() == ""
    assert live(bench) == persistent(bench)
    assert set(live(bench)) == set(TARGETS)
    assert vm_xml.is_active(guest.live_xml())


def test_a_run_has_one_id(bench: Bench) -> None:
    first = bench.guest.runtime_id()
    assert first
    assert bench.guest.is_still(first)
    bench.pause()
    assert bench.guest.runtime_id() == first
    bench.guest.resume()
    bench.power_off()
    assert bench.guest.runtime_id() == ""
    assert bench.guest.is_still("")
    bench.start()
    assert not bench.guest.is_still(first)
    assert not bench.guest.is_still("")
    assert bench.guest.runtime_id() not in ("", first)


def test_a_paused_vm(bench: Bench) -> None:
    bench.pause()
    assert bench.guest.state() is VmState.PAUSED
    for act in (bench.guest.freeze, bench.guest.thaw):
        with pytest.raises(HypervisorError) as caught:
            act(LIMIT_MS)
        assert caught.value.code == "vm_state_changed"
    leaves = new_leaves(bench)
    bench.guest.switch_leaves(request_for(bench, leaves))
    assert live(bench) == leaves
    bench.guest.resume()
    assert bench.guest.state() is VmState.RUNNING


def test_a_vm_that_its_guest_has_suspended(bench: Bench) -> None:
    bench.suspend_by_guest()
    before, leaves = live(bench), new_leaves(bench)
    assert bench.guest.state() is VmState.PMSUSPENDED
    with pytest.raises(HypervisorError, match="PMSUSPENDED"):
        bench.guest.switch_leaves(request_for(bench, leaves))
    assert live(bench) == before
    bench.wake_up()
    assert bench.guest.state() is VmState.RUNNING


def test_a_stopped_vm(bench: Bench) -> None:
    bench.power_off()
    guest = bench.guest
    assert guest.exists()
    assert guest.state() is VmState.OFF
    assert guest.live_xml() == ""
    assert guest.frozen_mark() == ""
    guest.touch_modify_job()
    for act in (guest.freeze, guest.thaw, guest.require_agent):
        with pytest.raises(HypervisorError):
            act(LIMIT_MS)
    leaves = new_leaves(bench)
    guest.define(vm_xml.with_sources(guest.persistent_xml(), {t: (leaf, "qcow2") for t, leaf in leaves.items()}))
    assert persistent(bench) == leaves
    below = vm_xml.chains(guest.persistent_xml())
    bench.start()
    assert live(bench) == leaves
    assert [len(vm_xml.chains(guest.live_xml())[target]) for target in TARGETS] > [len(below[t]) for t in TARGETS]


def test_a_migrating_vm(bench: Bench) -> None:
    """What waits for libvirt's lock is not even tried; the agent's calls go through, and definitions too."""
    guest, leaf = bench.guest, bench.new_leaf("vda")
    before, text = persistent(bench), bench.guest.persistent_xml()
    with bench.migrating():
        assert guest.state() is VmState.RUNNING
        assert guest.job_running() == "migration"
        frozen = guest.freeze(LIMIT_MS)
        for act in (partial(guest.mark_frozen, "token"), guest.clear_frozen_mark, guest.touch_modify_job):
            with pytest.raises(HypervisorError) as caught:
                act()
            assert caught.value.code == "vm_migrating"
        assert guest.thaw(LIMIT_MS) == frozen
        guest.define(vm_xml.with_sources(text, {"vda": (leaf, "qcow2")}))
        assert persistent(bench) == {**before, "vda": leaf}
        guest.define(text)
        assert not guest.has_moved_away()
    assert guest.job_running() == ""
    assert (guest.frozen_mark(), persistent(bench)) == ("", before)


def test_a_vm_that_has_moved_away(bench: Bench) -> None:
    first = bench.guest.runtime_id()
    bench.move_away()
    assert bench.guest.state() is VmState.OFF
    assert bench.guest.has_moved_away()
    assert not bench.guest.is_still(first)
    bench.start()
    assert not bench.guest.has_moved_away()


def test_an_unknown_vm(bench: Bench) -> None:
    guest = bench.unknown_guest()
    assert not guest.exists()
    for ask in (guest.state, guest.live_xml, guest.persistent_xml, guest.runtime_id, guest.touch_modify_job):
        with pytest.raises(HypervisorError) as caught:
            ask()
        assert caught.value.code == "vm_not_found"


def test_libvirtd_dies_and_comes_back(bench: Bench) -> None:
    run = bench.guest.runtime_id()
    bench.kill_libvirtd()
    for ask in (bench.guest.exists, bench.guest.state, bench.guest.live_xml, bench.guest.layers):
        with pytest.raises(NotReady) as caught:
            ask()
        assert caught.value.code == "libvirt_unavailable"
    bench.start_libvirtd()
    assert bench.guest.state() is VmState.RUNNING
    assert bench.guest.runtime_id() == run
    # libvirtd finds the agent again only after a while, and the agent is not missing meanwhile.
    bench.guest.require_agent(LIMIT_MS)


def test_define_changes_the_persistent_definition_only(bench: Bench) -> None:
    before, text = live(bench), bench.guest.persistent_xml()
    leaf = bench.new_leaf("vda")
    bench.guest.define(vm_xml.with_sources(text, {"vda": (leaf, "qcow2")}))
    assert persistent(bench) == {**before, "vda": leaf}
    assert live(bench) == before
    bench.guest.define(vm_xml.with_sources(text, {"vda": (before["vda"], "qcow2")}))
    assert persistent(bench) == before


def test_a_definition_that_is_none_is_refused(bench: Bench) -> None:
    before = bench.guest.persistent_xml()
    with pytest.raises(HypervisorError):
        bench.guest.define("<domain")
    assert bench.guest.persistent_xml() == before


# ---- the agent ------------------------------------------------------------------------------------------------------


def test_freeze_and_thaw_count_the_same(bench: Bench) -> None:
    bench.guest.require_agent(LIMIT_MS)
    bench.guest.limit_agent(LIMIT_MS)
    frozen = bench.guest.freeze(LIMIT_MS)
    bench.guest.limit_agent(LIMIT_MS)
    assert bench.guest.thaw(LIMIT_MS) == frozen >= 1
    assert bench.guest.thaw(LIMIT_MS) == 0


def test_a_frozen_guest_says_so(bench: Bench) -> None:
    bench.guest.freeze(LIMIT_MS)
    for act in (bench.guest.require_agent, bench.guest.freeze):
        with pytest.raises(HypervisorError) as caught:
            act(LIMIT_MS)
        assert caught.value.code == "guest_frozen_by_others"
    assert bench.guest.thaw(LIMIT_MS) >= 1


@pytest.mark.parametrize("agent", ["absent", "block"])
def test_without_a_compatible_agent(bench: Bench, agent: str) -> None:
    guest = bench.other_guest(agent)
    with pytest.raises(GuestAgentMissing):
        guest.require_agent(LIMIT_MS)


def test_a_failing_hook_freezes_nothing(bench: Bench) -> None:
    guest = bench.other_guest("hookfail")
    guest.require_agent(LIMIT_MS)
    with pytest.raises(HypervisorError) as caught:
        guest.freeze(LIMIT_MS)
    assert caught.value.code == "freeze_failed"
    assert guest.thaw(LIMIT_MS) == 0


def test_the_mark_stands_in_the_live_metadata(bench: Bench) -> None:
    for token in ("h1/1.2/abc", "a second one <&'\">"):
        bench.guest.mark_frozen(token)
        assert bench.guest.frozen_mark() == token
        assert vm_xml.frozen_mark(bench.guest.live_xml()) == token
    bench.guest.clear_frozen_mark()
    bench.guest.clear_frozen_mark()
    assert bench.guest.frozen_mark() == ""


def test_a_frozen_guest_can_be_marked_and_switched(bench: Bench) -> None:
    leaves = new_leaves(bench)
    frozen = bench.guest.freeze(LIMIT_MS)
    bench.guest.mark_frozen("token")
    bench.guest.switch_leaves(request_for(bench, leaves))
    assert bench.guest.frozen_mark() == "token"
    assert bench.guest.thaw(LIMIT_MS) == frozen
    bench.guest.clear_frozen_mark()
    assert live(bench) == leaves


def test_the_barrier_changes_nothing(bench: Bench) -> None:
    before = bench.guest.live_xml(), bench.guest.persistent_xml()
    bench.guest.touch_modify_job()
    assert (bench.guest.live_xml(), bench.guest.persistent_xml()) == before


# ---- disks ----------------------------------------------------------------------------------------------------------


def test_a_switch_moves_all_disks_and_both_definitions(bench: Bench) -> None:
    old, leaves = live(bench), new_leaves(bench)
    bench.guest.switch_leaves(request_for(bench, leaves))
    assert live(bench) == persistent(bench) == leaves
    chains, layers = vm_xml.chains(bench.guest.live_xml()), bench.guest.layers()
    nodes = formats(bench.guest.qemu_nodes())
    for target in TARGETS:
        assert chains[target][:2] == (leaves[target], old[target])
        assert tuple(layer.path for layer in layers[target])[:2] == (leaves[target], old[target])
        assert nodes[target, 0] == leaves[target]
        assert nodes[target, 1] == old[target]


def test_a_switch_after_the_definition(bench: Bench) -> None:
    leaves = new_leaves(bench)
    wanted = {target: (leaf, "qcow2") for target, leaf in leaves.items()}
    bench.guest.define(vm_xml.with_sources(bench.guest.persistent_xml(), wanted))
    bench.guest.switch_leaves(request_for(bench, leaves))
    assert live(bench) == persistent(bench) == leaves


def test_only_the_named_disks_move(bench: Bench) -> None:
    old, leaf = live(bench), bench.new_leaf("vdb")
    bench.guest.switch_leaves(request_for(bench, {"vdb": leaf}))
    assert live(bench) == {**old, "vdb": leaf}


def test_a_missing_leaf_moves_nothing(bench: Bench) -> None:
    old, leaf = live(bench), bench.new_leaf("vda")
    with pytest.raises(HypervisorError):
        bench.guest.switch_leaves(request_for(bench, {"vda": leaf, "vdb": f"{leaf}.missing"}))
    assert live(bench) == persistent(bench) == old
    assert {bench.guest.layers()[target][0].path for target in TARGETS} == set(old.values())


def test_active_commit_brings_a_disk_back(bench: Bench) -> None:
    old, leaves = live(bench), new_leaves(bench)
    bench.guest.switch_leaves(request_for(bench, leaves))
    for target in TARGETS:
        bench.guest.commit_active(target, old[target], LIMIT_MS)
    assert live(bench) == persistent(bench) == old
    assert bench.guest.block_job_targets() == ()
    assert not set(leaves.values()) & {node.path for node in bench.guest.qemu_nodes()}


def test_active_commit_while_paused(bench: Bench) -> None:
    old, leaf = live(bench), bench.new_leaf("vda")
    bench.guest.switch_leaves(request_for(bench, {"vda": leaf}))
    bench.pause()
    bench.guest.commit_active("vda", old["vda"], LIMIT_MS)
    assert live(bench) == old
    bench.guest.resume()


@pytest.mark.needs("fuse")
def test_a_write_that_fails_pauses_the_vm_and_is_told_of(bench: Bench) -> None:
    guest, old, leaf = bench.guest, live(bench), bench.unwritable_leaf("vda")
    guest.freeze(LIMIT_MS)
    guest.switch_leaves(request_for(bench, {"vda": leaf}))
    assert guest.io_errors() == ()
    with pytest.raises(HypervisorError):
        guest.thaw(1000)
    eventually(lambda: guest.io_errors() == ("vda",), timeout_s=5, what="the word that vda has failed")
    assert guest.state() is VmState.PAUSED_IO_ERROR
    guest.commit_active("vda", old["vda"], LIMIT_MS)
    guest.resume()
    assert guest.state() is VmState.RUNNING
    guest.thaw(LIMIT_MS)
    guest.switch_leaves(request_for(bench, new_leaves(bench)))
    assert guest.io_errors() == (), "what was told before the last switch is over"


def test_active_commit_to_a_stranger_is_refused(bench: Bench) -> None:
    old, leaf = live(bench), bench.new_leaf("vda")
    with pytest.raises(HypervisorError):
        bench.guest.commit_active("vda", leaf, LIMIT_MS)
    assert live(bench) == old
    assert bench.guest.block_job_targets() == ()


def test_a_block_job_is_seen_and_carried_on_with(bench: Bench) -> None:
    old, leaf = live(bench), bench.new_leaf("vda")
    bench.guest.switch_leaves(request_for(bench, {"vda": leaf}))
    bench.start_block_job("vda")
    assert bench.guest.block_job_targets() == ("vda",)
    bench.guest.commit_active("vda", old["vda"], LIMIT_MS)
    assert bench.guest.block_job_targets() == ()
    assert live(bench) == old


def test_a_node_in_use_cannot_be_dropped(bench: Bench) -> None:
    node = next(node for node in bench.guest.qemu_nodes() if node.device and node.depth == 0)
    with pytest.raises(HypervisorError):
        bench.guest.drop_node(node.node_name)
    assert node in bench.guest.qemu_nodes()


def test_a_leaked_node_is_seen_and_dropped(bench: Bench) -> None:
    leaf = bench.new_leaf("vda")
    bench.leak(leaf)
    leaked = [node for node in bench.guest.qemu_nodes() if node.path == leaf]
    assert leaked
    assert {node.device for node in leaked} == {""}
    top = next(node for node in leaked if not node.node_name.startswith("#"))
    bench.guest.drop_node(top.node_name)
    assert leaf not in {node.path for node in bench.guest.qemu_nodes()}


def test_a_switch_that_libvirt_does_not_know_of(bench: Bench) -> None:
    """The state that a libvirtd leaves behind which was killed after the switch (hypervisor.md, H1)."""
    old, leaf = live(bench), bench.new_leaf("vda")
    deeper = vm_xml.chains(bench.guest.live_xml())["vda"]
    bench.switch_behind_libvirt("vda", leaf)
    assert live(bench) == old
    nodes = bench.guest.qemu_nodes()
    assert formats(nodes)["vda", 0] == leaf
    assert formats(nodes)["vda", 1] == old["vda"]
    top = next(n for n in nodes if n.path == leaf and not n.node_name.startswith("#"))
    bench.guest.commit_by_qemu(top.node_name, LIMIT_MS)
    after = formats(bench.guest.qemu_nodes())
    assert [after["vda", depth] for depth in range(len(deeper))] == list(deeper)
    assert leaf not in after.values()
    assert live(bench) == old
