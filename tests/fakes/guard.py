"""A freeze guard in memory: `client_died` and `time_is_up` are what its socket and its timer would tell it."""

from collections.abc import Callable

from common.errors import NotReady
from common.ids import VmId


class FakeGuard:
    """Thaws by calling `thaw(vm)`, as the real one does by its own libvirt connection."""

    def __init__(self, thaw: Callable[[VmId], None]) -> None:
        self.armed: dict[tuple[VmId, str], int] = {}
        self.fired: set[tuple[VmId, str]] = set()
        self.is_up = True
        self._thaw = thaw

    def arm(self, vm: VmId, token: str, limit_ms: int) -> None:
        if not self.is_up:
            raise NotReady("guard_unavailable", "the freeze guard does not answer")
        self.armed[vm, token] = limit_ms

    def disarm(self, vm: VmId, token: str) -> bool:
        """Return True if it has fired, or if it cannot say (it is down, or knows nothing of this token)."""
        was_armed = self.armed.pop((vm, token), None) is not None
        return not self.is_up or not was_armed or (vm, token) in self.fired

    def time_is_up(self) -> None:
        self._fire()

    def client_died(self) -> None:
        self._fire()
        self.armed.clear()

    def _fire(self) -> None:
        for vm, token in self.armed if self.is_up else ():
            self.fired.add((vm, token))
            self._thaw(vm)
