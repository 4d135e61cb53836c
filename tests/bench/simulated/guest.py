"""The fake hypervisor, as slow as a real one: it passes the same contract tests (tests/contracts/test_guest.py).

The delays are medians of the bare script on an idle machine (protocol.md, part B1: 59 ms, of which `qemu-img create`
takes 5.6, switch and thaw 13.7). They are slept, so they cost no CPU: hosts of a fleet have processors of their own.
"""

import time
from typing import Final

from tests.fakes.guest import FakeGuest

FREEZE_S: Final = 0.040
SWITCH_S: Final = 0.010
THAW_S: Final = 0.004
CREATE_S: Final = 0.008
"""What an SPM takes to make one volume, its metadata and all syncs included."""


class SimulatedGuest(FakeGuest):
    """`Guest` of hostagent/ports.py, in memory, with the times of a real one."""

    def freeze(self, limit_ms: int) -> int:
        time.sleep(FREEZE_S)
        return super().freeze(limit_ms)

    def switch_leaves(self, snapshot_xml: str) -> None:
        time.sleep(SWITCH_S)
        super().switch_leaves(snapshot_xml)

    def thaw(self, limit_ms: int) -> int:
        time.sleep(THAW_S)
        return super().thaw(limit_ms)
