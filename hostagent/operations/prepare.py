"""Everything that can be found out before anything is touched: may this vm be pivoted, how, and with which XML.

All refusals are exceptions whose code says why; none of them leaves an effect. The order is from cheap to dear, and the
guest agent comes last, so that "no agent" (which makes the Manager ask again without quiescing) is said only of a vm
that could be pivoted otherwise.
"""

from dataclasses import dataclass
from typing import assert_never

from common.eligibility import refusal
from common.errors import RequestRefused
from common.messaging.messages import Pivot
from common.messaging.reports import DiskReport, VmState
from hostagent import vm_xml
from hostagent.operations.deps import LeafPair, Work
from hostagent.operations.observe import is_at
from hostagent.operations.others import require_images_free

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
_JOB_CODES = {"migration": "vm_migrating", "save": "vm_saving", "dump": "vm_dumping"}
"""What libvirt's jobs are refused as; every other one is `vm_busy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A vm that may be pivoted now, as it was found. `persistent_xml` is '' for a transient vm, `live_xml` for a
    stopped one; `vm_state` is the receipt's word."""

    vm_state: str
    runtime_id: str
    live_xml: str
    persistent_xml: str
    quiesce: bool

    @property
    def is_active(self) -> bool:
        """Tell whether QEMU runs, so that the pivot is a live one."""
        return bool(self.runtime_id)


def prepare(work: Work, command: Pivot) -> Ready:
    """Check every condition of a pivot; touch nothing but, in passing, the agent's ping.

    Raises RequestRefused with the code of the first condition that fails, StorageError when a new volume is not what
    it must be, GuestAgentMissing, HypervisorError (a guest frozen by others), NotReady when something is not there now.
    """
    ready = _ready(work, command, _settled_state(work))
    _require_undisturbed(work, ready)
    _require_leaves(work, ready)
    require_images_free(work, is_active=ready.is_active)
    owner = work.deps.qemu_owner(ready.runtime_id) if ready.is_active else None
    for pair in work.disks:
        work.deps.storage.check_new_volume(pair.switch.new, pair.switch.old, owner)
    if ready.quiesce:
        work.guest.require_agent(AGENT_LIMIT_MS)
    return ready


def _settled_state(work: Work) -> VmState:
    """Return the vm's state, after waiting for one that is about to change."""
    give_up = work.deps.boottime_ms() + min(TRANSITION_MS, work.remaining_ms)
    while (state := work.guest.state()) in (VmState.STARTING, VmState.STOPPING):
        if work.deps.boottime_ms() >= give_up:
            break
        work.deps.pause(_STATE_POLL_S)
    return state


def _ready(work: Work, command: Pivot, state: VmState) -> Ready:
    """Decide by the state whether and how to pivot."""
    match state:
        case VmState.RUNNING:
            return _found(work, "running", quiesce=command.quiesce)
        case VmState.PAUSED:
            _require_no_promise(work, command, state)
            return _found(work, "paused", quiesce=False)
        case VmState.OFF:
            _require_no_promise(work, command, state)
            return _found_stopped(work)
        case VmState.PAUSED_IO_ERROR | VmState.PAUSED_MIGRATION | VmState.PMSUSPENDED:
            raise _refused_in(work, state)
        case VmState.SAVING | VmState.DUMPING | VmState.CRASHED:
            raise _refused_in(work, state)
        case VmState.STARTING | VmState.STOPPING | VmState.UNKNOWN:  # waited for in vain
            raise _refused_in(work, state)
        case _:
            assert_never(state)


def _refused_in(work: Work, state: VmState) -> RequestRefused:
    code, what = _STATE_REFUSALS[state]
    return RequestRefused(code, f"vm {work.vm} {what}")


def _require_no_promise(work: Work, command: Pivot, state: VmState) -> None:
    if command.require_quiesce:
        raise RequestRefused("vm_paused_not_quiesced", f"vm {work.vm} is {state}, so its agent cannot freeze anything")


def _found(work: Work, vm_state: str, *, quiesce: bool) -> Ready:
    guest = work.guest
    return Ready(
        vm_state=vm_state,
        runtime_id=guest.runtime_id(),
        live_xml=guest.live_xml(),
        persistent_xml=guest.persistent_xml() if guest.has_persistent_definition() else "",
        quiesce=quiesce,
    )


def _found_stopped(work: Work) -> Ready:
    if work.guest.has_managed_save():
        raise RequestRefused("vm_managed_save", f"vm {work.vm} is off with a managed save image")
    xml = work.guest.persistent_xml()
    return Ready(vm_state="off", runtime_id="", live_xml="", persistent_xml=xml, quiesce=False)


def _require_undisturbed(work: Work, ready: Ready) -> None:
    if count := work.guest.libvirt_snapshot_count():
        raise RequestRefused("vm_has_libvirt_snapshots", f"vm {work.vm} has {count} snapshot(s) of libvirt's own")
    if not ready.is_active:
        return
    if job := work.guest.job_running():
        what = "another call to libvirt holds" if job == "call" else f"libvirt runs a {job} job on"
        raise RequestRefused(_JOB_CODES.get(job, "vm_busy"), f"{what} vm {work.vm}")
    if targets := work.guest.block_job_targets():
        raise RequestRefused("vm_busy", f"vm {work.vm} has a block job on {', '.join(targets)}")


def _require_leaves(work: Work, ready: Ready) -> None:
    """Raise RequestRefused unless each disk may be snapshotted and is on its old leaf, in every definition it is in."""
    reports = vm_xml.disks(ready.live_xml, ready.persistent_xml, work.deps.storage.locate)
    by_target = {report.target: report for report in reports}
    for pair in work.disks:
        report = by_target.get(pair.target)
        if report is None:
            raise RequestRefused("disk_unknown", f"vm {work.vm} has no disk {pair.target}")
        if code := refusal(report):
            raise RequestRefused(code, f"disk {pair.target} of vm {work.vm} ({report.source or 'empty'})")
        _require_leaf(work, pair, report)


def _require_leaf(work: Work, pair: LeafPair, report: DiskReport) -> None:
    sources = [report.source, *([report.persistent_source] if report.persistent_source else [])]
    wrong = [path for path in sources if not is_at(path, pair.old)]
    if wrong or report.format != pair.switch.old.format:
        found = f"{wrong[0]}" if wrong else f"format {report.format}"
        expected = f"{pair.old} ({pair.switch.old.format})"
        raise RequestRefused("chain_unexpected", f"disk {pair.target} of vm {work.vm}: {found}, not {expected}")


def require_unchanged(work: Work, ready: Ready) -> None:
    """Raise RequestRefused if the vm has started, stopped or been replaced since, or if it is too late to begin."""
    now = work.guest.runtime_id()
    if now != ready.runtime_id:
        raise RequestRefused("vm_state_changed", f"run of vm {work.vm} was {ready.runtime_id!r}, now {now!r}")
    if work.remaining_ms == 0:
        raise RequestRefused("deadline_passed", f"attempt {work.attempt} for vm {work.vm} is past its deadline")


def new_definition(work: Work, ready: Ready) -> str:
    """Return the persistent definition on the new leaves; disks that were plugged into the running vm only stay out."""
    known = vm_xml.sources(ready.persistent_xml)
    leaves = {pair.target: (pair.new, pair.switch.new.format) for pair in work.disks if pair.target in known}
    return vm_xml.with_sources(ready.persistent_xml, leaves)
