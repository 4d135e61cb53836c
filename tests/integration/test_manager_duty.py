"""Hosts that are drained and taken out, as the Manager's record has it: on SQLite and on PostgreSQL alike."""

import pytest

from common.errors import RequestRefused
from common.ids import HostId
from common.messaging.keys import SigningKey, write_public
from manager.service import SnapshotRequest
from manager.views import JobView
from tests.integration.manager_kit import Fleet, refusal, vm

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


def duty_of(fleet: Fleet, host: str = "h1") -> str:
    return {each.id: each.duty for each in fleet.service.list_hosts()}[host]


def removal(fleet: Fleet, host: str = "h1") -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        fleet.service.fleet.remove_host(host)
    return refused.value


def test_a_drained_host_finishes_what_it_has_and_takes_nothing_new(fleet: Fleet) -> None:
    fleet.report_host(vm("web1"), vm("web2"))
    fleet.report_host(vm("web3"), host=HostId("h2"))
    job = fleet.create("web1")
    drained = fleet.service.fleet.drain_host("h1")
    assert (drained.duty, drained.jobs) == ("draining", (job.id,))
    assert (duty_of(fleet), duty_of(fleet, "h2")) == ("draining", "in_service")
    assert refusal(fleet, "web2") == "host_drained"
    lines = fleet.service.create_snapshot(SnapshotRequest(vm="web2"), dry_run=True)
    assert not isinstance(lines, JobView)
    assert "host_drained" in {line.code for line in lines if line.level == "refusal"}
    assert fleet.complete(job).state == "completed"
    assert duty_of(fleet) == "drained"
    assert fleet.service.fleet.drain_host("h1").duty == "drained"
    assert refusal(fleet, "web1") == "host_drained"
    assert fleet.create("web3").state == "creating_volumes", "another host goes on"
    resumed = fleet.service.fleet.resume_host("h1")
    assert (resumed.duty, duty_of(fleet)) == ("in_service", "in_service")
    assert fleet.create("web2").state == "creating_volumes"


def test_a_machine_that_left_a_drained_host_is_served_again(fleet: Fleet) -> None:
    fleet.service.fleet.drain_host("h1")
    fleet.report_host(host=HostId("h1"))
    fleet.report_host(vm("web1"), host=HostId("h2"))
    assert fleet.complete(fleet.create("web1")).state == "completed"


def test_a_host_is_taken_out_once_it_has_no_jobs(fleet: Fleet) -> None:
    write_public(fleet.settings.keys_dir, SigningKey.new("host.h1"))
    job = fleet.create("web1")
    refused = removal(fleet)
    assert refused.code == "host_has_jobs"
    assert job.id in refused.message
    assert "drain" in refused.hint
    assert duty_of(fleet) == "in_service", "a refusal changes nothing"
    fleet.complete(job)
    removed = fleet.service.fleet.remove_host("h1")
    assert (removed.id, removed.vms) == ("h1", ("web1",))
    assert "host.h1" in str(removed.to_do), "without an administrator's account, people have to remove the rest"
    assert not (fleet.settings.keys_dir / "host.h1.pub").exists()
    assert fleet.service.list_hosts() == []
    machine = fleet.service.show_vm("web1")
    assert (machine.host, machine.problem) == (None, "vm_no_host")
    assert removal(fleet).code == "host_not_found"


@pytest.mark.parametrize("act", ["drain_host", "resume_host", "remove_host"])
def test_a_host_that_nobody_knows(fleet: Fleet, act: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        getattr(fleet.service.fleet, act)("h9")
    assert refused.value.code == "host_not_found"


def test_pools_and_storage_domains_are_listed(fleet: Fleet) -> None:
    assert [(each.id, each.state, each.storage_domains) for each in fleet.service.fleet.list_pools()] == [
        ("default", "up", ("main",))
    ]
    [main] = fleet.service.fleet.list_storage_domains()
    assert (main.name, main.pool, main.problem) == ("main", "default", "")
