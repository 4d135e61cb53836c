"""Reports: what they say of hosts, machines and chains, and what is not believed of them."""

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import select, update

from common.ids import StorageDomainId, VmId, disk_id
from common.messaging.messages import CreateVolumes
from common.messaging.reports import VmState
from manager.store.tables import incarnations, vm_hosts, vms
from manager.views import JobView
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import (
    H2,
    ROOT,
    STORAGE,
    Fleet,
    disk,
    mount,
    refusal,
    vm,
    vm_id,
)

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


def test_a_host_shows_what_it_reports(fleet: Fleet, clock: FakeClock) -> None:
    [host] = fleet.service.list_hosts()
    assert (host.id, host.state, host.vm_count, host.storage_domains) == ("h1", "up", 1, ("main",))
    fleet.report_host(vm(), frozen=(vm_id("web1"),))
    assert fleet.service.list_hosts()[0].frozen == ("web1",)
    assert fleet.service.figures()["guests_frozen"] == 1
    fleet.report_host(libvirt_up=False, problem="libvirtd is away")
    [host] = fleet.service.list_hosts()
    assert (host.state, host.problem, host.vm_count) == ("libvirt_down", "libvirtd is away", 1)
    clock.advance(91)
    assert fleet.service.list_hosts()[0].state == "silent"


def test_reports_that_were_overtaken_are_ignored(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm(), sequence=10)
    fleet.report_host(sequence=9)
    fleet.report_host(sequence=10)
    assert len(fleet.service.list_vms()) == 1
    late = clock.now() - timedelta(seconds=5)
    fleet.report_host(vm(), incarnation="sibling", sequence=1)
    fleet.report_host(sequence=11, observed_at=late)  # seen before what the sibling saw
    assert len(fleet.service.list_vms()) == 1
    fleet.report_host(sequence=12)
    assert fleet.service.list_vms() == []


def test_a_full_report_that_was_overtaken_by_a_partial_one_still_shows_the_other_vms(fleet: Fleet) -> None:
    fleet.report_host(vm("web2", state=VmState.PAUSED), full=False, sequence=10)
    fleet.report_host(vm("web1"), vm("web2"), vm("web3"), sequence=9)
    shown = {view.name: view.state for view in fleet.service.list_vms()}
    assert shown == {"web1": "running", "web2": "paused", "web3": "running"}


def test_a_clock_that_was_set_back_does_not_silence_a_host(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm(), incarnation="sibling", sequence=1, observed_at=clock.now() + timedelta(days=1))
    fleet.report_host(sequence=50)
    assert fleet.service.list_vms() == []


def test_old_incarnations_are_forgotten(fleet: Fleet, clock: FakeClock) -> None:
    for number in range(5):
        clock.advance(90_000)
        fleet.report_host(vm(), incarnation=f"run {number}", sequence=1)
    with fleet.database.read() as connection:
        found = connection.execute(select(incarnations.c.incarnation).where(incarnations.c.sender == "host.h1"))
        assert found.scalars().all() == ["run 4"]


def test_partial_reports_touch_only_what_they_name(fleet: Fleet) -> None:
    fleet.report_host(vm("web1"), vm("web2"))
    fleet.report_host(vm("web1", state=VmState.PAUSED), full=False)
    assert {view.name: view.state for view in fleet.service.list_vms()} == {"web1": "paused", "web2": "running"}
    fleet.report_host(full=False, gone=(vm_id("web2"),))
    assert [view.name for view in fleet.service.list_vms()] == ["web1"]


def test_a_changed_chain_is_seen_and_refused_until_it_is_back(fleet: Fleet) -> None:
    fleet.report_host(vm("web1", disk("elsewhere.qcow2")))
    assert fleet.service.show_vm("web1").problem == "vm_off_chain"
    assert refusal(fleet) == "vm_off_chain"
    definition_differs = disk("web1.qcow2", persistent_source=f"{ROOT}/old.qcow2")
    fleet.report_host(vm("web1", definition_differs))
    assert refusal(fleet) == "vm_off_chain"
    fleet.report_host(vm())
    assert fleet.service.show_vm("web1").problem == ""
    fleet.create()


def test_reports_say_nothing_about_leaves_while_we_are_at_work(fleet: Fleet) -> None:
    moved = vm("web1", disk("elsewhere.qcow2"))
    fleet.report_host(replace(moved, in_flight=True))
    job = fleet.create()
    fleet.report_host(moved)
    fleet.complete(job)
    fleet.report_host(replace(vm(), attempt=1))  # from before the pivot, which was attempt 2
    assert fleet.service.show_vm("web1").problem == ""
    fleet.report_host(replace(vm(), attempt=2))
    assert fleet.service.show_vm("web1").problem == "vm_off_chain"


def test_the_new_leaf_is_the_leaf_on_record(fleet: Fleet) -> None:
    fleet.complete(fleet.create())
    new = next(command.body for command in fleet.commands() if isinstance(command.body, CreateVolumes)).disks[0].new
    fleet.report_host(vm("web1", disk(new.path), attempt=2))
    assert fleet.service.show_vm("web1").problem == ""


def test_a_stale_definition_on_another_host_is_no_alarm(fleet: Fleet) -> None:
    fleet.complete(fleet.create())
    fleet.report_host(vm(state=VmState.OFF), host=H2)
    assert fleet.service.show_vm("web1").problem == ""


def test_a_hostile_report_does_no_harm(fleet: Fleet) -> None:
    hostile = (
        disk("../../etc/passwd"),
        disk("a", "../x"),
        disk("b\x00", "vdc"),
        disk("c", "vdd", storage_domain_id=StorageDomainId("../..")),
        disk("d", "vde", format="qed"),
    )
    fleet.report_host(vm("evil\x00\x1b" + "n" * 5000, *hostile), vm())
    with fleet.database.read() as connection:
        name = connection.execute(select(vms.c.name).where(vms.c.name.startswith("evil"))).scalar_one()
        assert len(name) == 255
    fleet.report_spm(mount(storage_domain_id=StorageDomainId("../.."), name="\x00"))
    assert {view.host for view in fleet.service.list_vms()} == {"h1"}
    assert fleet.service.show_vm("web1").problem == ""


def test_unchanged_reports_write_little(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm("web1"), vm("web2"))
    clock.advance(30)
    with fleet.database.write() as connection:
        connection.execute(update(vm_hosts).values(rank=7))
    fleet.report_host(vm("web1"), vm("web2", state=VmState.PAUSED))
    with fleet.database.read() as connection:
        found = connection.execute(select(vm_hosts.c.vm_id, vm_hosts.c.rank, vm_hosts.c.seen_at)).all()
    by_vm = {VmId(row.vm_id): (row.rank, row.seen_at) for row in found}
    assert by_vm == {vm_id("web1"): (7, clock.now()), vm_id("web2"): (0, clock.now())}


def test_a_disk_is_known_by_vm_and_target(fleet: Fleet) -> None:
    fleet.create()
    body = fleet.last().body
    assert isinstance(body, CreateVolumes)
    [switch] = body.disks
    assert switch.disk_id == disk_id(vm_id("web1"), "vda")
    assert (switch.old.storage_domain_id, switch.old.path) == (STORAGE, "web1.qcow2")
    assert isinstance(fleet.service.list_jobs()[0], JobView)
