"""Each row of what can happen to a pivot, against a hypervisor that behaves as the real one was seen to."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from common.errors import MessageRejected, NotReady, OutcomeUnknown, StaleAttempt, StorageError
from common.ids import StorageDomainId, new_id
from common.messaging.messages import Outcome
from common.messaging.reports import VmState
from common.receipt import Consistency, label
from hostagent.operations.pivot import pivot
from tests.fakes.storage import ROOT
from tests.fakes.vm import Agent, sources_of
from tests.unit.hostagent.operations.world import Process, World


@pytest.fixture
def world() -> World:
    return World()


# ---- it works ---------------------------------------------------------------------------------------------------


def test_running_and_quiesced(world: World) -> None:
    before = world.vm.xml(), world.vm.persistent
    seen = world.pivot()
    world.check(seen)
    assert (seen.outcome, seen.code) == (Outcome.ALL_NEW, "")
    assert world.vm.was_frozen_at_switch
    assert seen.receipt is not None
    assert (seen.receipt.frozen_filesystems, seen.receipt.thawed_filesystems) == (2, 2)
    assert label(seen.receipt) == (Consistency.FILESYSTEM, "")
    assert (seen.live_xml, seen.persistent_xml) == before
    assert [disk.first_write_bytes for disk in seen.disks] == [393216, 393216]
    assert (world.vm.taints, world.vm.mark, world.journal.frozen_records()) == (0, "", ())
    assert world.guard.armed == {}


def test_order_of_durable_writes_and_effects(world: World) -> None:
    process = Process()
    world.pivot(process)
    before = ["begin", "call_issued", "define", "maybe_frozen", "mark_frozen", "arm"]
    window = ["freeze", "arm", "call_issued", "switch_leaves", "disarm", "thaw"]
    assert process.effects == [*before, *window, "clear_frozen_mark", "thawed", "done"]


def test_not_quiesced_freezes_nothing(world: World) -> None:
    process = Process()
    seen = world.pivot(process, quiesce=False)
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert not {"freeze", "thaw", "arm", "maybe_frozen"} & set(process.effects)
    assert label(seen.receipt) == (Consistency.CRASH, "not_quiesced")


def test_paused_is_not_frozen(world: World) -> None:
    world.vm.state = VmState.PAUSED
    seen = world.pivot()
    assert seen.outcome is Outcome.ALL_NEW
    assert not world.vm.was_frozen_at_switch
    assert label(seen.receipt) == (Consistency.CRASH, "paused")


def test_stopped_is_redefined(world: World) -> None:
    world.vm.power_off()
    before = world.vm.persistent
    seen = world.pivot()
    world.check(seen)
    assert seen.outcome is Outcome.ALL_NEW
    assert "backingStore" not in world.vm.persistent
    assert label(seen.receipt) == (Consistency.CRASH, "shutdown_unknown")
    assert seen.persistent_xml == before
    world.vm.boot()
    assert world.vm.disks["vda"].chain == [world.new(), world.old(), f"{ROOT}/images/vda/base.qcow2"]


def test_transient_vm_has_no_definition_to_move(world: World) -> None:
    world.vm.persistent = ""
    process = Process()
    seen = world.pivot(process)
    assert seen.outcome is Outcome.ALL_NEW
    assert "define" not in process.effects


def test_disk_that_is_not_asked_for_stays() -> None:
    world = World(targets=("vda",))
    world.vm.add_disk("sda", f"{ROOT}/cd.iso", device="cdrom", format="raw")
    world.vm.add_disk("vdz", f"{ROOT}/data.qcow2")
    assert world.pivot().outcome is Outcome.ALL_NEW
    assert world.vm.tops() == {"vda": world.new(), "sda": f"{ROOT}/cd.iso", "vdz": f"{ROOT}/data.qcow2"}


def test_disk_plugged_into_the_running_vm_only(world: World) -> None:
    vdb = world.vm.disks.pop("vdb")
    world.vm.add_disk("vda", *world.vm.disks["vda"].chain)
    world.vm.disks["vdb"] = vdb
    assert set(sources_of(world.vm.persistent)) == {"vda"}
    seen = world.pivot()
    assert seen.outcome is Outcome.ALL_NEW
    assert [disk.persistent for disk in seen.disks] == [world.new(), ""]


def test_xfs_makes_no_first_write_and_is_a_success_all_the_same(world: World) -> None:
    for disk in world.vm.disks.values():
        disk.first_write = 0
    begun = world.clock.boottime_ms()
    seen = world.pivot()
    assert (seen.outcome, [disk.first_write_bytes for disk in seen.disks]) == (Outcome.ALL_NEW, [0, 0])
    assert 300 <= world.clock.boottime_ms() - begun < 400


def test_first_writes_are_seen_twice_and_5_ms_apart(world: World) -> None:
    """The second look is the one that a pause of a failed write is heard before."""
    looks: list[int] = []
    world.during("layers", lambda: looks.append(world.clock.boottime_ms()))
    assert world.pivot().outcome is Outcome.ALL_NEW
    assert [later - looks[0] for later in looks] == [0, 5]


def test_a_first_look_that_fails_is_made_again(world: World) -> None:
    def without_answer() -> None:
        if not looks:
            looks.append(1)
            raise OutcomeUnknown("pivot_unknown", "QEMU did not answer")

    looks: list[int] = []
    world.during("layers", without_answer)
    seen = world.pivot()
    assert (seen.outcome, [disk.first_write_bytes for disk in seen.disks]) == (Outcome.ALL_NEW, [393216, 393216])


def test_a_write_whose_trace_is_there_at_the_thaw_may_have_failed_all_the_same(world: World) -> None:
    looks = []

    def paused_after_the_second() -> None:
        looks.append(1)
        if len(looks) == 2:
            world.vm.state = VmState.PAUSED_IO_ERROR

    world.during("layers", paused_after_the_second)
    seen = world.pivot()
    world.check(seen)
    assert seen.outcome is Outcome.NONE_ROLLED_BACK


# ---- it is refused before anything is touched -----------------------------------------------------------------------


def refuse_disk(world: World, **options: object) -> None:
    for name, value in options.items():
        setattr(world.vm.disks["vdb"], name, value)


REFUSALS: dict[str, Callable[[World], object]] = {
    "vm_paused_io_error": lambda w: setattr(w.vm, "state", VmState.PAUSED_IO_ERROR),
    "vm_migrating": lambda w: setattr(w.vm, "job", "migration"),
    "vm_busy": lambda w: setattr(w.vm, "job", "snapshot"),
    "vm_saving": lambda w: setattr(w.vm, "job", "save"),
    "vm_dumping": lambda w: setattr(w.vm, "job", "dump"),
    "vm_has_libvirt_snapshots": lambda w: setattr(w.vm, "snapshots", 2),
    "vm_pmsuspended": lambda w: setattr(w.vm, "state", VmState.PMSUSPENDED),
    "vm_crashed": lambda w: setattr(w.vm, "state", VmState.CRASHED),
    "vm_state_unsupported": lambda w: setattr(w.vm, "state", VmState.UNKNOWN),
    "disk_shareable": lambda w: refuse_disk(w, flags=("shareable",)),
    "disk_readonly": lambda w: refuse_disk(w, flags=("readonly",)),
    "disk_transient": lambda w: refuse_disk(w, flags=("transient",)),
    "disk_direct_lun": lambda w: refuse_disk(w, device="lun"),
    "disk_cdrom": lambda w: refuse_disk(w, device="cdrom"),
    "disk_unknown": lambda w: w.vm.disks.pop("vdb"),
    "chain_unexpected": lambda w: refuse_disk(w, live=[f"{ROOT}/other.qcow2", w.old(1)]),
    "disk_outside_storage_domain": lambda w: refuse_disk(w, live=["/elsewhere/vdb.qcow2"]),
    "volume_not_found": lambda w: w.storage.files.pop(w.new(1)),
    "volume_deleted": lambda w: setattr(w.storage.files[w.new(1)], "is_legal", False),
    "volume_permission": lambda w: setattr(w.storage.files[w.new(1)], "qemu_may_open", False),
    "guest_frozen_by_others": lambda w: setattr(w.vm, "agent", Agent.FROZEN_BY_OTHERS),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refused(world: World, code: str) -> None:
    REFUSALS[code](world)
    before, process = (world.vm.persistent, world.vm.tops()), Process()
    seen = world.pivot(process)
    assert (seen.outcome, seen.code) == (Outcome.NONE, code)
    assert (world.vm.persistent, world.vm.tops()) == before
    assert process.effects == ["begin", "done"]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (VmState.PAUSED_MIGRATION, "vm_migrating"),
        (VmState.SAVING, "vm_saving"),
        (VmState.DUMPING, "vm_dumping"),
    ],
)
def test_paused_by_a_job_of_libvirts(world: World, state: VmState, code: str) -> None:
    world.vm.state = state
    assert world.pivot().code == code


def test_snapshots_inside_an_old_leaf(world: World) -> None:
    world.storage.files[world.old(1)].snapshots = 2
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_has_libvirt_snapshots")
    assert f"{world.old(1)} holds 2 internal" in seen.message
    assert "qemu-img snapshot -d" in seen.hint


def test_a_stopped_vms_leaf_in_use_by_somebody(world: World) -> None:
    world.vm.power_off()
    world.others_open = {world.old(1)}
    before, process = world.vm.persistent, Process()
    seen = world.pivot(process)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_busy")
    assert f"{world.old(1)} is in use by qemu-nbd (pid 4712)" in seen.message
    assert (world.vm.persistent, process.effects) == (before, ["begin", "done"])


def test_a_new_volume_in_use_by_somebody(world: World) -> None:
    world.others_open = {world.new(1)}
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_busy")
    assert world.new(1) in seen.message
    assert not world.vm.was_frozen_at_switch


def test_a_backing_file_in_use_by_others_is_no_matter(world: World) -> None:
    world.vm.power_off()
    world.others_open = {f"{ROOT}/images/vda/base.qcow2"}
    assert world.pivot().outcome is Outcome.ALL_NEW


def test_block_job(world: World) -> None:
    world.vm.block_jobs = {"vdx"}
    assert (world.pivot().outcome, world.pivot().code) == (Outcome.NONE, "vm_busy")


def test_old_leaf_of_another_format(world: World) -> None:
    world.vm.disks["vda"].format = "raw"
    assert (seen := world.pivot()).code == "chain_unexpected"
    assert "format raw" in seen.message


def test_persistent_definition_elsewhere(world: World) -> None:
    world.vm.persistent = world.vm.persistent.replace(world.old(), f"{ROOT}/other.qcow2")
    assert (world.pivot().outcome, world.vm.tops()["vda"]) == (Outcome.NONE, world.old())


def test_volume_with_data_is_never_taken_for_a_new_one(world: World) -> None:
    world.storage.files[world.new()].has_data = True
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.NONE, "volume_not_empty")


@pytest.mark.parametrize("require", [False, True])
def test_no_agent_is_said_before_anything_is_touched(world: World, require: bool) -> None:
    world.vm.agent = Agent.MISSING
    process = Process()
    seen = world.pivot(process, require=require)
    assert (seen.outcome, seen.code) == (Outcome.NONE_NO_AGENT, "guest_agent_missing")
    assert process.effects == ["begin", "done"]
    world.check(world.pivot(quiesce=False))


@pytest.mark.parametrize("agent", [Agent.MISSING, Agent.FROZEN_BY_OTHERS])
def test_a_volume_that_will_not_do_is_told_before_the_agent(world: World, agent: Agent) -> None:
    """Without an agent the Manager asks again unquiesced, and would only then be told."""
    world.vm.agent = agent
    world.storage.files[world.new()].has_data = True
    assert world.pivot().code == "volume_not_empty"


def test_a_job_of_libvirts_is_told_before_a_volume_that_will_not_do(world: World) -> None:
    world.vm.job = "migration"
    world.storage.files[world.new()].has_data = True
    assert world.pivot().code == "vm_migrating"


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_quiescing_required_of_a_vm_that_does_not_run(world: World, state: VmState) -> None:
    world.vm.state = state
    seen = world.pivot(require=True)
    assert (seen.outcome, seen.code) == (Outcome.NONE, "vm_paused_not_quiesced")


def test_managed_save(world: World) -> None:
    world.vm.power_off()
    world.vm.managed_save = True
    assert (seen := world.pivot()).code == "vm_managed_save"
    assert seen.outcome is Outcome.NONE


def test_not_here(world: World) -> None:
    world.guest.is_known = False
    seen = world.pivot()
    assert (seen.outcome, seen.code) == (Outcome.NOT_HERE, "vm_not_found")


def test_starting_is_waited_for(world: World) -> None:
    world.vm.state = VmState.STARTING
    deps = world.deps(Process())
    moments = iter(range(1, 100))

    def pause(seconds: float) -> None:
        world.clock.advance(seconds)
        if next(moments) == 5:
            world.vm.state = VmState.RUNNING

    command = world.command()
    seen = pivot(world.envelope(command), command, replace(deps, pause=pause))
    assert seen.outcome is Outcome.ALL_NEW


def test_starting_for_ever(world: World) -> None:
    world.vm.state = VmState.STARTING
    begun = world.clock.now()
    assert world.pivot().code == "vm_state_unsupported"
    assert world.clock.now() - begun < timedelta(seconds=11)


# ---- it is not even begun -------------------------------------------------------------------------------------------


def test_stale_attempt(world: World) -> None:
    world.probe(attempt=7)
    with pytest.raises(StaleAttempt) as refused:
        world.pivot(attempt=6)
    assert refused.value.highest == 7
    assert set(world.vm.tops().values()) == world.olds


def test_libvirt_away(world: World) -> None:
    world.vm.libvirt_is_up = False
    with pytest.raises(NotReady):
        world.pivot()
    assert world.journal.current(world.vm_id) is None


def test_storage_away(world: World) -> None:
    world.storage.is_mounted = False
    with pytest.raises(NotReady, match="not mounted"):
        world.pivot()
    assert world.journal.current(world.vm_id) is None


def test_storage_domain_that_is_not_in_the_settings(world: World) -> None:
    world.storage._id = StorageDomainId(new_id())
    with pytest.raises(StorageError):
        world.pivot()


def test_vm_lock_held_by_another(world: World) -> None:
    world.locked = True
    begun = world.clock.now()
    with pytest.raises(NotReady, match="another command"):
        world.pivot()
    assert world.clock.now() - begun < timedelta(seconds=11)
    assert world.journal.current(world.vm_id) is None


def test_order_without_an_attempt(world: World) -> None:
    with pytest.raises(MessageRejected):
        world.pivot(attempt=0)


# ---- repeated -------------------------------------------------------------------------------------------------------


def test_repeated_attempt_is_replayed(world: World) -> None:
    first, process = world.pivot(), Process()
    again = world.pivot(process, attempt=1)
    assert again == first
    assert process.effects == ["begin"]
