"""The I/O errors of vms' disks that QEMU has told of, as libvirt's events brought them to this process.

With the error policy `stop` an error pauses the machine, and whoever looks later sees it. With any other (`report`,
`ignore`, and QEMU's default for all but a full disk) the guest is told, or not even that, and goes on: then the event
is the only trace that taints nothing (measured: no error count, no `diskErrors`). An event that comes while the
connection is down is lost; so none proves nothing.
"""

import threading
from collections import deque

from common.ids import VmId
from hostagent.connection import Connection, VmEvent

REMEMBERED = 256
"""Per vm: a guest whose writes fail asks again for ever."""


class IoErrors:
    """What was told, by vm; safe to share between threads."""

    def __init__(self) -> None:
        """Know of nothing yet."""
        self._lock = threading.Lock()
        self._count = 0
        self._told: dict[VmId, deque[tuple[int, str]]] = {}

    def attach(self, connection: Connection) -> None:
        """Follow the connection's events."""
        connection.on_event(self._happened)

    def mark(self) -> int:
        """Return what to give to `since` later: all that is told from now on."""
        with self._lock:
            return self._count

    def since(self, vm: VmId, mark: int) -> tuple[str, ...]:
        """Return the devices (libvirt's aliases, each once, sorted) whose errors were told since then."""
        with self._lock:
            return tuple(sorted({device for number, device in self._told.get(vm, ()) if number > mark}))

    def _happened(self, event: VmEvent) -> None:
        if event.kind != "io_error":
            return
        with self._lock:
            self._count += 1
            self._told.setdefault(event.vm_id, deque(maxlen=REMEMBERED)).append((self._count, event.device))
