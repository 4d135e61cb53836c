"""Everything that can be found out before anything is touched: may this vm be pivoted, how, and with which XML.

All refusals are exceptions whose code says why; none of them leaves an effect. The order is from cheap to dear, and the
guest agent comes last, so that "no agent" (which makes the Manager ask again without quiescing) is said only of a vm
that could be pivoted otherwise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from common.errors import RequestRefused
from common.messaging.messages import Check, Pivot
from common.messaging.reports import DiskReport, VmState
from common.preflight import PreflightLine
from hostagent import vm_xml
from hostagent.operations.deps import View, Work
from hostagent.operations.rules import of_disk, of_job, of_own_clock, of_space_left, of_vm, warnings_of
from hostagent.ports import QemuUser

AGENT_LIMIT_MS = 5_000
"""How long a guest agent may take to answer a ping; a healthy one takes 2 to 7 ms, also under load."""
TRANSITION_MS = 10_000
"""How long a vm that starts or stops is waited for."""
_STATE_POLL_S = 0.05
_STATE_REFUSALS = {
    VmState.PAUSED_IO_ERROR: ("vm_paused_io_error", "is paused by an I/O error"),
    VmState.PAUSED_MIGRATION: ("vm_migrating", "is paused for a migration"),
    # libvirt's own refusal (9.0 and later, error 84) would come only after the definition was changed.
    VmState.PMSUSPENDED: ("vm_pmsuspended", "was suspended by its guest"),
    VmState.SAVING: ("vm_saving", "is being saved"),
    VmState.DUMPING: ("vm_dumping", "is paused while its memory is dumped"),
    VmState.CRASHED: ("vm_crashed", "has crashed and was kept as it was then"),
    VmState.STARTING: ("vm_state_unsupported", f"is still starting after {TRANSITION_MS // 1000} s"),
    VmState.STOPPING: ("vm_state_unsupported", f"is still shutting down after {TRANSITION_MS // 1000} s"),
    VmState.UNKNOWN: ("vm_state_unsupported", "is in a state that is not known here"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A vm that may be pivoted now, as it was found. `persistent_xml` is '' for a transient vm, `live_xml` for a
    stopped one; `vm_state` is the receipt's word, `warnings` are for the receipt too, `first_data` is by target where a
    new leaf's data begins."""

    vm_state: str
    runtime_id: str
    live_xml: str
    persistent_xml: str
    quiesce: bool
    warnings: tuple[PreflightLine, ...] = ()
    first_data: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """Tell whether QEMU runs, so that the pivot is a live one."""
        return bool(self.runtime_id)


def prepare(work: Work, command: Pivot) -> Ready:
    """Check every condition of a pivot; touch nothing but, in passing, the agent's ping.

    Raises RequestRefused with the code of the first condition that fails, StorageError when a new volume is not what
    it must be, GuestAgentMissing, HypervisorError (a guest frozen by others), NotReady when something is not there now.
    """
    ready = decide(work, command, settled_state(work))
    warnings = warnings_of(_lines(work, command, ready))
    user = qemu_user(work, ready)
    first_data: dict[str, int] = {}
    for pair in work.disks:
        first_data[pair.target] = work.deps.storage.check_new_volume(pair.switch.new, pair.switch.old)
        if user is not None:
            work.deps.storage.require_access(pair.switch.new, user)
    if ready.quiesce:
        work.guest.require_agent(AGENT_LIMIT_MS)
    return replace(ready, warnings=warnings, first_data=first_data)


def _lines(work: Work, command: Pivot, ready: Ready) -> Iterator[PreflightLine]:
    yield from of_vm(work, is_active=ready.is_active)
    by_target = disks_of(work, ready)
    for pair in work.disks:
        yield from of_disk(work, pair, by_target.get(pair.target), command.limits, is_active=ready.is_active)
    yield from of_space_left(work, command.limits)
    yield of_own_clock(work, command.limits)


def disks_of(view: View, ready: Ready) -> dict[str, DiskReport]:
    """Return the vm's disks by target, as its definitions show them."""
    storage = view.deps.storage
    reports = vm_xml.disks(ready.live_xml, ready.persistent_xml, storage.locate, storage.is_encrypted)
    return {report.target: report for report in reports}


def qemu_user(view: View, ready: Ready) -> QemuUser | None:
    """Return the user that QEMU runs as, or will; None where it cannot be known (a definition that names its own)."""
    if not ready.is_active and vm_xml.has_own_label(ready.persistent_xml):
        return None
    return view.deps.qemu_user(ready.runtime_id)


def settled_state(work: Work) -> VmState:
    """Return the vm's state, after waiting for one that is about to change."""
    give_up = work.deps.boottime_ms() + min(TRANSITION_MS, work.remaining_ms)
    while (state := work.guest.state()) in (VmState.STARTING, VmState.STOPPING):
        if work.deps.boottime_ms() >= give_up:
            break
        work.deps.pause(_STATE_POLL_S)
    return state


def decide(view: View, command: Pivot | Check, state: VmState) -> Ready:
    """Return how a vm in that state would be pivoted. Raises RequestRefused if it would not."""
    match state:
        case VmState.RUNNING:
            return found(view, "running", quiesce=command.quiesce)
        case VmState.PAUSED:
            _require_no_promise(view, command, state)
            return found(view, "paused", quiesce=False)
        case VmState.OFF:
            if view.guest.has_moved_away():
                raise RequestRefused("vm_not_found", f"vm {view.vm} was migrated away, only its definition is here")
            _require_no_promise(view, command, state)
            return found_stopped(view)
        case VmState.PAUSED_IO_ERROR | VmState.PAUSED_MIGRATION | VmState.PMSUSPENDED:
            raise refused_in(view, state)
        case VmState.SAVING | VmState.DUMPING | VmState.CRASHED:
            raise refused_in(view, state)
        case VmState.STARTING | VmState.STOPPING | VmState.UNKNOWN:  # waited for in vain
            raise refused_in(view, state)
        case _:
            assert_never(state)


def refused_in(view: View, state: VmState) -> RequestRefused:
    """Return why nothing can be done with a vm in that state."""
    code, what = _STATE_REFUSALS[state]
    return RequestRefused(code, f"vm {view.vm} {what}")


def _require_no_promise(view: View, command: Pivot | Check, state: VmState) -> None:
    if command.require_quiesce:
        raise RequestRefused("vm_paused_not_quiesced", f"vm {view.vm} is {state}, so its agent cannot freeze anything")


def found(view: View, vm_state: str, *, quiesce: bool) -> Ready:
    """Return the vm as it is now, whatever may be done with it."""
    guest = view.guest
    return Ready(
        vm_state=vm_state,
        runtime_id=guest.runtime_id(),
        live_xml=guest.live_xml(),
        persistent_xml=guest.persistent_xml(),
        quiesce=quiesce,
    )


def found_stopped(view: View) -> Ready:
    """Return a stopped vm as it is now. Raises RequestRefused for one with a managed save image."""
    if view.guest.has_managed_save():
        raise RequestRefused("vm_managed_save", f"vm {view.vm} is off with a managed save image")
    xml = view.guest.persistent_xml()
    return Ready(vm_state="off", runtime_id="", live_xml="", persistent_xml=xml, quiesce=False)


def require_unchanged(work: Work, ready: Ready) -> None:
    """Raise RequestRefused if the vm has started, stopped or been replaced since, if it is too late to begin, or if a
    migration or another call has begun, for which the switch would wait. Waits for nothing: the guest may be frozen.
    """
    if not work.guest.is_still(ready.runtime_id):
        raise RequestRefused("vm_state_changed", f"vm {work.vm} was {ready.runtime_id or 'off'} and is so no more")
    if work.remaining_ms == 0:
        raise RequestRefused("deadline_passed", f"attempt {work.attempt} for vm {work.vm} is past its deadline")
    if ready.is_active:
        warnings_of(of_job(work))


def new_definition(work: Work, ready: Ready) -> str:
    """Return the persistent definition on the new leaves; disks that were plugged into the running vm only stay out."""
    known = vm_xml.sources(ready.persistent_xml)
    leaves = {pair.target: (pair.new, pair.switch.new.format) for pair in work.disks if pair.target in known}
    return vm_xml.with_sources(ready.persistent_xml, leaves)
