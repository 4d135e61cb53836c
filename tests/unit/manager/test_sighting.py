"""What a host's report means for the record."""

from dataclasses import replace
from typing import Any

import pytest

from common.ids import HostId, StorageDomainId, VmId, derived_id
from common.messaging.reports import AgentState, DiskReport, VmReport, VmState
from manager.sighting import Known, Leaf, Place, find, off_chain

H1, H2 = HostId("h1"), HostId("h2")
STORAGE = StorageDomainId(derived_id("storage"))
DISK = DiskReport(
    target="vda",
    device="disk",
    source_type="file",
    bus="virtio",
    format="qcow2",
    source="/srv/a.qcow2",
    persistent_source="/srv/a.qcow2",
    storage_domain_id=STORAGE,
    path="a.qcow2",
)
HERE = Place(host=H1, mounted=frozenset({STORAGE}))
REPORT = VmReport(
    vm_id=VmId(derived_id("vm")),
    name="web1",
    state=VmState.RUNNING,
    persistent=True,
    agent=AgentState.CONNECTED,
    disks=(DISK,),
)
ON_RECORD = {"vda": Leaf(storage_domain=STORAGE, path="a.qcow2")}
KNOWN = Known(
    name="web1",
    off_chain="",
    busy=False,
    attempt=6,
    host_attempt=5,
    attempt_host=H1,
    other_rank=None,
    rival_rank=None,
    is_new_here=False,
    leaves={"vda": Leaf(storage_domain=STORAGE, path="old.qcow2")},
)


def reported(**changes: Any) -> VmReport:
    return replace(REPORT, disks=(replace(DISK, **changes),))


@pytest.mark.parametrize(
    ("report", "is_off"),
    [
        (REPORT, False),
        (reported(path="b.qcow2"), True),
        (reported(storage_domain_id=None), True),
        (reported(storage_domain_id=StorageDomainId(derived_id("other"))), True),
        (reported(persistent_source="/srv/b.qcow2"), True),
        (replace(reported(persistent_source="/srv/b.qcow2"), persistent=False), False),
        (reported(persistent_source=""), False),  # hot-plugged: it is in the live definition only
        (reported(source="", persistent_source="/srv/a.qcow2"), False),
        (reported(target="vdb", path="b.qcow2"), False),  # not on record: its own first sight
    ],
)
def test_a_disk_must_be_on_its_leaf_on_record(report: VmReport, is_off: bool) -> None:
    assert bool(off_chain(report, ON_RECORD)) == is_off


@pytest.mark.parametrize(
    ("known", "report", "is_judged"),
    [
        (KNOWN, replace(REPORT, attempt=5), True),
        (KNOWN, replace(REPORT, attempt=4), False),
        (replace(KNOWN, attempt_host=H2), replace(REPORT, attempt=0), True),  # it has moved here since
        (KNOWN, replace(REPORT, attempt=5, in_flight=True), False),
        (replace(KNOWN, busy=True), replace(REPORT, attempt=5), False),
        (replace(KNOWN, other_rank=0), replace(REPORT, attempt=5, state=VmState.OFF), False),
        (replace(KNOWN, other_rank=3), replace(REPORT, attempt=5), True),
        (replace(KNOWN, other_rank=0, rival_rank=0), replace(REPORT, attempt=5), False),  # one of them is outdated
        (replace(KNOWN, other_rank=0), replace(REPORT, attempt=5), True),  # the other one is silent: it has died
        (replace(KNOWN, other_rank=3, rival_rank=3), replace(REPORT, attempt=5, state=VmState.OFF), False),
        (replace(KNOWN, is_new_here=True, other_rank=3), replace(REPORT, attempt=5), True),  # jobs have used the record
    ],
)
def test_a_report_is_judged_only_where_it_can_know(known: Known, report: VmReport, is_judged: bool) -> None:
    assert bool(find(report, HERE, known).off_chain) == is_judged
    kept = find(report, HERE, replace(known, off_chain="as before")).off_chain
    assert (kept == "as before") != is_judged


def test_a_leftover_that_was_reported_first_is_replaced_by_the_vm_itself() -> None:
    leftover = replace(KNOWN, attempt=0, attempt_host=None, host_attempt=0, other_rank=3, is_new_here=True)
    found = find(REPORT, HERE, leftover)
    assert (found.off_chain, found.replaces, [disk.path for disk in found.new_disks]) == ("", True, ["a.qcow2"])
    for changes in ({"is_new_here": False}, {"other_rank": None}, {"attempt": 1}):
        found = find(REPORT, HERE, replace(leftover, **changes))
        assert found.off_chain
        assert not found.replaces


def test_a_leaf_on_storage_that_the_host_cannot_identify_is_not_judged() -> None:
    report = replace(reported(storage_domain_id=None, path=""), attempt=5)
    assert find(report, HERE, KNOWN).off_chain
    assert not find(report, replace(HERE, mounted=frozenset()), KNOWN).off_chain


@pytest.mark.parametrize(
    "changes", [{"device": "cdrom"}, {"device": "floppy"}, {"transient": True}, {"shareable": True}]
)
def test_what_cannot_be_snapshotted_has_no_leaf_on_record(changes: dict[str, Any]) -> None:
    assert find(reported(**changes), HERE, None).new_disks == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"storage_domain_id": None},
        {"storage_domain_id": "../.."},
        {"path": "../a"},
        {"path": "/a"},
        {"path": ""},
        {"path": "a\n"},
        {"target": "../x"},
        {"format": "vmdk"},
    ],
)
def test_what_could_lead_astray_is_not_recorded(changes: dict[str, Any]) -> None:
    assert find(reported(**changes), HERE, None).new_disks == ()
    assert len(find(REPORT, HERE, None).new_disks) == 1
