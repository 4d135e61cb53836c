"""The receipt as the Manager keeps it: whole, and no more than was told, also where the host's word was lost."""

from dataclasses import replace

from sqlalchemy import delete

from common.messaging.messages import DiskObserved, LeavesObserved, Outcome, Pivot
from common.receipt import Receipt
from manager.store.tables import jobs, outbox, timeline
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import ROOT, Fleet, created, disk, observed, receipt, vm

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]


def all_new(command: Pivot, told: Receipt | None) -> LeavesObserved:
    """Return a host's observation that each disk is on its new volume and has taken a first write."""
    seen = tuple(
        DiskObserved(
            target=switch.target,
            live=f"{ROOT}/{switch.new.path}",
            persistent=f"{ROOT}/{switch.new.path}",
            new_is_locked=True,
            first_write_bytes=393216,
        )
        for switch in command.disks
    )
    return replace(observed(Outcome.ALL_NEW, receipt=told), disks=seen)


def pivoting(fleet: Fleet) -> Pivot:
    """Bring a new job to its pivot; return that command."""
    fleet.create(name="one")
    fleet.answer(created(fleet.last()))
    body = fleet.last().body
    assert isinstance(body, Pivot)
    return body


def test_it_has_everything_that_the_label_rests_on(fleet: Fleet, clock: FakeClock) -> None:
    fleet.report_host(vm("web1", disk("web1.qcow2"), disk("data.raw", "vdb", format="raw", shareable=True)))
    first = pivoting(fleet)
    fleet.answer(observed(Outcome.NONE_NO_AGENT, code="guest_agent_missing"))
    second = fleet.last().body
    assert isinstance(second, Pivot)
    told = replace(receipt(clock.now()), quiesce=False, freeze_sent=False, freeze_limit_ms=second.freeze_limit_ms)
    fleet.answer(all_new(second, told))

    shown = fleet.service.show_snapshot("web1/one")
    kept = shown.receipt
    assert (kept["consistency"], kept["consistency_reason"]) == (shown.consistency, shown.consistency_reason)
    assert (kept["consistency_reason"], kept["quiesce_mode"], kept["host"]) == ("not_quiesced", "auto", "h1")
    assert (kept["freeze_sent"], kept["freeze_limit_ms"], kept["vm_state"]) == (False, 60_000, "running")
    asked = [(step["to"], step["quiesce"], step["outcome"], step["reason"]) for step in kept["attempts"]]
    assert asked == [
        ("spm.default", None, "spm.created", ""),
        ("host.h1", True, "none_no_agent", "guest_agent_missing"),
        ("host.h1", False, "all_new", ""),
    ]
    (switch,) = first.disks
    (moved,) = kept["disks"]
    assert moved["previous"] == {
        "volume_id": switch.old.volume_id,
        "storage_domain": "main",
        "path": "web1.qcow2",
    }
    assert (moved["new"]["volume_id"], moved["new"]["path"]) == (switch.new.volume_id, switch.new.path)
    assert moved["routing"] == {
        "live_definition": f"{ROOT}/{switch.new.path}",
        "persistent_definition": f"{ROOT}/{switch.new.path}",
        "new_is_locked": True,
        "qemu_was_asked": False,
        "qemu": "",
    }
    assert moved["first_write_bytes"] == 393216
    assert kept["excluded"] == [{"target": "vdb", "reason": "disk_shareable"}]


def test_what_only_the_lost_word_of_the_host_could_tell_is_not_made_up(fleet: Fleet) -> None:
    fleet.answer(all_new(pivoting(fleet), None))
    kept = fleet.service.show_snapshot("web1/one").receipt
    assert (kept["consistency"], kept["consistency_reason"]) == ("crash", "receipt_lost")
    for name in ("freeze_sent", "freeze_confirmed", "frozen_filesystems", "guard_fired", "held_ms", "switched_at"):
        assert kept[name] is None, name
    assert kept["disks"][0]["routing"]["new_is_locked"] is True


def test_it_outlives_its_job(fleet: Fleet, clock: FakeClock) -> None:
    fleet.answer(all_new(pivoting(fleet), receipt(clock.now())))
    before = fleet.service.show_snapshot("web1/one").receipt
    with fleet.database.write() as connection:
        for table in (outbox, timeline, jobs):
            connection.execute(delete(table))
    assert fleet.service.show_snapshot("web1/one").receipt == before
    assert len(before["attempts"]) == 2
