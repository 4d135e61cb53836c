"""A stopped vm is put onto another branch, and back: each row of what can happen, and kill -9 after every effect."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.errors import MessageRejected, NotReady, StaleAttempt
from common.messaging.messages import DiskSwitch, LeavesObserved, Outcome, Redefine
from common.messaging.reports import VmState
from hostagent.operations.redefine import redefine
from tests.fakes.storage import ROOT, FakeFile
from tests.fakes.vm import sources_of
from tests.unit.hostagent.operations.world import EFFECTS, Crash, Process, World


class BranchWorld(World):
    """A stopped vm whose disks are to leave their branch: onto new leaves above its base, or back from there."""

    def __init__(self, *, back: bool = False) -> None:
        super().__init__()
        self.back = back
        away = tuple(self._away(switch) for switch in self.switches)
        if back:
            for switch in away:
                self.storage.files[f"{ROOT}/{switch.new.path}"].has_data = True
        self.switches = tuple(map(self._reversed, away)) if back else away
        self.vm.power_off()
        if back:
            self._define({switch.target: f"{ROOT}/{switch.old.path}" for switch in self.switches})

    def _away(self, switch: DiskSwitch) -> DiskSwitch:
        base = self._volume(f"images/{switch.target}/base.qcow2")
        trial = self._volume(f"images/{switch.target}/trial.qcow2")
        self.storage.files[f"{ROOT}/{trial.path}"] = FakeFile(parent=f"{ROOT}/{base.path}")
        return replace(switch, new=trial, over=base)

    def _reversed(self, switch: DiskSwitch) -> DiskSwitch:
        return replace(switch, old=switch.new, new=switch.old, kept=True)

    def _define(self, leaves: dict[str, str]) -> None:
        for target, path in leaves.items():
            self.vm.disks[target].chain = [path, self.storage.files[path].parent]
            self.vm.disks[target].live = list(self.vm.disks[target].chain)
        self.vm.persistent = self.vm._xml(live=False)

    def redefine(self, process: Process | None = None, *, attempt: int | None = None) -> LeavesObserved:
        command = Redefine(vm_id=self.vm_id, disks=self.switches)
        return redefine(self.envelope(command, attempt), command, self.deps(process or Process()))  # type: ignore[arg-type]

    def defined(self) -> set[str]:
        return set(sources_of(self.vm.persistent).values())

    def check(self, seen: LeavesObserved) -> None:
        """Hold an answer against what is so: a boot from the definition shows all of one branch, never a mixture."""
        self.vm.end_call()
        assert self.defined() in (self.olds, self.news)
        match seen.outcome:
            case Outcome.ALL_NEW:
                assert self.defined() == self.news
                assert not self.vm.is_active or set(self.vm.tops().values()) == self.news
            case Outcome.NONE:
                assert self.defined() == self.olds
                assert not self.news & self.vm.open_paths()
            case _:
                assert seen.code
                assert seen.message


@pytest.fixture(params=[False, True], ids=["away", "back"])
def world(request: pytest.FixtureRequest) -> BranchWorld:
    return BranchWorld(back=request.param)


# ---- it works ---------------------------------------------------------------------------------------------------


def test_every_disk_moves_and_the_old_chain_is_forgotten(world: BranchWorld) -> None:
    process = Process()
    seen = world.redefine(process)
    world.check(seen)
    assert (seen.outcome, seen.code, seen.receipt) == (Outcome.ALL_NEW, "", None)
    assert process.effects == ["begin", "call_issued", "define", "done"]
    assert "backingStore" not in world.vm.persistent
    world.vm.boot()
    assert world.vm.disks["vda"].chain == [world.new(), f"{ROOT}/images/vda/base.qcow2"]


def test_once_there_a_probe_says_so_while_it_runs_too(world: BranchWorld) -> None:
    world.redefine()
    world.vm.boot()
    seen = world.probe()
    world.check(seen)
    assert (seen.outcome, world.vm.taints) == (Outcome.ALL_NEW, 0)


def test_a_repeated_command_is_answered_and_not_carried_out(world: BranchWorld) -> None:
    first = world.redefine()
    process = Process()
    assert world.redefine(process, attempt=world.attempt) == first
    assert process.effects == ["begin"]
    world.probe()
    with pytest.raises(StaleAttempt):
        world.redefine(attempt=1)


# ---- it is refused, with nothing touched ------------------------------------------------------------------------


def _file(world: BranchWorld, **changes: object) -> None:
    for name, value in changes.items():
        setattr(world.storage.files[world.new(1)], name, value)


def _on_another(world: BranchWorld) -> None:
    other = f"{ROOT}/images/vdb/other.qcow2"
    world.storage.files[other] = FakeFile(parent=f"{ROOT}/images/vdb/base.qcow2")
    world._define({"vdb": other})


REFUSALS: dict[str, tuple[Callable[[BranchWorld], object], str]] = {
    "running": (lambda world: world.vm.boot(), "vm_running"),
    "paused": (lambda world: setattr(world.vm, "state", VmState.PAUSED), "vm_running"),
    "being saved": (lambda world: setattr(world.vm, "state", VmState.SAVING), "vm_saving"),
    "saved": (lambda world: setattr(world.vm, "managed_save", True), "vm_managed_save"),
    "snapshots of libvirt's": (lambda world: setattr(world.vm, "snapshots", 1), "vm_has_libvirt_snapshots"),
    "illegal": (lambda world: _file(world, is_legal=False), "volume_deleted"),
    "not to be opened": (lambda world: _file(world, qemu_may_open=False), "volume_permission"),
    "the old leaf in use": (lambda world: world.others_open.add(world.old(0)), "vm_busy"),
    "on another leaf": (lambda world: _on_another(world), "chain_unexpected"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_refused_with_nothing_touched(world: BranchWorld, why: str) -> None:
    meddle, code = REFUSALS[why]
    meddle(world)
    before, process = world.vm.persistent, Process()
    seen = world.redefine(process)
    assert seen.code == code, seen
    assert seen.outcome in (Outcome.NONE, Outcome.NOT_HERE)
    assert (world.vm.persistent, process.effects) == (before, ["begin", "done"])


def test_a_new_leaf_that_somebody_has_open_may_be_the_vms_own_elsewhere(world: BranchWorld) -> None:
    world.others_open.add(world.new(1))
    before = world.vm.persistent
    seen = world.redefine()
    assert (seen.outcome, world.vm.persistent) == (Outcome.NOT_HERE, before)
    assert "is in use by qemu-nbd (pid 4712)" in seen.message


def test_a_new_leaf_must_be_empty_and_a_kept_one_there() -> None:
    away = BranchWorld()
    away.storage.files[away.new(0)].has_data = True
    assert away.redefine().code == "volume_not_empty"
    back = BranchWorld(back=True)
    del back.storage.files[back.new(0)]
    assert back.redefine().code == "volume_not_found"


def test_migrated_away_it_is_not_here(world: BranchWorld) -> None:
    world.vm.moved_away = True
    before = world.vm.persistent
    seen = world.redefine()
    assert (seen.outcome, world.vm.persistent) == (Outcome.NOT_HERE, before)


def test_without_storage_it_is_not_begun(world: BranchWorld) -> None:
    world.storage.is_mounted = False
    process = Process()
    with pytest.raises(NotReady):
        world.redefine(process)
    assert process.effects == []


def test_nothing_is_ever_committed_or_pivoted_on_a_branch(world: BranchWorld) -> None:
    """Below the new leaf there is a snapshot, into which an active commit would write."""
    world.vm.boot()
    before = {path: file.writes for path, file in world.storage.files.items()}
    for act in (world.repair, world.pivot):
        with pytest.raises(MessageRejected, match="leaves its branch"):
            act()
    assert {path: file.writes for path, file in world.storage.files.items()} == before


# ---- started, saved, crashed at every moment --------------------------------------------------------------------


@pytest.mark.parametrize("after", range(1, 5))
def test_started_at_any_moment_it_runs_on_one_branch(world: BranchWorld, after: int) -> None:
    process = Process(meddle_after=after, meddle=world.vm.boot)
    seen = world.redefine(process)
    tops = set(world.vm.tops().values())
    assert tops in (world.olds, world.news)
    assert world.defined() == tops, "its next boot would be from another branch"
    if seen.outcome is Outcome.ALL_NEW:
        assert tops == world.news
    elif seen.outcome is Outcome.NONE:
        assert tops == world.olds


@pytest.mark.parametrize("boots", [False, True], ids=["off", "started after the crash"])
@pytest.mark.parametrize("after", range(1, 5))
def test_crash_after_every_effect(world: BranchWorld, after: int, boots: bool) -> None:
    process = Process(crash_after=after)
    with pytest.raises(Crash):
        world.redefine(process)
    assert len(process.effects) == after
    assert set(process.effects) <= EFFECTS
    if boots:
        world.vm.boot()
    world.clock.advance(31)
    before = world.vm.persistent
    repeated = Process()
    again = world.redefine(repeated, attempt=world.attempt)
    world.check(again)
    assert "define" not in repeated.effects
    assert world.vm.persistent == before
    seen = world.probe()
    world.check(seen)
    assert seen.outcome in (Outcome.ALL_NEW, Outcome.NONE)
    with pytest.raises(StaleAttempt):
        world.redefine(attempt=1)


def test_a_call_that_outlives_its_agent_is_waited_for(world: BranchWorld) -> None:
    """libvirtd goes on with it when its client dies: until it has ended, nothing is said to be so."""
    with pytest.raises(Crash):
        world.redefine(Process(crash_in="define"))
    seen = world.probe()
    assert seen.outcome in (Outcome.UNKNOWN, Outcome.ALL_NEW)
    world.check(seen)
    assert world.probe().outcome is Outcome.ALL_NEW
