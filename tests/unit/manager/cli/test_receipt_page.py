"""The receipt's page says in words what the document says in fields, also where the host's word was lost."""

from dataclasses import fields
from typing import Any

import pytest

from common.receipt import REASONS, Receipt
from manager.cli.receipt_page import receipt

NEW = "images/0a/1b.qcow2"
DISK: dict[str, Any] = {
    "target": "vda",
    "previous": {"volume_id": "0", "storage_domain": "main", "path": "web1.qcow2"},
    "new": {"volume_id": "1", "storage_domain": "main", "path": NEW},
    "routing": {
        "live_definition": f"/srv/{NEW}",
        "persistent_definition": "/srv/web1.qcow2",
        "new_is_locked": True,
        "qemu_was_asked": False,
        "qemu": "",
    },
    "first_write_bytes": 393216,
}
QUIESCED: dict[str, Any] = {
    "consistency": "filesystem",
    "consistency_reason": "",
    "quiesce_mode": "auto",
    "host": "h1",
    "vm_state": "running",
    "switched_at": "2026-11-26T11:00:00Z",
    "own_switch": True,
    "freeze_sent": True,
    "freeze_confirmed": True,
    "frozen_filesystems": 2,
    "thaw_confirmed": True,
    "thawed_filesystems": 1,
    "guard_fired": False,
    "freeze_ms": 81.62,
    "freeze_limit_ms": 60_000,
    "held_ms": 17.14,
    "held_limit_ms": 10_000,
    "switch_ms": 11.2,
    "warnings": [],
    "disks": [DISK],
    "attempts": [
        {"attempt": 7, "step": "pivoting", "to": "host.h1", "quiesce": True, "outcome": "none_no_agent"}
        | {"reason": "the agent is silent", "deliveries": 1}
    ],
}
LOST: dict[str, Any] = {
    **dict.fromkeys(field.name for field in fields(Receipt)),
    "consistency": "crash",
    "attempts": [],
}


def page(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Return what is printed of a receipt that differs so from a healthy one."""
    receipt({**QUIESCED, **changes})
    return capsys.readouterr().out


def test_times_stand_beside_their_limits_and_counts_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    shown = page(capsys)
    assert "sent and confirmed, 2 file systems, 81.6 ms of at most 60 s" in shown
    assert "confirmed, 1 file system; frozen for 17.1 ms of at most 10 s" in shown
    assert "did not fire" in shown


def test_each_source_is_named_by_the_volume_that_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys).splitlines()
    assert "live definition        new volume" in lines
    assert "persistent definition  previous volume" in lines
    assert "QEMU itself            not asked: the rest agrees" in lines
    assert f"new volume             main: {NEW}" in lines
    elsewhere = {**DISK["routing"], "qemu_was_asked": True, "qemu": "/tmp/foreign.qcow2", "persistent_definition": ""}
    lines = page(capsys, disks=[{**DISK, "routing": elsewhere, "first_write_bytes": 0}]).splitlines()
    assert "QEMU itself            /tmp/foreign.qcow2" in lines
    assert "persistent definition  none" in lines
    assert "first write            none seen, which proves nothing" in lines


def test_what_was_warned_of_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Warned of" not in page(capsys)
    line = {"level": "warning", "subject": "vdb", "code": "chain_deep", "message": "25 volumes", "hint": "Merge."}
    assert "vdb      chain_deep  25 volumes  Merge." in page(capsys, warnings=[line]).splitlines()


def test_attempts_are_told_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(capsys).splitlines()
    assert "7        pivoting  host.h1  yes      none_no_agent  1" in lines
    assert "why 7  the agent is silent" in lines


@pytest.mark.parametrize("reason", REASONS)
def test_a_lesser_label_is_explained(capsys: pytest.CaptureFixture[str], reason: str) -> None:
    assert REASONS[reason] in page(capsys, consistency="crash", consistency_reason=reason)


def test_troubled_windows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fired: it has thawed the guest" in page(capsys, guard_fired=True)
    assert "not confirmed; frozen for 17.1 ms" in page(capsys, thaw_confirmed=False)
    assert "the machine was started anew after it" in page(capsys, own_switch=False)
    unquiesced = page(capsys, freeze_sent=False, freeze_confirmed=False)
    assert "freeze       not sent" in unquiesced.splitlines()
    assert "guard" not in unquiesced


def test_a_lost_word_is_not_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    lost = page(capsys, **LOST, disks=[{**DISK, "routing": None}])
    assert lost.count("not known: the host's word was lost") == 3
    assert "ms" not in lost
