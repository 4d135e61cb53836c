"""The agent's side of the freeze guard: one connection per freeze; its end, however it comes, is the signal."""

import contextlib
import socket
import threading
import time
from pathlib import Path

from common.errors import NotReady
from common.ids import VmId
from hostagent.places import LINGER_S

ANSWER_LIMIT_S = 2.0
"""Arming and disarming take 0.1 ms; a guard that waits for its libvirt connection takes up to 1 s to say no."""
_MESSAGE_BYTES = 512


class GuardClient:
    """The real `Guard` of hostagent/ports.py. Safe for the threads of a process."""

    def __init__(self, path: Path) -> None:
        """Remember the guard's socket; nothing is opened before `arm`."""
        self._path = path
        self._links: dict[tuple[VmId, str], socket.socket] = {}
        self._lingering: list[tuple[float, socket.socket]] = []
        self._lock = threading.Lock()

    def arm(self, vm: VmId, token: str, limit_ms: int) -> None:
        """Make the guard responsible for thawing `vm` from now on, at the latest after `limit_ms`.

        Again with the same token: the limit counts anew. Raises NotReady(guard_unavailable) when the guard does not
        answer or has fired; it watches nothing then. A crash afterwards lets the guard fire.
        """
        with self._lock:
            link = self._links.pop((vm, token), None)
        try:
            link = link or self._connect()
            answer = _ask(link, f"arm {vm} {token} {limit_ms}")
        except OSError as error:
            if link is not None:
                link.close()
            raise NotReady("guard_unavailable", f"no freeze guard at {self._path}: {error}") from error
        if answer != "armed":
            link.close()
            raise NotReady("guard_unavailable", f"the freeze guard at {self._path} answered {answer or 'nothing'}")
        with self._lock:
            self._links[vm, token] = link

    def disarm(self, vm: VmId, token: str) -> bool:
        """End that; return True if the guard has fired meanwhile, or cannot say (it died, or was never armed).

        The connection stays open for a while: its end would tell the guard that this process died before its thaw.
        """
        with self._lock:
            link = self._links.pop((vm, token), None)
        if link is None:
            return True
        try:
            is_quiet = _ask(link, "disarm") == "quiet"
        except OSError:
            is_quiet = False
        self._let_linger(link)
        return not is_quiet

    def close(self) -> None:
        """Say good-bye to the guard; what is armed still is left to it. The next `arm` connects anew."""
        with self._lock:
            armed, lingering = tuple(self._links.values()), tuple(self._lingering)
            self._links.clear()
            self._lingering.clear()
        for _, link in lingering:
            with link, contextlib.suppress(OSError):
                link.send(b"bye")
        for link in armed:
            link.close()

    def _let_linger(self, link: socket.socket) -> None:
        now = time.monotonic()
        with self._lock:
            over = [old for since, old in self._lingering if now - since > 2 * LINGER_S]
            self._lingering = [(since, old) for since, old in self._lingering if old not in over]
            self._lingering.append((now, link))
        for old in over:
            old.close()

    def _connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(ANSWER_LIMIT_S)
        try:
            link.connect(str(self._path))
        except OSError:
            link.close()
            raise
        return link


def _ask(link: socket.socket, request: str) -> str:
    link.send(request.encode("ascii"))
    return link.recv(_MESSAGE_BYTES).decode("ascii", "replace")
