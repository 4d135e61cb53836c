"""The connection to libvirt: its event loop, keep-alive, reconnection, and the list of vms.

    connection = Connection("qemu:///system")
    connection.on_event(lambda event: ...)
    connection.start()          # returns at once; a keeper thread opens it, and again after every loss

A connection that was lost never recovers by itself: the keeper opens a new one, registers every event again and tells
its listeners, who list, sweep and report anew. Together with hostagent/guest.py the only module that speaks libvirt.

Every thread that calls has a connection of its own (`raw`); the keeper's is for events only. On a shared one, a thread
with a long call keeps back the others' answers: with libvirt's client 9.0 about one call in a thousand then waited for
the next keep-alive (5 s, while a guest may be frozen). With connections of their own none of 150,000 did (measured).
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt

from common import logs
from common.errors import NotReady
from common.ids import VmId
from hostagent import processes, vm_xml
from hostagent.libvirt_errors import LibvirtError, translated
from hostagent.ports import VmListed
from hostagent.vm_state import Lifecycle, lifecycle, vm_state

RETRY_S = 0.03
"""Between attempts to open: a guest may be frozen meanwhile, so no back-off (opening costs 0.3 ms)."""
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3
LIVENESS_CHECK_S = 5
"""How often the keeper looks for itself, should a close callback be missed."""

_EVENTS = {
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: "lifecycle",
    libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE: "agent",
    libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2: "block_job",
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON: "io_error",
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: "device",
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: "device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VmEvent:
    """Something happened to a vm: lifecycle (which one, `lifecycle` says), agent, block_job, io_error (of `device`, an
    alias) or device."""

    vm_id: VmId
    kind: str
    lifecycle: Lifecycle | None = None
    device: str = ""


class _Own(threading.local):
    """The calling thread's own connection, and the daemon that it was opened to."""

    raw: libvirt.virConnect | None = None
    generation = 0
    instance = ""


class Connection:
    """A process's connections to libvirt: one that is watched and kept, and one for each thread that calls."""

    def __init__(self, uri: str) -> None:
        """Remember the URI; nothing is opened before `start`."""
        self.uri = uri
        self._watched: libvirt.virConnect | None = None
        self._generation = 0
        self._own = _Own()
        self._daemon_pid = 0
        self._opened_at = 0.0
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._on_event: list[Callable[[VmEvent], None]] = []
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_lost: list[Callable[[], None]] = []
        self._log = logs.get().bind(uri=uri)

    def on_event(self, callback: Callable[[VmEvent], None]) -> None:
        """Have `callback` called in libvirt's event thread for every event; it must return at once."""
        self._on_event.append(callback)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the keeper's thread after every successful opening, the first one included."""
        self._on_reconnect.append(callback)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the keeper's thread when the connection is lost, or cannot be opened at start."""
        self._on_lost.append(callback)

    def start(self) -> None:
        """Start the event loop (one per process) and the keeper."""
        _start_event_loop()
        threading.Thread(target=self._keep, name="libvirt-keeper", daemon=True).start()

    def stop(self) -> None:
        """End the keeper and close the connection; calls that run fail."""
        self._stopping.set()
        self._lost.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the connection is open, at most so long; tell whether it is."""
        return self._up.wait(timeout_s)

    @property
    def is_up(self) -> bool:
        """Tell whether the connection is open, as far as is known."""
        return self._up.is_set()

    def raw(self) -> libvirt.virConnect:
        """Return the calling thread's connection, opening it if need be. Raises NotReady(libvirt_unavailable)."""
        if not self._up.is_set():
            raise NotReady("libvirt_unavailable", f"no connection to libvirt at {self.uri}")
        own = self._own
        if own.raw is None or own.generation != self._generation or not own.raw.isAlive():
            own.generation = self._generation
            try:
                own.raw = _opened(self.uri)
            except libvirt.libvirtError as error:
                own.raw = None
                raise NotReady("libvirt_unavailable", f"no connection to libvirt at {self.uri}: {error}") from error
            # Asked after the opening: if the daemon changes in between, this connection is dead and calls nothing.
            own.instance = processes.process_name(self._daemon())
        return own.raw

    def libvirtd_instance(self) -> str:
        """Return pid and start time of the daemon that the calling thread's calls go to; '' if it cannot be known."""
        try:
            self.raw()
        except NotReady:
            return ""
        return self._own.instance

    def capabilities(self) -> str:
        """Return what libvirt says of itself and this host, as XML."""
        raw = self.raw()
        with translating("reading capabilities", "*"):
            return str(raw.getCapabilities())

    def _daemon(self) -> int:
        path = socket_path(self.uri)
        return processes.daemon_behind(path) if path else 0

    def age_s(self) -> float:
        """Return for how long the connection has been open: a daemon that has just started does not know agents yet."""
        return time.monotonic() - self._opened_at

    def pid_files(self, vm_name: str) -> tuple[Path, ...]:
        """Return where libvirt may keep the pid file of a vm's QEMU: session daemon, system daemon, its own /run."""
        beside = socket_path(self.uri)
        if beside is None:
            return ()
        names = (
            beside.parent / "qemu/run",
            beside.parent / "qemu",
            Path(f"/proc/{self._daemon_pid}/root/run/libvirt/qemu"),
        )
        return tuple(folder / f"{vm_name}.pid" for folder in names)

    def vms(self, only: Collection[VmId] | None = None) -> tuple[VmListed, ...]:
        """List the vms of this host, or those of `only` that exist. A vm that goes meanwhile is left out.

        What libvirt offers for all vms at once is asked once; what remains is one call per definition. Nothing here
        waits for QEMU or for a job, so a vm with a stuck call does not hold the list up.
        """
        raw = self.raw()
        with translating("listing", "*"):
            saved = _ids(raw.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE))
            with_snapshots = _ids(raw.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT))
            transient = _ids(raw.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT))
            listed = raw.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
        found = []
        for handle, statistics in listed:
            vm = VmId(handle.UUIDString())
            if only is not None and vm not in only:
                continue
            try:
                live = handle.XMLDesc(0)
                found.append(
                    VmListed(
                        vm_id=vm,
                        name=handle.name(),
                        state=vm_state(statistics["state.state"], statistics["state.reason"]),
                        managed_save=vm in saved,
                        snapshots=handle.snapshotNum(0) if vm in with_snapshots else 0,
                        live_xml=live if vm_xml.is_active(live) else "",
                        persistent_xml="" if vm in transient else handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
                    )
                )
            except libvirt.libvirtError as error:
                gone = translated(described(error), action="listing", vm=vm, refused="vm_state_changed")
                if gone.code not in ("vm_not_found", "vm_state_changed"):
                    raise gone from error
        return tuple(found)

    # ---- the keeper -------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                self._open()
            except libvirt.libvirtError as error:
                if not told:
                    self._log.warning("libvirt_unreachable", seen=str(error))
                    self._tell(self._on_lost)
                    told = True
                self._stopping.wait(RETRY_S)
                continue
            self._tell(self._on_reconnect)
            self._watch()
            if told := not self._stopping.is_set():
                self._log.warning("libvirt_lost", daemon=self._daemon_pid)
                self._tell(self._on_lost)
            self._close()

    def _open(self) -> None:
        self._lost.clear()
        raw = _opened(self.uri)
        try:
            raw.registerCloseCallback(self._closed, None)
            for number, kind in _EVENTS.items() if self._on_event else ():
                raw.domainEventRegisterAny(None, number, self._happened, kind)
        except libvirt.libvirtError:
            raw.close()
            raise
        self._daemon_pid = self._daemon()
        self._watched, self._opened_at = raw, time.monotonic()
        self._generation += 1
        self._up.set()
        self._log.info("libvirt_connected", daemon=self._daemon_pid)

    def _watch(self) -> None:
        """Return when the connection is lost, or when it is time to stop."""
        while not self._lost.wait(LIVENESS_CHECK_S):
            if self._watched is None or not self._watched.isAlive():
                break
        self._up.clear()

    def _close(self) -> None:
        raw, self._watched = self._watched, None
        if raw is not None:
            try:
                raw.close()
            except libvirt.libvirtError as error:
                self._log.info("libvirt_close_failed", seen=str(error))

    def _closed(self, _raw: libvirt.virConnect, reason: int, _opaque: object) -> None:
        self._up.clear()
        self._log.info("libvirt_closed", reason=reason)
        self._lost.set()

    def _happened(self, _raw: libvirt.virConnect, handle: libvirt.virDomain, *details: Any) -> None:
        *about, kind = details
        said = lifecycle(*map(int, about)) if kind == "lifecycle" else None
        # (path, alias, action, reason): the path may still be the previous leaf's right after a switch.
        device = str(about[1]) if kind == "io_error" else ""
        event = VmEvent(vm_id=VmId(handle.UUIDString()), kind=str(kind), lifecycle=said, device=device)
        for callback in self._on_event:
            callback(event)

    def _tell(self, listeners: list[Callable[[], None]]) -> None:
        for callback in listeners:
            try:
                callback()
            except Exception:  # noqa: BLE001  the keeper outlives its listeners' faults and logs them
                self._log.exception("listener_failed")


def _opened(uri: str) -> libvirt.virConnect:
    raw = libvirt.open(uri)
    raw.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    return raw


def _ids(handles: list[libvirt.virDomain]) -> frozenset[str]:
    return frozenset(handle.UUIDString() for handle in handles)


def socket_path(uri: str) -> Path | None:
    """Return the Unix socket of a local URI, None for a remote one."""
    parts = urlsplit(uri)
    named = parse_qs(parts.query).get("socket")
    if named:
        return Path(named[0])
    if parts.hostname:
        return None
    session = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "libvirt"
    folder = session if parts.path == "/session" else Path("/run/libvirt")
    modular = folder / "virtqemud-sock"
    return modular if modular.exists() else folder / "libvirt-sock"


@contextmanager
def translating(action: str, vm: str, *, refused: str = "pivot_failed") -> Iterator[None]:
    """Turn libvirt's error inside the block into ours (hostagent/libvirt_errors.py)."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translated(described(error), action=action, vm=vm, refused=refused) from error


def described(error: libvirt.libvirtError) -> LibvirtError:
    """Return what a libvirt exception says."""
    return LibvirtError(
        number=error.get_error_code() or 0,
        origin=error.get_error_domain() or 0,
        text=error.get_error_message() or "",
    )


_loop_lock = threading.Lock()
_loop: list[threading.Thread] = []


def _start_event_loop() -> None:
    """Register libvirt's default event loop and run it in a daemon thread; must precede the first opening."""
    with _loop_lock:
        if _loop:
            return
        # The binding prints every error to standard error besides raising it.
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        _loop.append(threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True))
        _loop[0].start()


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
