"""The saga's stories of writes that fail after the switch: rolled back, given up, repeated, followed elsewhere."""

from common.messaging.messages import DeleteVolumes, Outcome, Repair
from manager.flows.base import Answered, ChainSettled, HostLost, ResolveRequested, SnapshotDropped, ToHost
from manager.flows.snapshot import advance
from manager.flows.snapshot_states import DeletingVolumes, HostGone, NeedsOperator, Probing, Repairing, RolledBack
from tests.unit.manager.flows.saga_kit import (
    H1,
    H2,
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


def test_a_first_write_that_failed_is_rolled_back_with_its_commit_receipt() -> None:
    answer = observed(Outcome.NONE_ROLLED_BACK, code="volume_not_writable")
    steps = tell(answered(created()), answered(answer), answered(deleted()))
    command = command_of(steps[2])
    assert isinstance(command, DeleteVolumes)
    assert command.committed == plan().new_volumes
    assert problem_of_last(steps) == "volume_not_writable"


def test_a_vm_that_can_write_nowhere_is_an_operators_matter_and_ends_once_it_can() -> None:
    stuck = answered(observed(Outcome.BAD, code="volume_not_writable"))
    back = answered(observed(Outcome.NONE_ROLLED_BACK, code="pivot_failed"))
    resolve = ResolveRequested(vm_host=H1)
    steps = tell(answered(created()), stuck, resolve, answered(observed(Outcome.BAD)), stuck, resolve, back)
    assert [type(step.state) for step in steps[2:]] == [
        *(NeedsOperator, Probing, Repairing),  # it was asked too early, and the repair has tried once more
        *(NeedsOperator, Probing, DeletingVolumes),
    ]
    assert [problem_of_last(steps[: at + 1]) for at in (2, 5)] == ["volume_not_writable"] * 2
    last = advance(steps[-1].state, answered(deleted())).state
    assert isinstance(last, RolledBack)
    assert (last.why.code, last.why.hint) == ("volume_not_writable", "")


def test_a_vm_that_moves_after_a_rollback_was_given_up_is_brought_back_where_it_is() -> None:
    """Its new host does not know that the previous volume holds later data; the saga does."""
    given_up = answered(observed(Outcome.BAD, code="volume_not_writable", commit_begun=True))
    gone = Answered(answer=observed(Outcome.NOT_HERE, commit_begun=True), vm_host=H2)
    all_new, back = (
        Answered(answer=answer, vm_host=H2)
        for answer in (observed(Outcome.ALL_NEW), observed(Outcome.NONE_ROLLED_BACK, commit_begun=True))
    )
    steps = tell(answered(created()), given_up, ResolveRequested(vm_host=H2), gone, all_new, back, answered(deleted()))
    assert [type(step.state) for step in steps[2:]] == [
        *(NeedsOperator, Probing, Probing, Repairing, DeletingVolumes, RolledBack),
    ]
    assert isinstance(steps[5].send, ToHost)
    assert (steps[5].send.host, steps[5].send.command) == (H2, Repair(vm_id=plan().vm, disks=plan().disks, undo=True))
    deletion = command_of(steps[6])
    assert isinstance(deletion, DeleteVolumes)
    assert deletion.committed == plan().new_volumes
    assert problem_of_last(steps) == "volume_not_writable"


def test_a_commit_whose_host_died_before_it_answered_is_heard_of_when_it_is_back() -> None:
    gone = Answered(answer=observed(Outcome.NOT_HERE, commit_begun=True), vm_host=H2)
    steps = tell(answered(created()), *SILENT, gone, Answered(answer=observed(Outcome.ALL_NEW), vm_host=H2))
    assert isinstance(steps[-1].state, Repairing)
    assert steps[-1].state.undo
    stays = advance(steps[-1].state, Answered(answer=observed(Outcome.ALL_NEW), vm_host=H2)).state
    assert isinstance(stays, NeedsOperator)
    assert (stays.why.code, stays.why.message.count("may hold later data")) == ("host_unreachable", 1)
    assert "could not be brought back" in stays.why.message


def test_a_host_that_is_lost_after_it_began_to_commit_leaves_no_snapshot() -> None:
    begun = answered(observed(Outcome.BAD, code="volume_not_writable", commit_begun=True))
    steps = tell(answered(created()), begun, HostLost(host=H1, standing=plan().new_volumes))
    assert isinstance(steps[-1].state, HostGone)
    assert [type(record) for record in steps[-1].records] == [ChainSettled, SnapshotDropped]


def test_a_repair_that_has_met_the_failure_says_so() -> None:
    back = answered(observed(Outcome.NONE_ROLLED_BACK, code="volume_not_writable"))
    paused = answered(observed(Outcome.BAD, code="vm_paused_io_error"))
    steps = tell(answered(created()), paused, back, answered(deleted()))
    assert problem_of_last(steps) == "volume_not_writable"
