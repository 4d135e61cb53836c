"""Every combination of evidence, held against the claims of the outcomes that are made from it."""

from itertools import product

import pytest

from common.messaging.messages import Outcome
from hostagent.operations.judge import DiskFacts, Facts, Place, judge, reason, should_ask_qemu

CLEAR = {Place.OLD, Place.ELSEWHERE, Place.ABSENT}
DISKS = [
    DiskFacts(target="vda", live=live, persistent=persistent, new_is_locked=locked, qemu=qemu)
    for live, persistent, locked, qemu in product(Place, Place, (False, True), (None, *Place))
]
FLAGS = [
    dict(
        zip(
            ("here", "active", "io_error", "block_job", "managed_save", "commit_begun"),
            row,
            strict=True,
        )
    )
    for row in product((False, True), repeat=6)
]
NONE = (Outcome.NONE, Outcome.NONE_ROLLED_BACK)


def require_claims(facts: Facts, outcome: Outcome) -> None:
    """Raise unless everything that `outcome` claims is in the facts."""
    places = [place for disk in facts.disks for place in (disk.live, disk.persistent, disk.qemu) if place]
    definitions = {disk.persistent for disk in facts.disks}
    if outcome is Outcome.ALL_NEW:
        assert facts.here
        assert not facts.commit_begun
        if facts.active:
            assert {disk.live for disk in facts.disks} == {Place.NEW}
            assert {disk.qemu for disk in facts.disks} <= {Place.NEW, None}
            assert all(disk.new_is_locked or disk.qemu is Place.NEW for disk in facts.disks)
            assert definitions <= {Place.NEW, Place.ABSENT}
            assert not facts.io_error
            assert not facts.block_job
        else:
            assert definitions == {Place.NEW}
            assert not facts.managed_save
    elif outcome in NONE:
        assert facts.here
        assert definitions <= CLEAR
        if facts.active:
            assert set(places) <= CLEAR
            assert all(not disk.new_is_locked or disk.qemu is not None for disk in facts.disks)
        else:
            assert not any(disk.new_is_locked for disk in facts.disks)
        assert (outcome is Outcome.NONE_ROLLED_BACK) == facts.commit_begun
    elif outcome is Outcome.NOT_HERE:
        assert not facts.here or (not facts.active and definitions <= CLEAR)


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(name for name, is_set in flags.items() if is_set))
def test_one_disk_every_combination(flags: dict[str, bool]) -> None:
    for disk in DISKS:
        facts = Facts(disks=(disk,), **flags)
        outcome = judge(facts)
        require_claims(facts, outcome)
        if outcome is not Outcome.ALL_NEW:
            code, message = reason(facts)
            assert code
            assert message


def test_two_disks_every_combination() -> None:
    for first, second in product(DISKS, repeat=2):
        for active in (False, True):
            facts = Facts(here=True, active=active, disks=(first, second))
            require_claims(facts, judge(facts))


def test_the_judge_is_not_silent_where_it_could_speak() -> None:
    new = DiskFacts(target="vda", live=Place.NEW, persistent=Place.NEW, new_is_locked=True)
    old = DiskFacts(target="vdb", live=Place.OLD, persistent=Place.OLD, new_is_locked=False)
    assert judge(Facts(here=True, active=True, disks=(new, new))) is Outcome.ALL_NEW
    assert judge(Facts(here=True, active=True, disks=(old, old))) is Outcome.NONE
    assert judge(Facts(here=True, active=True, disks=(new, old))) is Outcome.BAD
    assert judge(Facts(here=True, active=False, disks=(old,))) is Outcome.NONE
    assert judge(Facts(here=False, active=False, disks=())) is Outcome.NOT_HERE


def test_qemu_is_asked_only_where_the_rest_disagrees() -> None:
    for disk in DISKS:
        facts = Facts(here=True, active=True, disks=(disk,))
        on_new = disk.live is Place.NEW and disk.new_is_locked and disk.persistent in (Place.NEW, Place.ABSENT)
        nowhere = {disk.live, disk.persistent} <= CLEAR and not disk.new_is_locked
        assert should_ask_qemu(facts) is not (on_new or nowhere)
        assert not should_ask_qemu(Facts(here=True, active=False, disks=(disk,)))


def test_what_a_commit_has_come_to_is_told_apart() -> None:
    new = DiskFacts(target="vda", live=Place.NEW, persistent=Place.NEW, new_is_locked=True)
    old = DiskFacts(target="vda", live=Place.OLD, persistent=Place.OLD, new_is_locked=False)
    back = Facts(here=True, active=True, disks=(old,), commit_begun=True)
    assert (judge(back), reason(back)[0]) == (Outcome.NONE_ROLLED_BACK, "pivot_failed")
    stuck = Facts(here=True, active=True, disks=(old,), commit_begun=True, io_error=True)
    assert (judge(stuck), reason(stuck)[0]) == (Outcome.BAD, "repair_failed")
    assert "on its previous volumes" in reason(stuck)[1]
    half_way = Facts(here=True, active=True, disks=(new,), commit_begun=True)
    assert (judge(half_way), reason(half_way)[0]) == (Outcome.BAD, "repair_failed")


def test_live_definition_that_lies_is_never_believed() -> None:
    """hypervisor.md H1: QEMU writes to the new leaf, both definitions say the old one; the lock gives it away."""
    lie = DiskFacts(target="vda", live=Place.OLD, persistent=Place.OLD, new_is_locked=True)
    facts = Facts(here=True, active=True, disks=(lie,))
    assert should_ask_qemu(facts)
    assert judge(facts) is Outcome.UNKNOWN
