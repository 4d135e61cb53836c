"""A host described for doctor: what is seen of each vm, what it costs it, and that nothing is changed."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from common.ids import VmId, new_id
from common.messaging.messages import Outcome, Probe
from common.messaging.reports import VmState
from common.messaging.surveys import HostSurveyed, SurveyHost, VmSeen
from hostagent.operations import survey as survey_module
from hostagent.operations.probe import probe
from hostagent.operations.survey import survey
from hostagent.ports import VmListed
from tests.fakes.vm import Agent
from tests.unit.hostagent.operations.world import Process, World

BASE = "images/vda/base.qcow2"


@pytest.fixture
def world() -> World:
    return World(targets=("vda",))


def look(world: World, *, ask_qemu: bool = False, process: Process | None = None) -> VmSeen:
    """Return the one vm."""
    command = SurveyHost(ask_qemu=(world.vm_id,) if ask_qemu else ())
    (seen,) = answered(world, command, process=process).vms
    return seen


def answered(world: World, command: SurveyHost, *, count: int = 1, process: Process | None = None) -> HostSurveyed:
    listed = VmListed(
        vm_id=world.vm_id,
        name="web1",
        state=world.vm.state,
        managed_save=False,
        snapshots=0,
        live_xml=with_channel(world.vm.xml()) if world.vm.is_active else "",
        persistent_xml=world.vm.persistent,
    )
    others = [replace(listed, vm_id=VmId(new_id()), state=VmState.PAUSED) for _ in range(count - 1)]

    def listing(only: Collection[VmId] | None) -> list[VmListed]:
        return [vm for vm in (listed, *others) if only is None or vm.vm_id in only]

    acting = process or Process()
    found = survey(command, world.deps(acting), listing)
    assert acting.effects == [], "a survey has changed something"
    return found


def with_channel(xml: str) -> str:
    """Return the live definition with the guest agent's channel, as libvirt shows it."""
    channel = "<channel><target name='org.qemu.guest_agent.0' state='connected'/></channel>"
    return xml.replace("<devices>", f"<devices>{channel}")


def test_a_running_vm(world: World) -> None:
    seen = look(world)
    (disk,) = seen.disks
    assert [(layer.spot.path, layer.format) for layer in disk.live] == [
        (world.switches[0].old.path, "qcow2"),
        (BASE, "qcow2"),
    ]
    assert [layer.spot.storage_domain_id for layer in disk.live] == [world.storage_domain] * 2
    assert disk.persistent[0] == disk.live[0]
    assert (seen.is_active, seen.is_busy, seen.is_marked, seen.is_frozen, seen.is_answered) == (
        *(True, False, False),
        *(False, True),
    )
    assert seen.qemu is None
    assert world.vm.taints == 0


def test_a_stopped_vm(world: World) -> None:
    world.vm.power_off()
    seen = look(world)
    assert (seen.is_active, seen.disks[0].live, seen.is_frozen) == (False, (), None)
    assert seen.disks[0].persistent[0].spot.path == world.switches[0].old.path


def test_a_file_outside_of_every_storage_domain(world: World) -> None:
    world.vm.disks["vda"].live.insert(0, "/tmp/elsewhere.qcow2")
    spot = look(world).disks[0].live[0].spot
    assert (spot.storage_domain_id, spot.path) == (None, "/tmp/elsewhere.qcow2")


def test_qemus_word_on_a_lie_and_on_a_leak(world: World) -> None:
    world.vm.disks["vda"].chain.insert(0, world.new())
    world.vm.loose["leaked"] = "/srv/storage/images/vda/leaked.qcow2"
    seen = look(world, ask_qemu=True)
    assert seen.qemu is not None
    places = {(node.spot.path, node.device, node.depth) for node in seen.qemu}
    assert (world.switches[0].new.path, "vda", 0) in places
    assert ("images/vda/leaked.qcow2", "", 0) in places
    assert seen.disks[0].live[0].spot.path == world.switches[0].old.path


def test_a_qemu_that_does_not_answer(world: World) -> None:
    world.vm.monitor_is_dead = True
    assert look(world, ask_qemu=True).qemu is None


@pytest.mark.parametrize(
    ("agent", "frozen"), [(Agent.NORMAL, False), (Agent.FROZEN_BY_OTHERS, True), (Agent.MISSING, None)]
)
def test_what_the_agent_says(world: World, agent: Agent, frozen: bool | None) -> None:
    world.vm.agent = agent
    assert look(world).is_frozen is frozen


def test_an_intent_to_freeze(world: World) -> None:
    world.vm.mark = "token"
    assert look(world).is_marked
    world.vm.mark = ""
    assert not look(world).is_marked
    world.journal.maybe_frozen(world.vm_id, "token", "run")
    assert look(world).is_marked


def test_a_vm_at_work_on_is_left_alone(world: World) -> None:
    world.locked = True
    world.vm.agent = Agent.FROZEN_BY_OTHERS
    seen = look(world, ask_qemu=True)
    assert (seen.is_busy, seen.is_frozen, seen.qemu) == (True, None, None)
    assert world.vm.taints == 0


def test_an_attempt_without_an_answer(world: World) -> None:
    world.attempt = 4
    world.journal.begin(world.vm_id, 4, world.job, world.envelope(Probe(vm_id=world.vm_id, disks=())).step)
    seen = look(world)
    assert (seen.attempt, seen.is_answered) == (4, False)


def test_pages(world: World) -> None:
    """A host with many vms is described in several answers, each of which fits into a message."""
    command, found, pages = SurveyHost(), [], 0
    listed = 2 * survey_module.PAGE_BYTES // survey_module._VM_BYTES
    ids = {VmId(new_id()) for _ in range(listed)}

    def listing(only: Collection[VmId] | None) -> list[VmListed]:
        return [
            VmListed(
                vm_id=vm,
                name="vm",
                state=VmState.OFF,
                managed_save=False,
                snapshots=0,
                live_xml="",
                persistent_xml=world.vm.persistent,
            )
            for vm in ids
        ]

    while True:
        page = survey(command, world.deps(Process()), listing)
        found += [vm.vm_id for vm in page.vms]
        pages += 1
        if not page.following:
            break
        command = replace(command, after=page.following)
    assert pages > 2
    assert sorted(found) == sorted(ids)
    assert len(found) == len(ids)


def test_a_probe_without_disks_thaws_and_ends_what_is_open(world: World) -> None:
    """What doctor sends where there is no volume to speak of."""
    world.journal.maybe_frozen(world.vm_id, "token", world.guest.runtime_id())
    world.vm.mark, world.vm.is_frozen = "token", True
    command = Probe(vm_id=world.vm_id, disks=())
    seen = probe(world.envelope(command), command, world.deps(Process()))
    assert seen.outcome is Outcome.NONE
    assert (world.vm.is_frozen, world.vm.mark, world.journal.frozen_records()) == (False, "", ())
    assert look(world).is_answered
