"""The host's half of a dry run: it says what a pivot would, all of it at once, and touches nothing."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta

import pytest

from common.errors import NotReady
from common.ids import StorageDomainId, new_id
from common.messaging.messages import Outcome
from common.messaging.reports import VmState
from common.preflight import Level, Limits, PreflightLine
from tests.fakes.storage import ROOT, FakeFile
from tests.fakes.vm import Agent
from tests.unit.hostagent.operations.test_pivot import REFUSALS
from tests.unit.hostagent.operations.world import World

OF_THE_NEW_VOLUME = {"volume_not_found", "volume_deleted"}
"""What only a volume that was made already can be refused with."""


@pytest.fixture
def world() -> World:
    """One whose new volumes do not exist yet."""
    made = World()
    for path in made.news:
        del made.storage.files[path]
    return made


def seen(lines: Iterable[PreflightLine], level: Level) -> list[tuple[str, str]]:
    """Return subject and code of the lines of that level."""
    return [(line.subject, line.code) for line in lines if line.level is level]


def test_a_healthy_vm_is_fine_in_every_respect(world: World) -> None:
    lines = world.preflight().lines
    assert {line.level for line in lines} == {Level.OK}
    assert {line.subject for line in lines} == {world.vm_id, "vda", "vdb", world.storage_domain}
    assert all(line.message and not line.code and not line.hint for line in lines)
    assert [line.message for line in lines if line.subject == "vda"] == [
        "qcow2, virtio; a chain of 2 volume(s)",
        "opened read-write as user 107, group 107",
    ]


@pytest.mark.parametrize("code", sorted(REFUSALS.keys() - OF_THE_NEW_VOLUME))
def test_what_a_pivot_is_refused_with_is_said_beforehand(world: World, code: str) -> None:
    for path, parent in zip(sorted(world.news), sorted(world.olds), strict=True):
        world.storage.files[path] = FakeFile(parent=parent)
    REFUSALS[code](world)
    if code == "volume_permission":
        world.storage.files[world.old(1)].qemu_may_open = False  # the new one has owner and mode of this one
    refusals = [line for line in world.preflight().lines if line.level is Level.REFUSAL]
    assert [line.code for line in refusals] == [code]
    assert refusals[0].hint
    assert world.pivot().code == code


def test_everything_is_said_at_once(world: World) -> None:
    world.vm.snapshots, world.vm.job, world.vm.block_jobs = 1, "backup", {"vda"}
    world.vm.agent = Agent.MISSING
    world.vm.disks["vda"].error_policy = "report"
    world.vm.disks["vdb"].flags = ("shareable",)
    world.storage.room_bytes = 1
    lines = world.preflight(limits=Limits(min_free_bytes=2)).lines
    assert seen(lines, Level.REFUSAL) == [
        (world.vm_id, "vm_has_libvirt_snapshots"),
        (world.vm_id, "vm_busy"),
        (world.vm_id, "vm_busy"),
        ("vdb", "disk_shareable"),
        (world.storage_domain, "storage_full"),
    ]
    assert seen(lines, Level.WARNING) == [(world.vm_id, "guest_agent_missing"), ("vda", "disk_error_policy")]


def chained(world: World, depth: int) -> None:
    """Give vda a chain of that many volumes."""
    layers = [world.old(), *(f"{ROOT}/images/vda/{number}.qcow2" for number in range(depth - 1))]
    for path, parent in zip(layers, [*layers[1:], ""], strict=True):
        world.storage.files[path] = FakeFile(parent=parent, has_data=True)
    world.vm.disks["vda"].chain = list(layers)
    world.vm.disks["vda"].live = list(layers)


@pytest.mark.parametrize(
    ("depth", "level", "code"),
    [(19, None, ""), (20, Level.WARNING, "chain_deep"), (39, Level.WARNING, "chain_deep")]
    + [(depth, Level.REFUSAL, "chain_too_deep") for depth in (40, 60)],
)
def test_a_deep_chain(world: World, depth: int, level: Level | None, code: str) -> None:
    chained(world, depth)
    found = [line for line in world.preflight().lines if line.code]
    assert [(line.level, line.subject, line.code) for line in found] == ([(level, "vda", code)] if level else [])


def test_depth_is_held_against_the_limits_that_came_along(world: World) -> None:
    assert seen(world.preflight(limits=Limits(deep_chain=2)).lines, Level.WARNING) == [
        ("vda", "chain_deep"),
        ("vdb", "chain_deep"),
    ]


def reporting_policy(world: World) -> None:
    """Let vda report failing writes, in both definitions."""
    world.vm.disks["vda"].error_policy = "report"
    world.vm.persistent = world.vm.persistent.replace("error_policy='stop'", "error_policy='report'", 1)


WARNINGS: dict[str, Callable[[World], object]] = {
    "backup_bitmaps": lambda w: setattr(w.vm, "checkpoints", 2),
    "backup_bitmaps ": lambda w: setattr(w.storage.files[w.old()], "bitmaps", 1),
    "chain_deep": lambda w: chained(w, 25),
    "disk_error_policy": reporting_policy,
    "storage_low": lambda w: setattr(w.storage, "room_bytes", 1 << 20),
}


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED, VmState.OFF])
@pytest.mark.parametrize("code", WARNINGS)
def test_a_warning_is_in_the_check_and_in_the_receipt_of_the_job(code: str, state: VmState) -> None:
    world = World()
    WARNINGS[code](world)
    world.vm.state = state
    checked = [line for line in world.preflight().lines if line.level is Level.WARNING]
    assert [line.code for line in checked] == [code.strip()]
    done = world.pivot()
    assert done.outcome is Outcome.ALL_NEW
    assert done.receipt is not None
    assert list(done.receipt.warnings) == checked


@pytest.mark.parametrize(("behind_s", "codes"), [(-3600, []), (4, []), (6, ["clock_skew"])])
def test_a_command_from_the_future_proves_that_the_hosts_clock_is_behind(behind_s: float, codes: list[str]) -> None:
    world = World()
    world.behind = timedelta(seconds=behind_s)
    receipt = world.pivot().receipt
    assert receipt is not None
    assert [line.code for line in receipt.warnings] == codes


@pytest.mark.parametrize("policy", ["", "enospace", "report", "ignore"])
def test_every_policy_but_stop_is_warned_of(world: World, policy: str) -> None:
    world.vm.disks["vdb"].error_policy = policy
    assert seen(world.preflight().lines, Level.WARNING) == [("vdb", "disk_error_policy")]


# ---- the guest's agent ----------------------------------------------------------------------------------------------


def test_no_agent(world: World) -> None:
    world.vm.agent = Agent.MISSING
    assert seen(world.preflight().lines, Level.WARNING) == [(world.vm_id, "guest_agent_missing")]
    assert seen(world.preflight(require=True).lines, Level.REFUSAL) == [(world.vm_id, "guest_agent_missing")]
    assert {line.level for line in world.preflight(quiesce=False).lines} == {Level.OK}


def test_the_agent_is_not_asked_while_a_command_may_have_frozen_the_guest(world: World) -> None:
    world.locked = True
    asked: list[object] = []
    world.during("require_agent", lambda: asked.append(1))
    begun = world.clock.now()
    assert seen(world.preflight().lines, Level.WARNING) == [(world.vm_id, "vm_busy")]
    assert not asked
    assert (world.clock.now() - begun).total_seconds() < 2


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.OFF])
def test_a_vm_that_does_not_run_is_fine_unless_freezing_is_required(world: World, state: VmState) -> None:
    world.vm.state, world.vm.agent = state, Agent.MISSING
    assert {line.level for line in world.preflight().lines} == {Level.OK}
    refusals = seen(world.preflight(require=True).lines, Level.REFUSAL)
    assert refusals == [(world.vm_id, "vm_paused_not_quiesced")]


# ---- what cannot be looked at ---------------------------------------------------------------------------------------


def test_a_vm_that_is_elsewhere(world: World) -> None:
    world.guest.is_known = False
    assert seen(world.preflight().lines, Level.REFUSAL) == [(world.vm_id, "vm_not_found")]


def test_a_vm_that_starts_is_not_waited_for(world: World) -> None:
    world.vm.state = VmState.STARTING
    begun = world.clock.now()
    assert (world.vm_id, "vm_state_unsupported") in seen(world.preflight().lines, Level.WARNING)
    assert world.clock.now() == begun


def test_libvirt_away(world: World) -> None:
    world.vm.libvirt_is_up = False
    with pytest.raises(NotReady):
        world.preflight()


def test_a_storage_domain_that_is_away_hides_nothing_else(world: World) -> None:
    world.storage.is_mounted = False
    world.vm.snapshots = 1
    lines = world.preflight().lines
    assert [(line.subject, line.code, line.level) for line in lines if line.code] == [
        ("vda", "storage_unavailable", Level.WARNING),
        ("vdb", "storage_unavailable", Level.WARNING),
        (world.vm_id, "vm_has_libvirt_snapshots", Level.REFUSAL),
    ]


def test_one_disk_of_a_storage_domain_that_is_not_in_the_settings(world: World) -> None:
    stranger = replace(world.switches[1].old, storage_domain_id=StorageDomainId(new_id()))
    world.switches = (world.switches[0], replace(world.switches[1], old=stranger))
    lines = world.preflight().lines
    assert seen(lines, Level.REFUSAL) == [("vdb", "storage_domain_unknown")]
    assert "vda" in {line.subject for line in lines if line.level is Level.OK}


def test_a_folder_that_is_closed_to_qemu(world: World) -> None:
    world.storage.folders_are_open = False
    refusals = seen(world.preflight().lines, Level.REFUSAL)
    assert refusals == [("vda", "volume_permission"), ("vdb", "volume_permission")]
