"""The label is earned by the whole receipt, never by a part of it."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.receipt import REASONS, Consistency, Receipt, label

PROVEN = Receipt(
    vm_state="running",
    quiesce=True,
    switched_at=datetime(2026, 11, 23, tzinfo=UTC),
    own_switch=True,
    freeze_sent=True,
    freeze_confirmed=True,
    frozen_filesystems=2,
    thaw_confirmed=True,
    thawed_filesystems=2,
)
SHORT_OF_IT: dict[str, dict[str, Any]] = {
    "switch_not_own": {"own_switch": False},
    "paused": {"vm_state": "paused"},
    "shutdown_unknown": {"vm_state": "off"},
    "not_quiesced": {"quiesce": False},
    "switch_late": {"switch_late": True, "guard_fired": True},
    "guard_fired": {"guard_fired": True},
    "nothing_frozen": {"frozen_filesystems": 0, "thawed_filesystems": 0},
    "thaw_not_confirmed": {"thaw_confirmed": False},
    "thaw_count_differs": {"thawed_filesystems": 1},
}


def test_the_whole_receipt_earns_the_label() -> None:
    assert label(PROVEN) == (Consistency.FILESYSTEM, "")


@pytest.mark.parametrize("reason", SHORT_OF_IT)
def test_one_thing_missing_costs_it_with_its_reason(reason: str) -> None:
    assert label(replace(PROVEN, **SHORT_OF_IT[reason])) == (Consistency.CRASH, reason)


def test_no_receipt_no_label_and_every_reason_has_its_sentence() -> None:
    assert label(None) == (Consistency.CRASH, "receipt_lost")
    assert REASONS.keys() == {"receipt_lost", "host_lost", *SHORT_OF_IT}


RECEIPTS = st.builds(
    Receipt,
    vm_state=st.sampled_from(["running", "paused", "off"]),
    quiesce=st.booleans(),
    switched_at=st.just(PROVEN.switched_at),
    own_switch=st.booleans(),
    frozen_filesystems=st.integers(0, 2),
    thaw_confirmed=st.booleans(),
    thawed_filesystems=st.integers(0, 2),
    guard_fired=st.booleans(),
    clean_shutdown_seen=st.booleans(),
)


@given(RECEIPTS)
def test_a_label_is_never_better_than_what_was_seen(seen: Receipt) -> None:
    consistency, reason = label(seen)
    assert (reason == "") == (consistency is Consistency.FILESYSTEM)
    if consistency is Consistency.FILESYSTEM and seen.vm_state != "off":
        assert seen.own_switch
        assert seen.quiesce
        assert not seen.guard_fired
        assert seen.thaw_confirmed
        assert seen.frozen_filesystems == seen.thawed_filesystems >= 1
