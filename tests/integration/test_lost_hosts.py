"""Operators' words about hosts that do not answer, on real databases: what they may do, and what refuses them."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from common.errors import LivesnapError, RequestRefused
from common.ids import JobId
from common.messaging.keys import SigningKey, write_public
from common.messaging.messages import DeleteVolumes, Kept, KeptVolume, Outcome, Probe, VolumesDeleted
from common.messaging.reports import VmState
from manager.flows.base import HostLost
from manager.store import lost_hosts
from manager.store.tables import checks, disks, outbox, snapshots, volumes
from manager.views import JobView
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H1, H2, Fleet, created, deleted, disk, fleet_on, mount, observed, vm

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]

SHORT_PATIENCE = 0.1


@pytest.fixture
def keyed(fleet: Fleet, tmp_path: Path) -> Fleet:
    """The fleet, whose host h1 has a key."""
    write_public(tmp_path, SigningKey.generate(tmp_path / "h1.key", "host.h1"))
    return fleet


@pytest.fixture
def impatient(keyed: Fleet, database_url: str, tmp_path: Path, clock: FakeClock) -> Iterator[Fleet]:
    """A Manager on the same database that waits for an SPM's look for a moment only."""
    with fleet_on(database_url, tmp_path, clock, question_patience_s=SHORT_PATIENCE) as made:
        yield made


def silent_job(fleet: Fleet, clock: FakeClock) -> JobView:
    """Return a job whose host has answered neither its pivot nor the probe."""
    job = fleet.create(name="n")
    fleet.answer(created(fleet.last()))
    for seconds in (200, 60):
        clock.advance(seconds)
        fleet.timers.sweep()
    shown = fleet.service.show_job(job.id)
    assert shown.state == "awaiting_host"
    return shown


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(RequestRefused) as error:
        act()
    assert error.value.hint
    return error.value.code


def leaf(fleet: Fleet) -> str:
    with fleet.database.read() as connection:
        return str(connection.execute(select(disks.c.leaf_volume_id)).scalar_one())


def volume_states(fleet: Fleet) -> dict[str, str]:
    with fleet.database.read() as connection:
        return {row.id: row.state for row in connection.execute(select(volumes.c.id, volumes.c.state))}


def count_open(fleet: Fleet) -> int:
    with fleet.database.read() as connection:
        return len(connection.execute(select(outbox.c.step_id).where(outbox.c.closed_at.is_(None))).all())


# ---- the host was rebooted -----------------------------------------------------------------------------------------


def test_a_silent_host_is_named_with_its_last_sign_of_life(fleet: Fleet, clock: FakeClock) -> None:
    seen = clock.now()
    job = silent_job(fleet, clock)
    assert job.waiting_for.startswith(f"host h1, last heard at {seen:%Y-%m-%d %H:%M:%S} UTC: host h1 did not answer")
    assert job.error is not None
    assert job.error.code == "host_unreachable"
    assert refusal_of_another(fleet) == "vm_busy"


def refusal_of_another(fleet: Fleet) -> str:
    return refused(fleet.create)


def test_the_word_asks_again_and_does_nothing_else(fleet: Fleet, clock: FakeClock) -> None:
    job = silent_job(fleet, clock)
    before = leaf(fleet), volume_states(fleet)
    asked = fleet.last()

    resolved = fleet.service.resolve_job(job.id, host_was_rebooted=True)

    assert resolved.state == "awaiting_host"
    assert "host h1 was rebooted" in resolved.timeline[-1].detail
    probe = fleet.last()
    assert isinstance(probe.body, Probe)
    assert (probe.to, probe.attempt > asked.attempt) == ("host.h1", True)
    assert (leaf(fleet), volume_states(fleet)) == before
    assert refusal_of_another(fleet) == "vm_busy"
    fleet.answer(observed(Outcome.ALL_NEW))
    assert fleet.service.show_job(job.id).state == "completed"


def test_the_word_does_not_put_another_hosts_answer_in_its_place(fleet: Fleet, clock: FakeClock) -> None:
    """The vm was started on h2, on its old leaf. That says nothing about what h1 has in its definitions."""
    job = silent_job(fleet, clock)
    fleet.report_host(vm(), host=H2)
    fleet.service.resolve_job(job.id, host_was_rebooted=True)
    assert fleet.last().to == "host.h1"
    fleet.answer(observed(Outcome.NOT_HERE))
    assert fleet.last().to == "host.h2"
    fleet.answer(observed(Outcome.NONE))
    assert isinstance(fleet.last().body, DeleteVolumes)


def test_the_word_is_refused_while_the_host_holds_its_lock(fleet: Fleet, clock: FakeClock) -> None:
    job = silent_job(fleet, clock)
    fleet.held_locks = {H1}
    version = fleet.service.job_moment(job.id).version
    assert refused(lambda: fleet.service.resolve_job(job.id, host_was_rebooted=True)) == "host_alive"
    assert fleet.service.job_moment(job.id).version == version
    assert fleet.service.resolve_job(job.id).state == "awaiting_host"  # merely to ask again is always allowed


def test_the_word_is_refused_where_nobody_could_look(impatient: Fleet, clock: FakeClock) -> None:
    job = silent_job(impatient, clock)
    impatient.held_locks = None
    assert refused(lambda: impatient.service.resolve_job(job.id, host_was_rebooted=True)) == "spm_unreachable"
    impatient.broker_is_up = False
    assert refused(lambda: impatient.service.resolve_job(job.id, host_was_rebooted=True)) == "spm_unreachable"
    with impatient.database.read() as connection:
        assert connection.execute(select(checks)).all() == []


def test_an_answer_that_nobody_waits_for_any_more_is_worth_nothing(impatient: Fleet, clock: FakeClock) -> None:
    """A stopped SPM that goes on hours later cannot vouch for what it saw then."""
    job = silent_job(impatient, clock)
    impatient.held_locks = None
    refused(lambda: impatient.service.resolve_job(job.id, host_was_rebooted=True))
    late = impatient.last()
    impatient.held_locks = set()
    impatient.publish("spm.default", "spm.inspect_host", impatient.sent[-1][1], "")  # it comes through now
    impatient.held_locks = {H1}
    assert refused(lambda: impatient.service.resolve_job(job.id, host_was_rebooted=True)) == "host_alive"
    assert late.step != impatient.last().step


# ---- the host never comes back -------------------------------------------------------------------------------------


def test_a_lost_hosts_job_ends_and_its_volumes_stay(keyed: Fleet, clock: FakeClock) -> None:
    job = silent_job(keyed, clock)
    (create, *_) = keyed.commands()

    removed = keyed.service.remove_host("h1")

    assert (removed.vms, removed.jobs) == (("web1",), (job.id,))
    over = keyed.service.show_job(job.id)
    assert (over.state, over.waiting_for, over.finished_at) == ("host_lost", "", clock.now())
    assert over.error is not None
    assert (over.error.code, bool(over.error.hint)) == ("host_lost", True)
    new = create.body.disks[0].new  # type: ignore[union-attr]
    assert leaf(keyed) == new.volume_id
    assert set(volume_states(keyed).values()) == {"exists"}
    (snapshot,) = keyed.service.list_snapshots("web1")
    assert (snapshot.state, snapshot.consistency, snapshot.consistency_reason) == ("ok", "crash", "host_lost")
    assert keyed.removed_queues == ["host.h1"]
    assert count_open(keyed) == 0
    assert not any(isinstance(command.body, DeleteVolumes) for command in keyed.commands())


def test_a_lost_hosts_machine_is_shown_with_the_volumes_to_start_it_from(keyed: Fleet, clock: FakeClock) -> None:
    silent_job(keyed, clock)
    new = keyed.commands()[0].body.disks[0].new  # type: ignore[union-attr]
    keyed.service.remove_host("h1")
    shown = keyed.service.show_vm("web1")
    assert (shown.host, shown.problem) == (None, "vm_no_host")
    assert [(each.target, each.path) for each in shown.disks] == [("vda", f"/srv/images/{new.path}")]
    assert [layer.path for layer in shown.disks[0].chain] == ["base.qcow2", "web1.qcow2", new.path]


def test_a_lost_hosts_machine_is_snapshotted_where_it_is_started_next(keyed: Fleet, clock: FakeClock) -> None:
    silent_job(keyed, clock)
    new = keyed.commands()[0].body.disks[0].new  # type: ignore[union-attr]
    keyed.service.remove_host("h1")
    keyed.report_host(vm("web1", disk(new.path)), host=H2)
    job = keyed.create(name="two")
    assert keyed.last().body.disks[0].old == new  # type: ignore[union-attr]
    assert keyed.complete(job).state == "completed"
    assert keyed.commands()[-1].to == "host.h2"


def test_a_machine_started_from_its_old_volume_is_alarmed_about(keyed: Fleet, clock: FakeClock) -> None:
    """The new volume may hold what the machine wrote last: going on below it must not pass unnoticed."""
    silent_job(keyed, clock)
    keyed.service.remove_host("h1")
    keyed.report_host(vm(), host=H2)
    assert keyed.service.show_vm("web1").problem == "vm_off_chain"
    assert refused(keyed.create) == "vm_off_chain"


def test_a_removed_host_is_refused_until_it_has_a_new_key(keyed: Fleet, tmp_path: Path) -> None:
    keyed.service.remove_host("h1")
    assert keyed.service.list_hosts() == []
    assert (tmp_path / "host.h1.pub").exists() is False
    keyed.report_host(vm())
    keyed.report_host(vm(), incarnation="after its reboot")
    assert keyed.service.list_hosts() == []
    assert keyed.service.list_vms() == []

    write_public(tmp_path, SigningKey.generate(tmp_path / "h1-new.key", "host.h1"))
    keyed.report_host(vm())
    assert [host.id for host in keyed.service.list_hosts()] == ["h1"]
    assert keyed.service.show_vm("web1").host == "h1"


def test_a_manager_elsewhere_revokes_the_key_too(keyed: Fleet, tmp_path: Path) -> None:
    """Each Manager's machine has its own folder of keys; the one that removed the host could reach only that."""
    key = (tmp_path / "host.h1.pub").read_text()
    keyed.service.remove_host("h1")
    (tmp_path / "host.h1.pub").write_text(key)
    keyed.report_host(vm(), incarnation="after its reboot")
    assert keyed.service.list_hosts() == []
    assert not (tmp_path / "host.h1.pub").exists()


def test_removal_is_refused_while_the_host_holds_its_lock(keyed: Fleet, clock: FakeClock, tmp_path: Path) -> None:
    job = silent_job(keyed, clock)
    keyed.held_locks = {H1}
    assert refused(lambda: keyed.service.remove_host("h1")) == "host_alive"
    assert (tmp_path / "host.h1.pub").exists()
    assert keyed.service.show_job(job.id).state == "awaiting_host"
    assert [host.id for host in keyed.service.list_hosts()] == ["h1"]
    assert keyed.removed_queues == []


def test_removal_is_refused_where_nobody_could_look_or_nobody_has_the_key(
    impatient: Fleet, fleet: Fleet, tmp_path: Path
) -> None:
    impatient.held_locks = None
    assert refused(lambda: impatient.service.remove_host("h1")) == "spm_unreachable"
    assert refused(lambda: impatient.service.remove_host("h9")) == "host_not_found"
    (tmp_path / "host.h1.pub").unlink()
    with pytest.raises(LivesnapError) as error:
        fleet.service.remove_host("h1")
    assert error.value.code == "settings_invalid"
    assert [host.id for host in fleet.service.list_hosts()] == ["h1"]


def test_a_lock_is_looked_for_wherever_it_may_be(keyed: Fleet, impatient: Fleet) -> None:
    """A storage domain that the host could not read when it reported last may still carry its lock."""
    impatient.held_locks = None
    keyed.report_host(vm(), storage_domains=(mount(storage_domain_id=None, problem="not mounted"),))
    assert refused(lambda: impatient.service.remove_host("h1")) == "spm_unreachable"
    keyed.report_host(vm(), storage_domains=())
    assert impatient.service.remove_host("h1").id == "h1"


@pytest.mark.parametrize("how", ["repeated", "by its timer"])
def test_a_removal_that_died_half_way_is_finished(keyed: Fleet, clock: FakeClock, how: str) -> None:
    """It had shut the host out and recorded the loss, and had told no job."""
    job = silent_job(keyed, clock)
    with keyed.database.write() as connection:
        lost_hosts.remove(connection, H1, "", clock.now())
    if how == "repeated":
        assert keyed.service.remove_host("h1").jobs == (job.id,)
        assert keyed.service.remove_host("h1").jobs == ()
    else:
        clock.advance(100)
        keyed.timers.sweep()
    assert keyed.service.show_job(job.id).state == "host_lost"
    assert not keyed.conductor.apply(JobId(job.id), HostLost(host=H1))


@pytest.mark.parametrize("moment", ["creating", "pivoting", "deleting", "needs_operator"])
def test_a_host_lost_at_any_step(keyed: Fleet, moment: str) -> None:
    job = keyed.create()
    if moment != "creating":
        keyed.answer(created(keyed.last()))
    if moment == "deleting":
        keyed.answer(observed(Outcome.NONE))
    if moment == "needs_operator":
        keyed.answer(observed(Outcome.BAD, code="volume_not_writable"))
    keyed.service.remove_host("h1")
    if moment in ("creating", "deleting"):  # no pivot was sent, or the host had answered: the SPM alone ends these
        keyed.answer(deleted(keyed.last_command()), command=keyed.last_command())
    state = keyed.service.show_job(job.id).state
    assert state == ("rolled_back" if moment in ("creating", "deleting") else "host_lost")


def test_a_job_that_comes_to_need_the_lost_host_later_ends_too(keyed: Fleet, clock: FakeClock) -> None:
    """It was being rolled back when its host was lost, and one volume turned out to be in use."""
    job = keyed.create()
    keyed.answer(created(keyed.last()))
    keyed.answer(observed(Outcome.NONE))
    keyed.service.remove_host("h1")
    deletion = keyed.last_command()
    assert isinstance(deletion.body, DeleteVolumes)
    in_use = tuple(KeptVolume(volume_id=each.new.volume_id, why=Kept.IN_USE) for each in deletion.body.disks)
    keyed.answer(VolumesDeleted(gone=(), kept=in_use), command=deletion)
    assert keyed.service.show_job(job.id).state == "awaiting_host"
    clock.advance(timedelta(minutes=2).total_seconds())
    keyed.timers.sweep()
    assert keyed.service.show_job(job.id).state == "host_lost"
    assert keyed.last_command().to != "host.h1"
    with keyed.database.read() as connection:
        assert connection.execute(select(snapshots.c.state)).scalar_one() == "ok"


def test_nothing_is_lost_with_a_host_that_has_no_job(keyed: Fleet) -> None:
    keyed.report_host(vm("web1"), vm("web2", state=VmState.OFF))
    removed = keyed.service.remove_host("h1")
    assert (removed.vms, removed.jobs) == (("web1", "web2"), ())
