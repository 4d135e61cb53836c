"""Reports of two hosts about one machine that moves between them: what is believed of which."""

from dataclasses import replace
from datetime import timedelta

from common.messaging.messages import CreateVolumes
from common.messaging.reports import VmState
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H1, H2, Fleet, disk, refusal, vm, vm_id

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]

OFF = VmState.OFF
ARRIVING = VmState.PAUSED_MIGRATION


def test_a_migration_as_its_events_come(fleet: Fleet) -> None:
    fleet.report_host(host=H2)
    fleet.report_host(vm(state=ARRIVING, persistent=False), host=H2, full=False)
    assert (fleet.service.show_vm("web1").host, refusal(fleet)) == ("h1", "vm_migrating")
    fleet.report_host(vm(), host=H2, full=False)
    fleet.report_host(host=H1, full=False, gone=(vm_id("web1"),))
    shown = fleet.service.show_vm("web1")
    assert (shown.host, shown.state, shown.host_state, shown.problem) == ("h2", "running", "up", "")
    fleet.complete(fleet.create())
    assert fleet.last().to == "host.h2"


def test_a_destination_that_has_died_does_not_hold_its_machine_for_ever(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm(state=ARRIVING), host=H2)
    assert refusal(fleet) == "vm_migrating"
    clock.advance(91)
    fleet.report_host(vm())
    fleet.report_spm()
    fleet.create()


def test_the_host_that_it_has_left_does_not_bring_it_back(fleet: Fleet, clock: FakeClock) -> None:
    """The last but one report of the source is taken after its last."""
    fleet.report_host(vm(), host=H2)
    fleet.report_host(full=False, gone=(vm_id("web1"),), sequence=20)
    for late in (vm(), vm(state=ARRIVING), vm(state=OFF)):
        fleet.report_host(late, full=False, sequence=19, observed_at=clock.now() - timedelta(seconds=1))
        assert fleet.service.show_vm("web1").host == "h2"
    assert [host.vm_count for host in fleet.service.list_hosts()] == [0, 1]
    fleet.report_host(vm("web2"), full=False, sequence=18)
    assert fleet.service.show_vm("web2").host == "h1", "what nobody else has is still believed"


def test_a_late_word_of_its_former_host_is_no_alarm(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm(), host=H2)
    fleet.report_host(full=False, gone=(vm_id("web1"),))
    fleet.complete(fleet.create())
    new = next(each.body for each in fleet.commands() if isinstance(each.body, CreateVolumes)).disks[0].new
    fleet.report_host(vm("web1", disk(new.path), attempt=2), host=H2)
    fleet.report_host(vm())  # as it was before it left: on the old leaf
    assert fleet.service.show_vm("web1").problem == ""
    fleet.report_host(vm("web1", disk("elsewhere.qcow2"), attempt=2), host=H2)
    assert fleet.service.show_vm("web1").problem == "", "nor is one of two that claim it alike"
    fleet.report_host()
    fleet.report_host(vm("web1", disk("elsewhere.qcow2"), attempt=2), host=H2)
    assert fleet.service.show_vm("web1").problem == "vm_off_chain"


def test_a_host_that_died_with_it_is_no_rival_once_it_is_silent(fleet: Fleet, clock: FakeClock) -> None:
    """Somebody has started it on another host, from a definition of his own."""
    elsewhere = vm("web1", disk("elsewhere.qcow2"))
    fleet.complete(fleet.create())
    clock.advance(1)
    fleet.report_host(elsewhere, host=H2)
    assert (fleet.service.show_vm("web1").host, fleet.service.show_vm("web1").problem) == ("h2", "")
    clock.advance(91)
    fleet.report_host(elsewhere, host=H2)
    assert fleet.service.show_vm("web1").problem == "vm_off_chain"


def test_a_definition_left_behind_is_not_compared(fleet: Fleet) -> None:
    left = replace(vm("web1", disk("before.qcow2"), state=OFF), name="its-name-of-then")
    fleet.report_host(vm(), host=H2)
    fleet.report_host(left)
    shown = fleet.service.show_vm(vm_id("web1"))
    assert (shown.name, shown.host, shown.problem) == ("web1", "h2", "")
    fleet.complete(fleet.create())
    fleet.report_host(vm(state=OFF), host=H2)
    fleet.report_host(left)
    assert fleet.service.show_vm(vm_id("web1")).problem == "vm_ambiguous_host"
    assert refusal(fleet, vm_id("web1")) == "vm_ambiguous_host"


def test_a_leftover_that_is_reported_first_does_not_become_the_record(fleet: Fleet) -> None:
    leftover = vm("web9", disk("before.qcow2"), state=OFF)
    fleet.report_host(vm(), leftover)
    fleet.report_host(vm("web9", disk("now.qcow2")), host=H2)
    shown = fleet.service.show_vm("web9")
    assert (shown.host, shown.problem) == ("h2", "")
    fleet.create("web9")
    body = fleet.last().body
    assert isinstance(body, CreateVolumes)
    assert [each.old.path for each in body.disks] == ["now.qcow2"]
    fleet.report_host(vm(), replace(leftover, attempt=0))
    assert fleet.service.show_vm("web9").problem == ""


def test_what_is_shown_of_a_machine_on_a_silent_host(fleet: Fleet, clock: FakeClock) -> None:
    seen_at = clock.now()
    clock.advance(91)
    fleet.report_host(vm("web2"), host=H2)
    shown = {each.name: (each.state, each.host_state, each.seen_at) for each in fleet.service.list_vms()}
    assert shown == {"web1": ("running", "silent", seen_at), "web2": ("running", "up", clock.now())}
    assert fleet.service.show_vm("web1").host_state == "silent"
    fleet.report_host(libvirt_up=False, problem="away")
    assert fleet.service.show_vm("web1").host_state == "libvirt_down"
