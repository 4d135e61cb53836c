"""The receipt of a pivot, and the label that it earns. Pure.

P5: consistency is proven, not assumed. A host writes down what it saw; `label` decides from that alone.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from common.preflight import PreflightLine


class Consistency(StrEnum):
    """What a machine reverted to the snapshot will find."""

    FILESYSTEM = "filesystem"
    """File systems were frozen: it boots cleanly, with no recovery."""
    CRASH = "crash"
    """As after a power cut: file systems recover at boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one pivot did, as its host saw it. Counts are file systems, as the guest agent returned them.

    `own_switch`: the handler that froze also made the switch, on the same run of the vm. `freeze_ms` is the freeze
    call, the guest's hooks included; `held_ms` from its return to the confirmed thaw (or to the last one tried): what
    the guest's writers felt at least. Both stand beside the limits that they were given.
    `switch_late`: the switch took longer than a guest is kept frozen for it, so that the guest was thawed before it.
    `clean_shutdown_seen`: the guest had powered itself off before the host's eyes, and nobody has written to the vm's
    disks since.
    """

    vm_state: str
    quiesce: bool
    switched_at: datetime
    own_switch: bool
    freeze_sent: bool = False
    freeze_confirmed: bool = False
    frozen_filesystems: int = 0
    thaw_confirmed: bool = False
    thawed_filesystems: int = 0
    guard_fired: bool = False
    switch_late: bool = False
    clean_shutdown_seen: bool = False
    freeze_ms: float = 0.0
    freeze_limit_ms: int = 0
    held_ms: float = 0.0
    held_limit_ms: int = 0
    switch_ms: float = 0.0
    thaw_ms: float = 0.0
    prepare_ms: float = 0.0
    warnings: tuple[PreflightLine, ...] = ()
    """What the check right before the pivot had warned of."""


REASONS: dict[str, str] = {
    "host_lost": "the host was removed as lost before it had said what it did",
    "receipt_lost": "the host agent died before it had written down what it did",
    "switch_not_own": "the machine was started anew after its switch",
    "shutdown_unknown": "the machine was off, and it is not known whether its guest had shut down in order",
    "paused": "the machine was paused, and its agent can freeze nothing then",
    "not_quiesced": "the guest was not frozen",
    "switch_late": "the switch had to wait, for a migration or another call, and the guest was thawed meanwhile",
    "guard_fired": "the guest stayed frozen for too long, or its freeze was given up: the guard thawed it",
    "nothing_frozen": "the guest's agent found no file system to freeze",
    "thaw_not_confirmed": "the guest's agent never confirmed the thaw, so nobody knows for how long the freeze held",
    "thaw_count_differs": "not as many file systems were thawed as had been frozen: the guest or somebody thawed early",
}
"""Why a snapshot is not file-system consistent, for people."""


def label(receipt: Receipt | None) -> tuple[Consistency, str]:
    """Return the consistency that `receipt` proves, and the reason, a word of REASONS ('' for the full label).

    Source of the rule: the guest's status "frozen" stays set while a file system was thawed by hand, the counts do
    not (measured with QEMU 7.2's agent); and an outside thaw can land inside libvirt's QUIESCE flag.
    """
    if receipt is None:
        return Consistency.CRASH, "receipt_lost"
    if not receipt.own_switch:
        return Consistency.CRASH, "switch_not_own"
    if receipt.vm_state == "off":
        return (Consistency.FILESYSTEM, "") if receipt.clean_shutdown_seen else (Consistency.CRASH, "shutdown_unknown")
    if receipt.vm_state != "running":
        return Consistency.CRASH, "paused"
    if not receipt.quiesce:
        return Consistency.CRASH, "not_quiesced"
    reason = _what_broke_the_freeze(receipt)
    return (Consistency.CRASH, reason) if reason else (Consistency.FILESYSTEM, "")


def _what_broke_the_freeze(receipt: Receipt) -> str:
    """Return why the guest was not frozen all the way through its switch, '' if it was."""
    if receipt.switch_late:
        return "switch_late"
    if receipt.guard_fired:
        return "guard_fired"
    if receipt.frozen_filesystems < 1:
        return "nothing_frozen"
    if not receipt.thaw_confirmed:
        return "thaw_not_confirmed"
    if receipt.thawed_filesystems != receipt.frozen_filesystems:
        return "thaw_count_differs"
    return ""
