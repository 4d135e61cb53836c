"""The freeze guard, `python -m hostagent.guard`: thaws a guest when the agent that froze it dies, stalls or is late.

A process of its own, with its own libvirt connection, so that it survives whatever kills the agent. One connection to
its socket is one freeze, and belongs to one thread, which makes every answer atomic without a lock:

    agent                               guard
    arm VM TOKEN LIMIT_MS    ->
                             <-         armed           (or: not_ready, libvirt cannot be reached)
    ... freeze, switch ...                              (arm again, as often as wanted: a new limit)
    disarm                   ->
                             <-         quiet           (or: fired, it has thawed or is about to)
    ... thaw ...

The end of the connection without a disarm, or the limit, fires: thaw until it succeeds, then twice more, for a freeze
that completes late. An agent that dies after its disarm may not have thawed yet: if its connection ends within LINGER_S
without a `bye`, the guard fires as well; once more after a limit, for an agent that was late, froze all the same, and
died then. Told to end (SIGTERM), it fires for all that is armed before it goes.

It knows nothing of Celery, pydantic or SQL, because it runs on every hypervisor for ever.
"""

import os
import signal
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from common import logs
from common.errors import HypervisorError, LivesnapError
from common.ids import VmId, require_uuid
from common.images import locks
from common.messaging.reports import VmState
from hostagent import places
from hostagent.connection import Connection
from hostagent.guest import LibvirtGuest
from hostagent.places import LINGER_S

MESSAGE_BYTES = 512
FIRST_MESSAGE_S, LIBVIRT_WAIT_S = 1.0, 1.0
RETRY_S, SLOW_RETRY_S, FAST_FOR_S = 0.03, 0.5, 60.0
"""No back-off while a restarted libvirtd is expected: each retry's delay is a guest's; slower once it is hopeless."""
AGAIN_AFTER_S = (0.05, 0.3)
THAW_LIMIT_MS = 3000
_LIMIT = "limit"
_END_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_GONE = frozenset({VmState.OFF, VmState.CRASHED})


class Guard:
    """Listens, watches each armed freeze, and fires."""

    def __init__(self, connection: Connection, listener: socket.socket) -> None:
        """Serve on a listening socket of type SEQPACKET (each message is one packet)."""
        self._connection = connection
        self._listener = listener
        self._links: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._starting = threading.Lock()
        self._stopping = False
        self._log = logs.get()

    def start(self) -> None:
        """Begin to listen, and return."""
        self._spawn(self._serve_next)

    def stop(self) -> None:
        """Listen no more, fire for all that is armed, and return when every thaw is done."""
        self._stopping = True
        for open_socket in (self._listener, *tuple(self._links)):
            _hang_up(open_socket)
        while threads := self._running():
            threads[0].join(1)

    def _running(self) -> tuple[threading.Thread, ...]:
        """Return the threads that have been started and have not ended. Threads come and go meanwhile."""
        with self._starting:
            return tuple(self._threads)

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                target(*arguments)
            except Exception:  # noqa: BLE001  a fault in one watch must not silence the others, and is logged
                self._log.exception("guard_fault")
            finally:
                self._threads.discard(thread)

        thread = threading.Thread(target=run)
        with self._starting:  # a thread that is not started yet cannot be waited for
            self._threads.add(thread)
            thread.start()

    def _serve_next(self) -> None:
        """Wait for one agent and serve its freeze; once it has its answer, another thread waits for the next one.

        A waiting thread is woken at once, while a new one queues behind a busy processor (4 ms, measured), and this
        time would be the agent's.
        """
        try:
            link, _ = self._listener.accept()
        except OSError as error:
            if not self._stopping:
                self._log.error("guard_cannot_accept", seen=error.strerror)
                time.sleep(SLOW_RETRY_S)
                self._spawn(self._serve_next)
            return
        with link:
            self._links.add(link)
            try:
                armed = self._arm(link)
            finally:
                self._spawn(self._serve_next)
            try:
                if armed:
                    self._watch(link, *armed)
            finally:
                self._links.discard(link)

    def _arm(self, link: socket.socket) -> tuple[VmId, str, float] | None:
        """Answer the first message; return vm, token and limit in seconds, or None if nothing is to be watched."""
        link.settimeout(FIRST_MESSAGE_S)
        armed = _parse_arm(link.recv(MESSAGE_BYTES))
        if self._connection.wait(LIBVIRT_WAIT_S):
            link.send(b"armed")
            return armed
        link.send(b"not_ready")
        return None

    def _watch(self, link: socket.socket, vm: VmId, token: str, limit_s: float) -> None:
        """Watch one freeze to its end."""
        why = self._await_end(link, limit_s)
        if why:
            self._fire(vm, token, why)
        if why == _LIMIT and (why := self._await_late_end(link)):
            self._fire(vm, token, why)

    def _fire(self, vm: VmId, token: str, why: str) -> None:
        self._log.warning("guard_fires", vm=vm, token=token, why=why)
        self._spawn(self._thaw, vm, token)

    def _await_end(self, link: socket.socket, limit_s: float) -> str:
        """Return '' once the agent has disarmed, else why the guard has to fire; every new arming sets a new limit."""
        while True:
            link.settimeout(limit_s)
            try:
                request = link.recv(MESSAGE_BYTES)
                if request == b"disarm":
                    link.send(b"quiet")
                    return self._linger(link)
                if not request:
                    return "guard_stopping" if self._stopping else "agent_lost"
                _, _, limit_s = _parse_arm(request)
                link.send(b"armed")
            except TimeoutError:
                return _LIMIT
            except (OSError, ValueError) as error:
                return f"agent_lost ({error})"

    def _await_late_end(self, link: socket.socket) -> str:
        """Tell an agent that was late that its freeze did not hold; return why to fire again, '' once it has thawed."""
        link.settimeout(None)
        try:
            while request := link.recv(MESSAGE_BYTES):
                link.send(b"fired")
                if request == b"disarm":
                    return self._linger(link)
        except OSError as error:
            return f"agent_lost ({error})"
        return "guard_stopping" if self._stopping else "agent_lost"

    def _linger(self, link: socket.socket) -> str:
        """Return '' unless the agent dies so soon after the disarm that it may not have thawed."""
        link.settimeout(LINGER_S)
        try:
            ended = not link.recv(MESSAGE_BYTES)
        except TimeoutError:
            return ""
        except OSError:
            ended = True
        return "agent_lost_before_its_thaw" if ended and not self._stopping else ""

    def _thaw(self, vm: VmId, token: str) -> None:
        guest = LibvirtGuest(self._connection, vm)
        started = time.monotonic()
        count = self._thaw_until_done(guest, started)
        if count is None:
            self._log.warning("guard_vm_gone", vm=vm, token=token)
            return
        self._log.warning("guard_thawed", vm=vm, token=token, filesystems=count, ms=_ms_since(started))
        for delay_s in AGAIN_AFTER_S:
            time.sleep(delay_s)
            late = self._thaw_until_done(guest, time.monotonic())
            if late:
                self._log.warning("guard_thawed_late_freeze", vm=vm, token=token, filesystems=late)

    def _thaw_until_done(self, guest: LibvirtGuest, started: float) -> int | None:
        """Return how many file systems were thawed, None when the vm does not run here any more."""
        seen = ""
        while True:
            try:
                return guest.thaw(THAW_LIMIT_MS)
            except LivesnapError as error:
                if str(error) != seen:
                    seen = str(error)
                    self._log.info("guard_thaw_failed", vm=guest.vm_id, seen=seen)
            if _is_gone(guest):
                return None
            time.sleep(RETRY_S if time.monotonic() - started < FAST_FOR_S else SLOW_RETRY_S)


def _is_gone(guest: LibvirtGuest) -> bool:
    """Tell whether the vm is known not to run here; a libvirt that does not answer tells nothing."""
    try:
        return guest.state() in _GONE
    except HypervisorError as error:
        return error.code == "vm_not_found"
    except LivesnapError:
        return False


def _parse_arm(message: bytes) -> tuple[VmId, str, float]:
    """Return vm, token and limit in seconds. Raises ValueError for anything but `arm VM TOKEN LIMIT_MS`."""
    word, vm, token, limit_ms = message.decode("ascii").split(" ")
    require_uuid(vm)
    if word != "arm":
        raise ValueError(f"the guard does not know {word[:20]!r}")
    return VmId(vm), token, max(1, int(limit_ms)) / 1000


def _ms_since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)


def _hang_up(link: socket.socket) -> None:
    try:
        link.shutdown(socket.SHUT_RD)
    except OSError as error:
        logs.get().info("guard_hang_up_failed", seen=error.strerror)


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, for its owner only; replaces the file that a killed guard left behind."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def _settings() -> dict[str, str]:
    """Return the host's settings as the agent reads them (environment over file), without the agent's libraries."""
    file = os.environ.get("LIVESNAP_CONFIG")
    written = tomllib.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    names = ("libvirt_uri", "state_dir", "log_format")
    found = {name: os.environ.get(f"LIVESNAP_{name.upper()}") or written.get(name) for name in names}
    return {name: str(value) for name, value in found.items() if value}


def main() -> int:
    """Run the guard until SIGTERM or SIGINT. Return 1 if another one serves this host already."""
    # Blocked before the first thread starts, so that only sigwait takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    settings = _settings()
    logs.configure(log_format=settings.get("log_format", "text"), process="guard")
    state_dir = Path(settings.get("state_dir", places.DEFAULT_STATE_DIR))
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if locks.lock_file(places.guard_lock(state_dir)) is None:
        logs.get().error("guard_refused", reason="another guard runs for this state folder", state_dir=str(state_dir))
        return 1
    connection = Connection(settings.get("libvirt_uri", places.DEFAULT_URI))
    connection.start()
    guard = Guard(connection, listen(places.guard_socket(state_dir)))
    guard.start()
    logs.get().info("guard_ready", socket=str(places.guard_socket(state_dir)))
    signal.sigwait(_END_SIGNALS)
    guard.stop()
    logs.get().info("guard_ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
