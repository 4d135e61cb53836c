"""Which machines were left by a clean shutdown: seen by this agent, recorded durably, and still true.

What counts: libvirt said that the guest powered itself off, and next that this run of QEMU has ended, to an agent that
had known the run and lost no event in between. A missed event means "not known", never "clean".

The record says in what state the run has left its images (inode, size, time of the last write). It is voided by every
later start that an agent sees; one that none sees, on this host or another, writes to the images as soon as the guest
mounts them, and then they are not as recorded. It is of one boot of the host: what a power cut leaves behind is another
matter.

What it cannot tell: whether the guest unmounted its file systems first. A guest's bytes are not examined (P8), so the
claim is exactly this: the guest ended by itself, and nobody has written to its disks since.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, assert_never

from common import logs
from common.errors import LivesnapError
from common.ids import VmId
from common.messaging.reports import VmReport, VmState
from hostagent import vm_xml
from hostagent.connection import VmEvent
from hostagent.ports import Guest
from hostagent.vm_state import Lifecycle

_log = logs.get()


class Record(Protocol):
    """The part of the journal that this needs (hostagent/journal.py)."""

    def runs_seen(self, runs: Mapping[VmId, str]) -> None:
        """Void the record of each of these vms, unless it is of this very run."""
        ...

    def shut_down(self, vm: VmId, runtime_id: str, images: Mapping[str, str]) -> None:
        """Record that this run ended cleanly, with each image's state by path."""
        ...

    def images_left(self, vm: VmId) -> dict[str, str]:
        """Return the images as the last clean shutdown left them; empty if none is on record for this boot."""
        ...

    def images_added(self, vm: VmId, images: Mapping[str, str]) -> None:
        """Add images to that record, if there is one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is known of the present run of a vm: its id ('' until a report has shown it) and leaves (target to path)."""

    runtime_id: str = ""
    leaves: Mapping[str, str] = field(default_factory=dict)
    shut_down: bool = False
    """The last thing that was heard is that the guest has powered itself off."""
    hibernated: bool = False


def after(run: Run, happened: Lifecycle) -> tuple[Run, bool]:
    """Return what is known after an event, and whether the run has ended by a clean shutdown. Pure, total.

    Nothing may come between the guest's end and QEMU's: libvirt reboots a guest by letting it power off and go on.
    """
    match happened:
        case Lifecycle.STARTED | Lifecycle.ENDED:
            return Run(), False
        case Lifecycle.HIBERNATED:
            return replace(run, hibernated=True), False
        case Lifecycle.GUEST_SHUT_DOWN:
            return replace(run, shut_down=True), False
        case Lifecycle.ENDED_BY_SHUTDOWN:
            return Run(), run.shut_down and not run.hibernated
        case Lifecycle.OTHER:
            return replace(run, shut_down=False), False
        case _:
            assert_never(happened)


class ShutdownWatch:
    """Follows the runs of a host's vms by libvirt's events and the agent's own reports. Safe to share between threads.

    Events are only noted when they come; they are worked off by whoever needs the result: before each report is sent,
    and before a snapshot is labelled.
    """

    def __init__(self, guest_of: Callable[[VmId], Guest], record: Record, image_state: Callable[[str], str]) -> None:
        """Take what it needs. `image_state` returns '' for an image that is in use or cannot be read."""
        self._guest_of = guest_of
        self._record = record
        self._image_state = image_state
        self._lock = threading.Lock()
        self._events: deque[VmEvent] = deque()
        self._runs: dict[VmId, Run] = {}

    def happened(self, event: VmEvent) -> None:
        """Note an event; returns at once."""
        if event.lifecycle is not None:
            self._events.append(event)

    def events_were_lost(self) -> None:
        """Forget every run: what happens while libvirt is not connected is not heard."""
        with self._lock:
            self._events.clear()
            self._runs.clear()

    def saw(self, vms: Iterable[VmReport]) -> None:
        """Learn the present runs and their leaves from a report. Never raises LivesnapError."""
        with self._lock:
            self._work_off()
            new = {vm.vm_id: vm.runtime_id for vm in vms if vm.runtime_id and self._learn(vm)}
            try:
                if new:
                    self._record.runs_seen(new)
            except LivesnapError as error:
                _log.error("runs_not_recorded", seen=str(error))

    def _learn(self, vm: VmReport) -> bool:
        """Learn one vm's run; return whether it is a new one."""
        known = self._runs.get(vm.vm_id, Run())
        is_new = known.runtime_id != vm.runtime_id
        kept = Run() if is_new and known.runtime_id else known
        leaves = {disk.target: disk.source for disk in vm.disks if disk.storage_domain_id}
        self._runs[vm.vm_id] = replace(kept, runtime_id=vm.runtime_id, leaves=leaves)
        return is_new

    def left_clean(self, vm: VmId, paths: Iterable[str]) -> bool:
        """Tell whether these leaves of a stopped vm are as its clean shutdown left them."""
        with self._lock:
            self._work_off()
            try:
                left = self._record.images_left(vm)
            except LivesnapError as error:
                _log.error("shutdown_not_known", vm=vm, seen=str(error))
                return False
        return bool(left) and all(left.get(path) == self._image_state(path) for path in paths)

    def states(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the present state of images by path, '' for one in use."""
        return {path: self._image_state(path) for path in paths}

    def moved(self, vm: VmId, empty: Mapping[str, str]) -> None:
        """Let new leaves, in their states before any definition named them, count as left clean like what is below."""
        try:
            self._record.images_added(vm, {path: state for path, state in empty.items() if state})
        except LivesnapError as error:
            _log.error("leaves_not_recorded", vm=vm, seen=str(error))

    # ---- events -------------------------------------------------------------------------------------------------

    def _work_off(self) -> None:
        """Take everything that has been noted at once: a vm that has started again since is not looked at."""
        ended: dict[VmId, Run] = {}
        started: set[VmId] = set()
        while self._events:
            event = self._events.popleft()
            assert event.lifecycle is not None
            run = self._runs.pop(event.vm_id, Run())
            following, is_clean = after(run, event.lifecycle)
            if following != Run():
                self._runs[event.vm_id] = following
            ended.pop(event.vm_id, None)
            if is_clean:
                ended[event.vm_id] = run
            elif event.lifecycle is Lifecycle.STARTED:
                started.add(event.vm_id)
        try:
            if started:
                self._record.runs_seen(dict.fromkeys(started, ""))
            for vm, run in ended.items():
                self._conclude(vm, run)
        except LivesnapError as error:
            _log.warning("shutdown_not_recorded", seen=str(error))

    def _conclude(self, vm: VmId, run: Run) -> None:
        """Record a clean end with the images that it left; raises LivesnapError where libvirt or the journal fails."""
        images = self.states(run.leaves.values())
        if why := self._why_not(self._guest_of(vm), run, images):
            _log.info("shutdown_not_recorded", vm=vm, run=run.runtime_id, why=why)
            return
        self._record.shut_down(vm, run.runtime_id, images)
        _log.info("shut_down_cleanly", vm=vm, run=run.runtime_id, images=len(images))

    def _why_not(self, guest: Guest, run: Run, images: Mapping[str, str]) -> str:
        """Return why a clean end proves nothing of the images that the vm's definition names now, '' if it does."""
        if not run.runtime_id or not images:
            return "the run was not known"
        definition = guest.persistent_xml()
        if vm_xml.ends_at_reset(definition):
            return "a reset of the guest, by a crash as well, would have ended it too"
        sources = vm_xml.sources(definition)
        if any(sources.get(target) != path for target, path in run.leaves.items()):
            return "the definition names other leaves than the run had"
        # The state comes last: whoever starts the vm after this look writes to the images after it too.
        if not all(images.values()) or guest.state() is not VmState.OFF:
            return "the vm, or somebody else, uses its images again"
        return ""
