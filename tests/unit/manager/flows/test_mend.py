"""The flow of a repair: every reachable state with every event, held against what may never happen."""

from collections import deque
from dataclasses import replace
from functools import cache

import pytest

from common.ids import HostId, PoolId, SnapshotId, VmId, VolumeId, derived_id, disk_id
from common.messaging.messages import (
    Adoption,
    AdoptVolumes,
    Answer,
    DeleteVolumes,
    DiskSwitch,
    Failed,
    Kept,
    KeptVolume,
    LeavesObserved,
    Outcome,
    Probe,
    Refusal,
    Refused,
    Repair,
    VolumeFound,
    VolumesDeleted,
    VolumesInspected,
)
from manager.flows.base import (
    Answered,
    CancelRequested,
    ChainSettled,
    Event,
    HostLost,
    Next,
    ResolveRequested,
    SnapshotDropped,
    SnapshotFound,
    Started,
    TimedOut,
    ToHost,
    ToSpm,
    VolumesGone,
    VolumesMade,
)
from manager.flows.mend import advance
from manager.flows.mend_states import (
    Asking,
    Found,
    GivenUp,
    Mended,
    NeedsOperator,
    Plan,
    State,
    begin,
    is_over,
    problem_of,
)
from tests.unit.manager.doctor.scene import volume

H1, H2 = HostId("h1"), HostId("h2")
VM = VmId(derived_id("vm"))
SNAPSHOT = SnapshotId(derived_id("snapshot"))
SWITCH = DiskSwitch(target="vda", disk_id=disk_id(VM, "vda"), old=volume("old"), new=volume("new"))
BARE = Plan(vm=VM, pool=PoolId("default"), what="mend it")
ADOPTION = replace(
    BARE,
    hosts=(H1,),
    disks=(SWITCH,),
    want="on_new",
    adopt=(Adoption(volume=SWITCH.new, disk_id=SWITCH.disk_id, parent=SWITCH.old, snapshot_id=SNAPSHOT),),
    found=(Found(snapshot=SNAPSHOT, reason="found"),),
    leaves=((SWITCH.disk_id, SWITCH.new.volume_id),),
)
REMOVAL = replace(BARE, hosts=(H2, H1), disks=(SWITCH,), want="off_new", delete=(SWITCH,))
BACK = replace(REMOVAL, commit_back=True)
MARK = replace(BARE, adopt=ADOPTION.adopt)
THAW = replace(BARE, hosts=(H1,))
LOST = replace(
    BARE,
    lost=(VolumeFound(volume=SWITCH.new, disk_id=SWITCH.disk_id, parent_id=None, size_bytes=1),),
    replaced=(VolumeId(derived_id("other")),),
    leaves=ADOPTION.leaves,
    found=ADOPTION.found,
)
PLANS = {"adopt": ADOPTION, "remove": REMOVAL, "back": BACK, "mark": MARK, "thaw": THAW, "lost": LOST}

SEEN = {outcome: LeavesObserved(outcome=outcome, boot_id="b", runtime_id="r", message="so") for outcome in Outcome}
ADOPTED = VolumesInspected(found=LOST.lost)
GONE = VolumesDeleted(gone=(SWITCH.new.volume_id,))
KEPT = VolumesDeleted(gone=(), kept=(KeptVolume(volume_id=SWITCH.new.volume_id, why=Kept.IN_USE),))
REFUSED = {why: Refused(why=why, message="no") for why in Refusal}
ANSWERS: tuple[Answer, ...] = (
    *SEEN.values(),
    ADOPTED,
    GONE,
    KEPT,
    Failed(code="header_refused", message="no"),
    *REFUSED.values(),
)
EVENTS: tuple[Event, ...] = (
    Started(),
    TimedOut(),
    CancelRequested(),
    ResolveRequested(),
    HostLost(host=H1),
    HostLost(host=H2),
    *(Answered(answer=answer) for answer in ANSWERS),
)
Edge = tuple[State, Event, Next[State]]


@cache
def edges(name: str) -> list[Edge]:
    """Return every step that a plan can take, from any state that it can reach."""
    first = begin(PLANS[name])
    seen, waiting, found = {first}, deque([first]), []
    while waiting:
        state = waiting.popleft()
        for event in EVENTS:
            following = advance(state, event)
            found.append((state, event, following))
            plain = _plain(following.state)
            if plain not in seen:
                seen.add(plain)
                waiting.append(plain)
    return found


def _plain(state: State) -> State:
    """Forget the words of a reason: no decision depends on them."""
    why = problem_of(state)
    return state if why is None else replace(state, why=replace(why, code="x", message="x", hint=""))  # type: ignore[arg-type]


def told(name: str, *answers: Answer) -> State:
    """Return where a plan ends up after these answers."""
    state = advance(begin(PLANS[name]), Started()).state
    for answer in answers:
        state = advance(state, Answered(answer=answer)).state
    return state


@pytest.mark.parametrize("name", PLANS)
def test_every_state_ends_or_waits_for_something(name: str) -> None:
    for state, _, following in edges(name):
        if following.state == state and following.send is None:
            continue  # ignored: what was waited for still is
        waits = following.send is not None or following.wake_after is not None
        assert is_over(following.state) or isinstance(following.state, NeedsOperator) or waits


@pytest.mark.parametrize("name", PLANS)
def test_a_volume_is_deleted_only_after_the_last_host_has_proven_it(name: str) -> None:
    for state, event, following in edges(name):
        if following.send is None or not isinstance(following.send.command, DeleteVolumes):
            continue
        assert isinstance(following.send, ToSpm)
        assert following.send.command.disks == PLANS[name].delete
        if isinstance(state, Asking):
            assert state.ahead == (H1,), "a host was not asked"
            assert isinstance(event, Answered)
            assert isinstance(event.answer, LeavesObserved)
            rolled_back = event.answer.outcome is Outcome.NONE_ROLLED_BACK
            assert event.answer.outcome in (Outcome.NONE, Outcome.NONE_NO_AGENT, Outcome.NOT_HERE) or rolled_back
            assert following.send.command.committed == ((SWITCH.new.volume_id,) if rolled_back else ())


@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_adopted_that_the_machine_was_not_proven_to_be_on(name: str) -> None:
    for state, event, following in edges(name):
        if (
            following.send is not None
            and isinstance(following.send.command, AdoptVolumes)
            and isinstance(state, Asking)
        ):
            assert isinstance(event, Answered)
            assert event.answer == SEEN[Outcome.ALL_NEW]


@pytest.mark.parametrize("name", PLANS)
def test_a_snapshot_goes_on_record_or_is_dropped_with_the_end(name: str) -> None:
    wanted = {each.snapshot for each in PLANS[name].found}
    for state, _, following in edges(name):
        found = {each.snapshot for each in following.records if isinstance(each, SnapshotFound)}
        dropped = {each.snapshot for each in following.records if isinstance(each, SnapshotDropped)}
        ends = following.state != state
        assert found == (wanted if isinstance(following.state, Mended) and ends else set())
        assert dropped == (wanted if isinstance(following.state, GivenUp) and ends else set())


def test_a_commit_that_may_be_half_way_is_never_given_up() -> None:
    for state, event, following in edges("back"):
        if isinstance(state, Asking) and len(state.ahead) == 1 and isinstance(following.state, GivenUp):
            if event == HostLost(host=H1):
                continue  # nobody is left who could end it
            assert isinstance(event, Answered)
            assert isinstance(event.answer, LeavesObserved)
            assert event.answer.outcome not in (Outcome.BAD, Outcome.UNKNOWN)


@pytest.mark.parametrize("name", PLANS)
def test_a_lost_host_ends_what_waits_for_it_and_nothing_is_deleted_for_it(name: str) -> None:
    for state, event, following in edges(name):
        if not isinstance(event, HostLost):
            continue
        waits = (isinstance(state, Asking) and event.host in state.ahead) or (
            isinstance(state, NeedsOperator) and event.host == state.host
        )
        assert following.send is None
        assert (following.state != state) == waits
        if waits:
            assert isinstance(following.state, GivenUp)
            assert following.state.why.code == "host_lost"


def test_the_machines_own_host_is_asked_last_and_only_it_commits() -> None:
    first = advance(begin(BACK), Started())
    second = advance(first.state, Answered(answer=SEEN[Outcome.NOT_HERE]))
    assert isinstance(first.send, ToHost)
    assert isinstance(second.send, ToHost)
    assert (first.send.host, type(first.send.command)) == (H2, Probe)
    assert (second.send.host, type(second.send.command)) == (H1, Repair)


def test_the_straight_ways() -> None:
    assert isinstance(told("adopt", SEEN[Outcome.ALL_NEW], ADOPTED), Mended)
    assert isinstance(told("remove", SEEN[Outcome.NOT_HERE], SEEN[Outcome.NONE], GONE), Mended)
    assert isinstance(told("back", SEEN[Outcome.NOT_HERE], SEEN[Outcome.NONE_ROLLED_BACK], GONE), Mended)
    assert isinstance(told("mark", ADOPTED), Mended)
    assert isinstance(told("thaw", SEEN[Outcome.NONE]), Mended)
    assert isinstance(told("lost"), Mended)


def test_what_is_not_as_planned_ends_it_with_the_reason() -> None:
    left = told("adopt", SEEN[Outcome.NONE])
    assert isinstance(left, GivenUp)
    assert "none" in left.why.message
    assert isinstance(told("remove", SEEN[Outcome.ALL_NEW]), GivenUp)
    kept = told("remove", SEEN[Outcome.NOT_HERE], SEEN[Outcome.NONE], KEPT)
    assert isinstance(kept, GivenUp)
    assert "in_use" in kept.why.message


def test_what_is_recorded() -> None:
    state = advance(advance(begin(ADOPTION), Started()).state, Answered(answer=SEEN[Outcome.ALL_NEW])).state
    assert advance(state, Answered(answer=ADOPTED)).records == (
        VolumesMade(volumes=ADOPTED.found),
        SnapshotFound(snapshot=SNAPSHOT, reason="found"),
        ChainSettled(vm=VM, leaves=ADOPTION.leaves),
    )
    assert advance(begin(LOST), Started()).records == (
        VolumesMade(volumes=LOST.lost),
        VolumesGone(volumes=LOST.replaced),
        SnapshotFound(snapshot=SNAPSHOT, reason="found"),
        ChainSettled(vm=VM, leaves=LOST.leaves),
    )


def test_a_silent_host_ends_a_question_and_not_a_commit() -> None:
    asking = advance(begin(ADOPTION), Started()).state
    assert isinstance(advance(asking, TimedOut()).state, GivenUp)
    committing = advance(advance(begin(BACK), Started()).state, Answered(answer=SEEN[Outcome.NONE])).state
    again = advance(committing, TimedOut())
    assert again.wake_after is not None
    assert isinstance(again.state, Asking)
    once_more = advance(again.state, TimedOut())
    assert isinstance(once_more.send, ToHost)
    stuck = advance(once_more.state, TimedOut()).state
    assert isinstance(stuck, NeedsOperator)
    resolved = advance(stuck, ResolveRequested())
    assert isinstance(resolved.send, ToHost)
    assert resolved.send.host == H2
