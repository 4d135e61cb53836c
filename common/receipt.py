"""The receipt of a pivot, and the label that it earns. Pure.

P5: consistency is proven, not assumed. A host writes down what it saw; `label` decides from that alone.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


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
    call; `held_ms` from its return to the confirmed thaw: what the guest's writers felt at least.
    `clean_shutdown_seen`: the guest had powered itself off before the host's eyes, and nobody has written to the vm's
    disks since.
    """

    vm_state: str
    quiesce: bool
    switched_at: datetime
    own_switch: bool
    frozen_filesystems: int = 0
    thawed_filesystems: int = 0
    guard_fired: bool = False
    clean_shutdown_seen: bool = False
    freeze_ms: float = 0.0
    switch_ms: float = 0.0
    thaw_ms: float = 0.0
    held_ms: float = 0.0
    prepare_ms: float = 0.0


def label(receipt: Receipt | None) -> tuple[Consistency, str]:
    """Return the consistency that `receipt` proves, and the reason in one stable word ('' for the full label).

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
    if receipt.guard_fired:
        return Consistency.CRASH, "guard_fired"
    if receipt.frozen_filesystems < 1:
        return Consistency.CRASH, "nothing_frozen"
    if receipt.thawed_filesystems != receipt.frozen_filesystems:
        return Consistency.CRASH, "thaw_count_differs"
    return Consistency.FILESYSTEM, ""
