"""The saga's stories, one a test: what follows what, told forward."""

from dataclasses import replace

import pytest

from common.error_codes import CATALOGUE
from common.messaging.messages import (
    CreateVolumes,
    DeleteVolumes,
    Failed,
    Kept,
    Outcome,
    Pivot,
    Probe,
    Refusal,
    Refused,
    Repair,
)
from common.receipt import Consistency, Receipt
from manager.flows.base import (
    Answered,
    CancelRequested,
    ChainSettled,
    HostLost,
    Next,
    ResolveRequested,
    SnapshotDropped,
    SnapshotTaken,
    TimedOut,
    ToHost,
    ToSpm,
    VolumesGone,
    VolumesMade,
)
from manager.flows.snapshot import advance
from manager.flows.snapshot_states import (
    HOLD_TRIES,
    MAX_TRIES,
    SHORT_PAUSE,
    AwaitingHost,
    Completed,
    DeletingVolumes,
    HostGone,
    NeedsOperator,
    Pivoting,
    Probing,
    QuiesceMode,
    RolledBack,
    State,
)
from tests.unit.manager.flows.saga_kit import (
    H1,
    H2,
    RECEIPT,
    SILENT,
    answered,
    command_of,
    created,
    deleted,
    observed,
    plan,
    problem_of_last,
    tell,
)


def test_a_quiesced_snapshot() -> None:
    create, pivot, done = tell(answered(created()), answered(observed(Outcome.ALL_NEW, receipt=RECEIPT)))
    assert isinstance(create.send, ToSpm)
    assert isinstance(create.send.command, CreateVolumes)
    assert isinstance(pivot.send, ToHost)
    assert isinstance(pivot.send.command, Pivot)
    assert pivot.send.command.quiesce
    assert pivot.records == (VolumesMade(volumes=created().created),)
    assert isinstance(done.state, Completed)
    (taken,) = done.records
    assert isinstance(taken, SnapshotTaken)
    assert taken.consistency is Consistency.FILESYSTEM
    assert taken.disks == plan().disks


@pytest.mark.parametrize(("mode", "again"), [("auto", True), ("best-effort", True), ("require", False)])
def test_without_an_agent(mode: QuiesceMode, again: bool) -> None:
    answer = observed(Outcome.NONE_NO_AGENT, code="guest_agent_missing")
    *_, last = tell(answered(created()), answered(answer), mode=mode)
    if again:
        command = command_of(last)
        assert isinstance(command, Pivot)
        assert not command.quiesce
    else:
        assert isinstance(command_of(last), DeleteVolumes)


@pytest.mark.parametrize(("mode", "again"), [("auto", False), ("best-effort", True), ("require", False)])
def test_a_freeze_that_fails(mode: QuiesceMode, again: bool) -> None:
    answer = observed(Outcome.NONE, code="freeze_failed")
    *_, last = tell(answered(created()), answered(answer), mode=mode)
    assert isinstance(command_of(last), Pivot if again else DeleteVolumes)


@pytest.mark.parametrize("mode", ["auto", "best-effort", "require", "never"])
def test_no_other_error_drops_the_quiescing(mode: QuiesceMode) -> None:
    """P4: whatever else a host says, its code alone causes no second pivot."""
    for code in CATALOGUE.keys() - {"freeze_failed"}:
        *_, last = tell(answered(created()), answered(observed(Outcome.NONE, code=code)), mode=mode)
        assert isinstance(command_of(last), DeleteVolumes), code


@pytest.mark.parametrize(
    "receipt",
    [None, replace(RECEIPT, guard_fired=True), replace(RECEIPT, thawed_filesystems=1)],
    ids=["lost", "guard fired", "counts differ"],
)
@pytest.mark.parametrize("mode", ["auto", "best-effort", "never"])
def test_what_is_not_proven_costs_the_label_only(mode: QuiesceMode, receipt: Receipt | None) -> None:
    *_, last = tell(answered(created()), answered(observed(Outcome.ALL_NEW, receipt=receipt)), mode=mode)
    (taken,) = last.records
    assert isinstance(taken, SnapshotTaken)
    assert taken.consistency is Consistency.CRASH


def test_what_was_required_and_is_not_proven_is_taken_back() -> None:
    unproven = answered(observed(Outcome.ALL_NEW, receipt=replace(RECEIPT, guard_fired=True)))
    back = answered(observed(Outcome.NONE_ROLLED_BACK, code="repair_failed"))
    steps = tell(answered(created()), unproven, back, answered(deleted()), mode="require")
    repair, delete = command_of(steps[2]), command_of(steps[3])
    assert isinstance(repair, Repair)
    assert repair.undo
    assert isinstance(delete, DeleteVolumes)
    assert delete.committed == plan().new_volumes
    assert problem_of_last(steps) == "quiesce_unproven"


def test_what_was_required_and_cannot_be_taken_back_is_an_operators_matter() -> None:
    """The vm was stopped meanwhile: its disks can come back only when it runs."""
    unproven = answered(observed(Outcome.ALL_NEW))
    steps = tell(answered(created()), unproven, unproven, mode="require")
    assert problem_of_last(steps) == "quiesce_unproven"
    asked = advance(steps[-1].state, ResolveRequested(vm_host=H1))
    assert isinstance(command_of(advance(asked.state, unproven)), Repair)


def test_never_mode_does_not_quiesce() -> None:
    *_, pivot = tell(answered(created()), mode="never")
    command = command_of(pivot)
    assert isinstance(command, Pivot)
    assert not command.quiesce


def test_an_unquiesced_second_pivot_is_the_last() -> None:
    no_agent = answered(observed(Outcome.NONE_NO_AGENT))
    *_, last = tell(answered(created()), no_agent, no_agent)
    assert isinstance(command_of(last), DeleteVolumes)


def test_full_storage_rolls_back_and_says_so() -> None:
    steps = tell(answered(Failed(code="storage_full", message="no room")), answered(deleted()))
    assert isinstance(command_of(steps[1]), DeleteVolumes)
    assert problem_of_last(steps) == "storage_full"
    assert steps[-1].records == (
        VolumesGone(volumes=plan().new_volumes),
        SnapshotDropped(snapshot=plan().snapshot),
    )


def test_a_timeout_asks_and_keeps_everything_until_the_host_answers() -> None:
    steps = tell(answered(created()), TimedOut(vm_host=H1), TimedOut(vm_host=H1), TimedOut(vm_host=H1))
    assert [type(command_of(step)) for step in (steps[2], steps[4])] == [Probe, Probe]
    assert isinstance(steps[3].state, AwaitingHost)
    late = advance(steps[-1].state, answered(observed(Outcome.ALL_NEW)))
    (taken,) = late.records
    assert isinstance(taken, SnapshotTaken)
    assert (taken.consistency, taken.reason) == (Consistency.CRASH, "receipt_lost")


def test_mixed_disks_are_repaired_once_more_and_then_shown() -> None:
    bad = answered(observed(Outcome.BAD))
    steps = tell(answered(created()), bad, bad, bad)
    assert [type(command_of(step)) for step in steps[2:4]] == [Repair, Repair]
    assert problem_of_last(steps) == "repair_failed"


def test_a_volume_in_use_is_asked_about_and_never_forced() -> None:
    none, in_use = answered(observed(Outcome.NONE)), answered(deleted(Kept.IN_USE))
    steps = tell(answered(created()), none, in_use, TimedOut(vm_host=H1), none, in_use)
    assert isinstance(steps[3].state, AwaitingHost)
    assert isinstance(command_of(steps[4]), Probe)
    state, rounds = steps[-1].state, 0
    while not isinstance(state, NeedsOperator):
        for event in (TimedOut(vm_host=H1), none, in_use):
            state = advance(state, event).state
        rounds += 1
        assert rounds <= MAX_TRIES
    assert state.why.code == "volume_in_use"


def test_a_deletion_waits_until_some_hosts_agent_proves_that_locks_work() -> None:
    none, unproven = answered(observed(Outcome.NONE)), answered(deleted(Kept.LOCKING_UNPROVEN))
    *_, asked, waiting, again, over = tell(answered(created()), none, unproven, TimedOut(), answered(deleted()))
    assert isinstance(command_of(asked), DeleteVolumes)
    assert isinstance(waiting.state, DeletingVolumes)
    assert (waiting.send, waiting.wake_after) == (None, SHORT_PAUSE)
    assert "locking_unproven" in waiting.detail
    assert command_of(again) == command_of(asked)
    assert isinstance(over.state, RolledBack)


def test_a_deletion_that_never_finds_locks_working_is_an_operators_matter() -> None:
    unproven = answered(deleted(Kept.LOCKING_UNPROVEN))
    waiting = tell(answered(created()), answered(observed(Outcome.NONE)))[-1].state
    for _ in range(HOLD_TRIES):
        waiting = advance(waiting, unproven).state
        assert isinstance(waiting, DeletingVolumes)
    stuck = advance(waiting, unproven).state
    assert isinstance(stuck, NeedsOperator)
    assert stuck.why.code == "locking_unproven"


def test_a_volume_that_holds_data_is_an_operators_matter() -> None:
    steps = tell(answered(created()), answered(observed(Outcome.NONE)), answered(deleted(Kept.NOT_EMPTY)))
    assert problem_of_last(steps) == "volume_not_empty"
    again = advance(steps[-1].state, ResolveRequested(vm_host=H1))
    assert isinstance(command_of(again), Probe)


def test_a_vm_that_moved_is_followed() -> None:
    steps = tell(answered(created()), Answered(answer=observed(Outcome.NOT_HERE), vm_host=H2))
    assert isinstance(steps[-1].send, ToHost)
    assert steps[-1].send.host == H2
    assert isinstance(steps[-1].send.command, Pivot)


def test_a_vm_that_vanished_is_rolled_back_as_not_found() -> None:
    gone = Answered(answer=observed(Outcome.NOT_HERE), vm_host=None)
    state: State = tell(answered(created()))[-1].state
    for _ in range(10):
        step = advance(state, gone if isinstance(state, Pivoting) else TimedOut())
        state = step.state
        if isinstance(state, DeletingVolumes):
            break
    assert isinstance(state, DeletingVolumes)
    assert state.why.code == "vm_not_found"


def test_libvirt_away_holds_the_pivot_and_names_the_host() -> None:
    refused = answered(Refused(why=Refusal.NOT_READY, message="libvirt is not connected"))
    steps = tell(answered(created()), refused, TimedOut(vm_host=H1))
    assert steps[2].send is None
    assert steps[2].wake_after is not None
    assert "h1" in steps[2].detail
    assert isinstance(command_of(steps[3]), Pivot)


def test_cancel_before_and_after_the_pivot() -> None:
    early = tell(CancelRequested(), answered(deleted()))
    assert isinstance(command_of(early[1]), DeleteVolumes)
    assert problem_of_last(early) == "job_cancelled"
    late = tell(answered(created()), CancelRequested())
    assert isinstance(command_of(late[-1]), Probe)
    done = advance(late[-1].state, answered(observed(Outcome.ALL_NEW, receipt=replace(RECEIPT))))
    assert isinstance(done.state, Completed)


def test_a_lost_host_answer_after_completion_changes_nothing() -> None:
    steps = tell(answered(created()), answered(observed(Outcome.ALL_NEW)))
    again = advance(steps[-1].state, answered(observed(Outcome.NONE)))
    assert again == Next(state=steps[-1].state)


def test_busy_is_no_answer() -> None:
    steps = tell(answered(created()))
    again = advance(steps[-1].state, answered(Refused(why=Refusal.BUSY, message="another handler has it")))
    assert again == Next(state=steps[-1].state)


def test_a_rebooted_host_is_asked_again_and_its_answer_decides() -> None:
    word = ResolveRequested(vm_host=H2, host_was_rebooted=True)
    steps = tell(answered(created()), *SILENT, word, answered(observed(Outcome.ALL_NEW)))
    assert isinstance(steps[4].state, AwaitingHost)
    assert isinstance(steps[4].send, ToHost)
    assert steps[4].send.host == H1, "the vm was started elsewhere: no answer of that host fences this one"
    assert "h1 was rebooted" in steps[4].detail
    assert isinstance(steps[5].state, Completed)


def test_an_operators_matter_goes_on_where_it_was_left_and_not_where_the_vm_is_now() -> None:
    steps = tell(answered(created()), answered(observed(Outcome.NONE)), answered(deleted(Kept.NOT_EMPTY)))
    again = advance(steps[-1].state, ResolveRequested(vm_host=H2))
    assert isinstance(again.send, ToHost)
    assert again.send.host == H1
    followed = advance(again.state, Answered(answer=observed(Outcome.NOT_HERE), vm_host=H2))
    assert isinstance(followed.state, Probing)
    assert followed.state.host == H2


def test_a_lost_hosts_snapshot_is_kept_and_says_how_little_is_known() -> None:
    *_, over = tell(answered(created()), *SILENT, HostLost(host=H1, standing=plan().new_volumes))
    assert isinstance(over.state, HostGone)
    (taken,) = over.records
    assert isinstance(taken, SnapshotTaken)
    assert (taken.consistency, taken.reason) == (Consistency.CRASH, "host_lost")
    assert [disk.new.volume_id for disk in taken.disks] == list(plan().new_volumes)
    assert taken.observed.outcome is Outcome.UNKNOWN
    late = advance(over.state, answered(observed(Outcome.NONE)))
    assert late == Next(state=over.state)


def test_a_lost_hosts_half_deleted_volumes_are_no_snapshot_but_what_is_left_is_the_leaf() -> None:
    kept = plan().new_volumes[1]
    none, not_empty = answered(observed(Outcome.NONE)), answered(deleted(Kept.NOT_EMPTY))
    *_, over = tell(answered(created()), none, not_empty, HostLost(host=H1, standing=(kept,)))
    assert isinstance(over.state, HostGone)
    moved = ChainSettled(vm=plan().vm, leaves=((plan().disks[1].disk_id, kept),))
    assert over.records == (moved, SnapshotDropped(snapshot=plan().snapshot))


def test_a_host_lost_before_any_pivot_costs_the_snapshot_only() -> None:
    steps = tell(HostLost(host=H1), answered(deleted()))
    assert isinstance(command_of(steps[1]), DeleteVolumes)
    assert problem_of_last(steps) == "host_lost"


def test_a_host_lost_while_its_volumes_are_deleted_changes_nothing() -> None:
    steps = tell(answered(created()), answered(observed(Outcome.NONE)), HostLost(host=H1))
    assert steps[-1] == Next(state=steps[-2].state)
