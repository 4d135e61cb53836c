"""Requests and reports: what is accepted, what is refused and with which word, and what the inventory then says."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from common.errors import RequestRefused
from common.ids import PoolId, StorageDomainId, derived_id
from common.messaging.messages import CreateVolumes, Outcome
from common.messaging.reports import AgentState, VmReport, VmState
from common.preflight import PreflightLine
from manager.enqueued import request_of
from manager.service import SnapshotRequest
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import (
    H2,
    Fleet,
    counted,
    created,
    deleted,
    disk,
    mount,
    observed,
    refusal,
    vm,
    vm_id,
)

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]
OTHER_STORAGE = StorageDomainId(derived_id("test", "other storage"))


# ---- what is refused ---------------------------------------------------------------------------------------------

BAD_VMS: list[tuple[str, VmReport]] = [
    ("vm_migrating", vm(migrating=True)),
    ("vm_migrating", vm(state=VmState.PAUSED_MIGRATION)),
    ("vm_paused_io_error", vm(state=VmState.PAUSED_IO_ERROR)),
    ("vm_pmsuspended", vm(state=VmState.PMSUSPENDED)),
    ("vm_saving", vm(state=VmState.SAVING)),
    ("vm_dumping", vm(state=VmState.DUMPING)),
    ("vm_crashed", vm(state=VmState.CRASHED)),
    ("vm_managed_save", vm(state=VmState.OFF, managed_save=True)),
    ("vm_has_libvirt_snapshots", vm(libvirt_snapshots=1)),
    ("vm_no_disk", vm("web1", disk("a", shareable=True))),
    ("vm_no_disk", vm("web1", disk("a", storage_domain_id=None))),
]


def test_a_vm_in_no_state_for_a_snapshot_is_refused(fleet: Fleet) -> None:
    for number, (code, report) in enumerate(BAD_VMS):
        fleet.report_host(replace(report, vm_id=vm_id(f"bad{number}"), name=f"bad{number}"), full=False)
        assert refusal(fleet, f"bad{number}") == code


BAD_DISKS = {
    "disk_shareable": disk("a", shareable=True),
    "disk_direct_lun": disk("a", device="lun", source_type="block"),
    "disk_block_device": disk("a", source_type="block"),
    "disk_network": disk("a", source_type="network"),
    "disk_encrypted": disk("a", encrypted=True),
    "disk_readonly": disk("a", readonly=True),
    "disk_cdrom": disk("a", device="cdrom"),
    "disk_transient": disk("a", transient=True),
    "disk_format_unsupported": disk("a", format="vmdk"),
    "disk_outside_storage_domain": disk("a", storage_domain_id=None),
}


def test_a_disk_that_cannot_be_snapshotted_is_refused_by_name_and_left_out_otherwise(fleet: Fleet) -> None:
    for code, bad in BAD_DISKS.items():
        name = code.replace("_", "-")
        fleet.report_host(vm(name, disk(f"{name}.qcow2"), replace(bad, target="vdb")), full=False)
        assert refusal(fleet, name, disks=("vdb",)) == code
        assert refusal(fleet, name, disks=("vda", "vdb")) == code
        fleet.complete(fleet.create(name))
        snapshot = fleet.service.list_snapshots(name)[0]
        assert [(left.target, left.reason) for left in snapshot.excluded] == [("vdb", code)]
        assert [each.target for each in snapshot.disks] == ["vda"]
        assert snapshot.partial == (code not in ("disk_readonly", "disk_cdrom"))


BAD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("vm_not_found", {"vm": "nobody"}),
    ("vm_not_found", {"vm": vm_id("nobody")}),
    ("vm_not_found", {"vm": ""}),
    ("request_malformed", {"vm": "\ud800"}),
    ("disk_unknown", {"disks": ("vdz",)}),
    ("disk_unknown", {"disks": ("\ud800\x00",)}),
    ("name_invalid", {"name": ""}),
    ("name_invalid", {"name": "   "}),
    ("name_invalid", {"name": "a\nb"}),
    ("name_invalid", {"name": "a\x1b[31mb"}),
    ("name_invalid", {"name": "\ud800"}),
    ("name_invalid", {"name": "n" * 256}),
    ("quiesce_mode_unknown", {"quiesce": "maybe"}),
    ("request_malformed", {"description": "\x00"}),
    ("request_malformed", {"description": "\ud800"}),
    ("request_malformed", {"description": "d" * 5000}),
    ("request_malformed", {"idempotency_key": ""}),
    ("request_malformed", {"idempotency_key": "k" * 256}),
]


def test_a_bad_request_is_refused(fleet: Fleet) -> None:
    for code, fields in BAD_REQUESTS:
        assert refusal(fleet, **fields) == code, fields


def test_any_printable_name_is_good(fleet: Fleet) -> None:
    for name in ("n" * 255, "été 🙂", "a/b", "'; drop table jobs; --"):
        fleet.complete(fleet.create(name=name))
        assert fleet.service.show_snapshot(f"web1/{name}").name == name
        assert fleet.service.show_snapshot(name).name == name


def test_quiescing_cannot_be_required_of_a_vm_that_does_not_run(fleet: Fleet) -> None:
    for state in (VmState.PAUSED, VmState.OFF):
        fleet.report_host(vm(state=state))
        assert refusal(fleet, quiesce="require") == "vm_paused_not_quiesced"
    assert fleet.create(quiesce="auto").state == "creating_volumes"


def test_a_busy_vm_is_refused_and_its_holder_named(fleet: Fleet) -> None:
    job = fleet.create()
    with pytest.raises(RequestRefused, match=job.id):
        fleet.create()
    assert refusal(fleet) == "vm_busy"
    assert fleet.service.show_vm("web1").busy_with == job.id


def test_a_name_is_taken_until_its_snapshot_is_gone(fleet: Fleet) -> None:
    fleet.complete(fleet.create(name="n"))
    assert refusal(fleet, name="n") == "name_taken"
    fleet.report_host(vm("web2"), full=False)
    assert fleet.create("web2", name="n").snapshot_name == "n"


def test_names_that_several_have_are_ambiguous(fleet: Fleet) -> None:
    twin_name = replace(vm("web2"), name="web1")
    fleet.report_host(twin_name, host=H2)
    assert refusal(fleet) == "vm_ambiguous"
    assert fleet.create(vm_id("web1"), name="n").vm == vm_id("web1")


def test_a_snapshots_name_is_ambiguous_across_vms(fleet: Fleet) -> None:
    fleet.report_host(vm("web1"), vm("web2"))
    for name in ("web1", "web2"):
        fleet.complete(fleet.create(name, name="n"))
    with pytest.raises(RequestRefused) as refused:
        fleet.service.show_snapshot("n")
    assert refused.value.code == "snapshot_ambiguous"
    assert fleet.service.show_snapshot("web2/n").vm_name == "web2"


def test_a_stopped_vm_must_have_one_home(fleet: Fleet) -> None:
    off = vm(state=VmState.OFF)
    fleet.report_host(off)
    fleet.report_host(off, host=H2)
    assert refusal(fleet) == "vm_ambiguous_host"
    assert fleet.service.show_vm("web1").problem == "vm_ambiguous_host"
    fleet.report_host(vm(), host=H2)  # it runs there: the other definition does not matter
    assert fleet.service.show_vm("web1").host == "h2"
    fleet.create()


def test_a_vm_that_has_left_every_host(fleet: Fleet) -> None:
    fleet.complete(fleet.create(name="n"))
    fleet.report_host()
    assert refusal(fleet) == "vm_no_host"
    assert [view.name for view in fleet.service.list_vms()] == ["web1"]
    assert fleet.service.show_vm("web1").host is None
    assert len(fleet.service.list_snapshots("web1")) == 1
    fleet.report_host(vm("web2"))
    fleet.report_host()
    assert refusal(fleet, "web2") == "vm_not_found"


def test_storage_must_be_there(fleet: Fleet) -> None:
    fleet.report_host(vm(), storage_domains=(mount(problem="another file system is mounted"),))
    assert refusal(fleet) == "storage_unavailable"
    fleet.report_host(vm(), storage_domains=(mount(storage_domain_id=None, problem="not mounted"),))
    assert refusal(fleet) == "storage_unavailable"
    fleet.report_host(vm())
    fleet.report_spm(mount(storage_domain_id=None, problem="not mounted"))
    assert refusal(fleet) == "storage_unavailable"
    fleet.report_spm(mount(storage_domain_id=OTHER_STORAGE, name="other"))
    assert refusal(fleet) == "storage_unavailable"
    fleet.report_spm()
    fleet.create()


def test_a_disk_is_not_left_out_because_its_storage_is_away(fleet: Fleet) -> None:
    """What lies below a mount that cannot be identified seems to lie outside of every storage domain."""
    other = mount(storage_domain_id=OTHER_STORAGE, name="other")
    fleet.report_spm(mount(), other)
    both = disk("b"), disk("c", "vdb", storage_domain_id=OTHER_STORAGE)
    fleet.report_host(vm("web2", *both), storage_domains=(mount(), other))
    away = replace(both[1], storage_domain_id=None, path="")
    for missing in ((mount(storage_domain_id=None, name="other", problem="not mounted"),), ()):
        fleet.report_host(vm("web2", both[0], away), storage_domains=(mount(), *missing))
        assert fleet.service.show_vm("web2").problem == ""
        assert refusal(fleet, "web2") == "storage_unavailable"
        assert refusal(fleet, "web2", disks=("vdb",)) == "storage_unavailable"
    fleet.create("web2", disks=("vda",))


def test_disks_in_two_pools_are_not_one_snapshot(fleet: Fleet) -> None:
    fleet.report_spm(mount(storage_domain_id=OTHER_STORAGE, name="other"), pool=PoolId("second"))
    elsewhere = disk("b", "vdb", storage_domain_id=OTHER_STORAGE)
    other = mount(storage_domain_id=OTHER_STORAGE, name="other")
    fleet.report_host(vm("web2", disk("a"), elsewhere), storage_domains=(mount(), other))
    assert refusal(fleet, "web2") == "vm_spans_pools"
    assert fleet.create("web2", disks=("vdb",)).attempts[0].to == "spm.second"


def test_an_spm_cannot_take_another_pools_storage(fleet: Fleet) -> None:
    fleet.report_spm(pool=PoolId("thief"))
    assert fleet.create().attempts[0].to == "spm.default"


# ---- what is accepted --------------------------------------------------------------------------------------------


def test_a_request_is_repeated_safely(fleet: Fleet, clock: FakeClock) -> None:
    first = fleet.create(idempotency_key="k", disks=("vda",))
    clock.advance(5)
    assert fleet.create(idempotency_key="k", disks=("vda",)).id == first.id
    assert len(fleet.sent) == 1
    fleet.complete(first)
    assert fleet.create(idempotency_key="k", disks=("vda",)).state == "completed"
    assert refusal(fleet, idempotency_key="k", disks=()) == "idempotency_key_reused"


def test_requests_at_the_same_moment_make_one_job(fleet: Fleet, twin: Fleet) -> None:
    said: list[str] = []
    start = threading.Barrier(4)

    def ask(manager: Fleet, number: int) -> None:
        start.wait()
        try:
            said.append(manager.create(name=f"n{number}").state)
        except RequestRefused as refused:
            said.append(refused.code)

    managers = (fleet, twin, fleet, twin)
    threads = [threading.Thread(target=ask, args=each) for each in zip(managers, range(4), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["creating_volumes", "vm_busy", "vm_busy", "vm_busy"]


def test_one_key_at_the_same_moment_makes_one_job(fleet: Fleet, twin: Fleet) -> None:
    made: list[str] = []
    start = threading.Barrier(4)

    def ask(manager: Fleet) -> None:
        start.wait()
        made.append(manager.create(idempotency_key="k").id)

    threads = [threading.Thread(target=ask, args=(manager,)) for manager in (fleet, twin, fleet, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_a_dry_run_lists_everything_and_creates_nothing(fleet: Fleet) -> None:
    fleet.create(name="n")
    fleet.report_host(vm("web1", disk("web1.qcow2"), disk("b", "vdb", shareable=True), agent=AgentState.DISCONNECTED))
    before = counted(fleet)
    lines = fleet.service.create_snapshot(SnapshotRequest(vm="web1", name="n", disks=("vdz",)), dry_run=True)
    assert counted(fleet) == before
    assert isinstance(lines, tuple)
    assert all(isinstance(line, PreflightLine) for line in lines)
    refused = {line.code for line in lines if line.level == "refusal"}
    assert refused == {"name_taken", "vm_busy", "disk_unknown"}
    warned = {line.code for line in lines if line.level == "warning"}
    assert warned == {"guest_agent_missing", "disk_shareable", "host_unreachable"}, "no host answers in this test"


def test_names_that_are_made_up_differ_within_a_second(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.complete(fleet.create())
    names = {snapshot.name for snapshot in fleet.service.list_snapshots("web1")}
    assert names == {"snapshot-20260101-000000", "snapshot-20260101-000000-2", "snapshot-20260101-000000-3"}


def test_a_snapshot_shows_what_it_is(fleet: Fleet, clock: FakeClock) -> None:
    job = fleet.complete(fleet.create(description="before the upgrade\nof web1"))
    snapshot = fleet.service.show_snapshot(job.snapshot_id or "")
    assert snapshot.name == "snapshot-20260101-000000"
    assert (snapshot.consistency, snapshot.consistency_reason, snapshot.state) == ("filesystem", "", "ok")
    assert (snapshot.taken_at, snapshot.partial, snapshot.description) == (
        clock.now(),
        False,
        "before the upgrade\nof web1",
    )
    [held] = snapshot.disks
    assert (held.target, held.storage_domain, held.path, held.size_bytes) == ("vda", "main", "web1.qcow2", 1 << 30)
    assert snapshot.receipt["frozen_filesystems"] == 2


def test_a_second_snapshot_stands_on_the_first(fleet: Fleet, clock: FakeClock) -> None:
    fleet.complete(fleet.create(name="one"))
    first = next(command.body for command in fleet.commands() if isinstance(command.body, CreateVolumes))
    clock.advance(1)
    fleet.complete(fleet.create(name="two"))
    [chain] = [each.chain for each in fleet.service.show_vm("web1").disks]
    assert [(layer.path, layer.immutable, layer.origin) for layer in chain[:2]] == [
        ("base.qcow2", True, "adopted"),
        ("web1.qcow2", False, "adopted"),
    ]
    assert len(chain) == 4
    two, one = fleet.service.list_snapshots("web1")
    assert (two.name, one.name) == ("two", "one")
    assert two.disks[0].volume_id == first.disks[0].new.volume_id


def test_a_job_is_found_by_the_beginning_of_its_id(fleet: Fleet) -> None:
    job = fleet.create()
    assert fleet.service.show_job(job.id[:8]).id == job.id
    for wrong in ("", "abc", "%%%%", "nothing-like-it", vm_id("x")):
        with pytest.raises(RequestRefused) as refused:
            fleet.service.show_job(wrong)
        assert refused.value.code == "job_not_found"


def test_jobs_are_listed_newest_first(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm("web1"), vm("web2"))
    first = fleet.complete(fleet.create("web1"))
    clock.advance(1)
    second = fleet.create("web2")
    listed = fleet.service.list_jobs()
    assert [job.id for job in listed] == [second.id, first.id]
    assert listed == [fleet.service.show_job(job.id) for job in listed]
    assert [job.id for job in fleet.service.list_jobs(active=True)] == [second.id]
    assert [job.id for job in fleet.service.list_jobs(vm="web1", active=False)] == [first.id]


def test_a_job_that_has_ended_cannot_be_cancelled_or_resolved(fleet: Fleet) -> None:
    job = fleet.create()
    with pytest.raises(RequestRefused) as refused:
        fleet.service.resolve_job(job.id)
    assert refused.value.code == "job_not_waiting"
    fleet.complete(job)
    for ask in (fleet.service.resolve_job, fleet.service.cancel_job):
        with pytest.raises(RequestRefused) as refused:
            ask(job.id)
        assert refused.value.code == "job_finished"


def test_versions_tell_of_every_change(fleet: Fleet) -> None:
    job = fleet.create()
    seen = [fleet.service.job_moment(job.id).version]
    fleet.answer(created(fleet.last()))
    seen.append(fleet.service.job_moment(job.id).version)
    fleet.answer(observed(Outcome.NONE))
    fleet.answer(deleted(fleet.last()))
    seen.append(fleet.service.job_moment(job.id).version)
    assert seen == [1, 2, 4]
    with pytest.raises(RequestRefused):
        fleet.service.job_moment(vm_id("x"))


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"vm": 1}, {"vm": "web1", "disks": "vda"}, {"vm": "web1", "disks": [1]}, {"vm": "web1", "name": 5}, {"x": 1}],
)
def test_an_enqueued_request_of_the_wrong_shape_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        request_of((), kwargs, idempotency_key="k")
    assert refused.value.code == "request_malformed"
    with pytest.raises(RequestRefused):
        request_of(("web1",), {}, idempotency_key="k")
