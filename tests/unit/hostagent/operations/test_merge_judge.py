"""How far a merge is, from every combination of what can be seen."""

from dataclasses import replace

import pytest

from common.messaging.merging import MergeState, Way, furthest
from hostagent.operations.merge_judge import Job, MergeFacts, Spot, judge

BOOLS = (False, True)
EVERY = [
    MergeFacts(
        way=way,
        leaf=leaf,
        active=active,
        live=live if active else Spot.NEITHER,
        persistent=persistent,
        persistent_on_top=on_top,
        locked=locked,
        job=job if active else Job.NONE,
        begun=begun,
        empty=empty,
        lifted=lifted,
        managed_save=saved and not active,
    )
    for way in Way
    for leaf in BOOLS
    for active in BOOLS
    for live in Spot
    for persistent in Spot
    for on_top in BOOLS
    for locked in BOOLS
    for job in Job
    for begun in BOOLS
    for empty in BOOLS
    for lifted in BOOLS
    for saved in BOOLS
    if (not on_top or persistent in (Spot.BOTH, Spot.ODD)) and not (leaf and way is not Way.CHAIN)
]


def facts(**seen: object) -> MergeFacts:
    """Return a running machine that writes to `top`, with a commit of this job, unless said otherwise."""
    usual: dict[str, object] = {
        "way": Way.CHAIN,
        "leaf": True,
        "active": True,
        "live": Spot.BOTH,
        "persistent": Spot.BOTH,
        "persistent_on_top": True,
        "locked": True,
        "begun": True,
    }
    return MergeFacts(**{**usual, **seen})  # type: ignore[arg-type]


def test_a_definition_that_names_its_leaf_oddly_is_set_right_once_the_merge_is_done() -> None:
    """The name leads through a folder that goes when its last volume does."""
    done = facts(live=Spot.BASE, persistent=Spot.BASE, persistent_on_top=False, locked=False, oddly_named=True)
    assert done.is_to_redefine
    assert not replace(done, managed_save=True).is_to_redefine
    assert not replace(done, live=Spot.BOTH).is_to_redefine
    assert not replace(done, oddly_named=False).is_to_redefine


def test_merged_is_claimed_only_where_the_top_is_nowhere_and_its_data_is_known_to_be_below() -> None:
    claimed = [seen for seen in EVERY if judge(seen)[0] is MergeState.MERGED]
    assert claimed
    for seen in claimed:
        assert seen.live in (Spot.BASE, Spot.NEITHER)
        assert seen.persistent in (Spot.BASE, Spot.NEITHER)
        assert not seen.locked
        assert not seen.managed_save
        assert seen.job is Job.NONE
        assert seen.way is Way.DISCARD or seen.empty or (seen.begun and seen.way is Way.CHAIN)


def test_only_what_is_done_is_redefined_and_never_a_saved_machine() -> None:
    for seen in EVERY:
        if seen.is_to_redefine:
            assert seen.live is not Spot.BOTH
            assert not seen.managed_save
            assert seen.way is Way.DISCARD or seen.empty or seen.begun


def test_cold_is_said_only_of_what_no_running_machine_here_has() -> None:
    for seen in EVERY:
        if judge(seen)[0] is MergeState.COLD:
            assert not (seen.active and seen.way is Way.CHAIN)
            assert seen.live in (Spot.BASE, Spot.NEITHER)


def test_a_machine_that_stopped_in_its_pivot_is_never_merged_by_anybody() -> None:
    """The upper volume may be the older one: to commit it would write over what the machine wrote last."""
    for seen in EVERY:
        torn = replace(seen, pivoting=True)
        if torn.is_torn:
            assert judge(torn)[0] is MergeState.IDLE
            assert not torn.is_to_redefine


def test_every_other_word_has_a_reason() -> None:
    for seen in EVERY:
        state, why = judge(seen)
        assert bool(why) == (state in (MergeState.IDLE, MergeState.UNKNOWN))


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (facts(job=Job.RUNNING), MergeState.RUNNING),
        (facts(job=Job.READY), MergeState.RUNNING),
        (facts(job=Job.FOREIGN), MergeState.IDLE),
        (facts(), MergeState.IDLE),
        (facts(live=Spot.BASE), MergeState.UNKNOWN),  # libvirt died before it changed the definition
        (facts(live=Spot.BASE, persistent=Spot.BASE, persistent_on_top=False), MergeState.UNKNOWN),  # a leaked node
        (facts(live=Spot.BASE, persistent=Spot.BASE, persistent_on_top=False, locked=False), MergeState.MERGED),
        (
            facts(live=Spot.BASE, persistent=Spot.BASE, persistent_on_top=False, locked=False, begun=False),
            MergeState.UNKNOWN,  # who has done that?
        ),
        (facts(active=False, live=Spot.NEITHER, locked=False), MergeState.COLD),
        (facts(active=False, live=Spot.NEITHER, locked=False, empty=True), MergeState.UNKNOWN),  # to be redefined
        (facts(active=False, live=Spot.NEITHER, managed_save=True), MergeState.IDLE),
        (facts(locked=False), MergeState.UNKNOWN),  # the live definition names what nobody has open
        (facts(active=False, live=Spot.NEITHER, locked=False, pivoting=True), MergeState.IDLE),  # torn
        (facts(pivoting=True), MergeState.IDLE),  # it runs, so it is seen where it writes
        (
            facts(
                active=False,
                live=Spot.NEITHER,
                persistent=Spot.BASE,
                persistent_on_top=False,
                locked=False,
                pivoting=True,
            ),
            MergeState.MERGED,  # libvirt had changed the definition, which it does after the pivot
        ),
    ],
)
def test_what_is_said(seen: MergeFacts, state: MergeState) -> None:
    assert judge(seen)[0] is state


def test_of_several_disks_the_one_that_must_be_seen_to_first_counts() -> None:
    assert furthest(()) is MergeState.MERGED
    assert furthest((MergeState.MERGED, MergeState.COLD)) is MergeState.COLD
    assert furthest((MergeState.COLD, MergeState.RUNNING)) is MergeState.RUNNING
    assert furthest((MergeState.RUNNING, MergeState.IDLE, MergeState.UNKNOWN)) is MergeState.UNKNOWN
