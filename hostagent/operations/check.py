"""Say what a pivot would be refused with, or warn of, as things are now: the host's half of a dry run.

The rules are those of `prepare` (rules.py), but every finding is told instead of the first one being raised. Nothing is
changed: no attempt begins, nothing is written to the journal, and nothing is fenced. The new volumes do not exist yet,
so what they will get from the present leaf (owner, mode, folder) is looked at instead.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta

from common.errors import GuestAgentMissing, LivesnapError, NotReady, RequestRefused
from common.messaging.messages import Check, Checked
from common.messaging.reports import VmState
from common.messaging.wire import Envelope
from common.preflight import Level, PreflightLine, fine, refused, warning
from hostagent.operations.deps import Deps, LeafPair, View, exclusive, pair_of
from hostagent.operations.prepare import AGENT_LIMIT_MS, TRANSITION_MS, Ready, decide, disks_of, found, qemu_user
from hostagent.operations.rules import of_disk, of_space_left, of_vm
from hostagent.ports import QemuUser

LOCK_PATIENCE = timedelta(seconds=1)
"""A command on the same vm takes 0.1 s, and its answer says more than this check could."""
ANSWER_MARGIN_MS = 1_000
"""Room for the way back, of what whoever asked is willing to wait."""


def check(envelope: Envelope, command: Check, deps: Deps) -> Checked:
    """Return every finding. Raises NotReady when libvirt is not there. May be repeated, and cut short, at will."""
    guest = deps.guest_of(command.vm_id)
    if not guest.exists():
        gone = f"libvirt on host {deps.host_id} does not know the vm: it may have moved or been undefined"
        return Checked(lines=(refused("vm_not_found", command.vm_id, gone),))
    disks, lines = _located(command, deps)
    view = View(
        vm=command.vm_id,
        issued_at=envelope.issued_at,
        deadline=envelope.deadline,
        guest=guest,
        disks=disks,
        deps=deps,
    )
    ready, state_line = _of_state(view, command)
    lines.append(state_line)
    lines += _told(view.vm, of_vm(view, is_active=ready.is_active))
    lines += _told(view.vm, _of_agent(view, command, ready))
    reports, user = disks_of(view, ready), qemu_user(view, ready)
    for pair in disks:
        report = reports.get(pair.target)
        disk_lines = of_disk(view, pair, report, command.limits, is_active=ready.is_active)
        lines += _told(pair.target, disk_lines)
        lines += _told(pair.target, _of_access(view, pair, user))
    lines += _told(view.vm, of_space_left(view, command.limits))
    return Checked(lines=tuple(lines))


def _told(subject: str, lines: Iterable[PreflightLine]) -> Iterator[PreflightLine]:
    """Yield the lines; what ends them early is a line too."""
    try:
        yield from lines
    except LivesnapError as error:
        yield _line(subject, error)


def _line(subject: str, error: LivesnapError) -> PreflightLine:
    """Return what an error means for a job: one that finds something not ready waits for it."""
    level = Level.WARNING if isinstance(error, NotReady) else Level.REFUSAL
    return PreflightLine(level=level, subject=subject, code=error.code, message=error.message, hint=error.hint)


def _located(command: Check, deps: Deps) -> tuple[tuple[LeafPair, ...], list[PreflightLine]]:
    """Return the disks whose storage domain is here, and a line for each of the others."""
    pairs, lines = [], []
    for disk in command.disks:
        try:
            pairs.append(pair_of(deps, disk))
        except LivesnapError as error:
            lines.append(_line(disk.target, error))
    return tuple(pairs), lines


def _of_state(view: View, command: Check) -> tuple[Ready, PreflightLine]:
    """Return the vm as it would be pivoted, or at least as it is, with the line that says which. Waits for nothing."""
    state = view.guest.state()
    as_it_is = found(view, state.value, quiesce=False)
    if state in (VmState.STARTING, VmState.STOPPING):
        message = f"the vm is {state}; a job would wait for {TRANSITION_MS // 1000} s at most"
        return as_it_is, warning("vm_state_unsupported", view.vm, message)
    try:
        return decide(view, command, state), fine(view.vm, f"{state} on host {view.deps.host_id}")
    except RequestRefused as error:
        return as_it_is, _line(view.vm, error)


def _of_agent(view: View, command: Check, ready: Ready) -> Iterator[PreflightLine]:
    """Ask the guest's agent, if it would be asked to freeze.

    A thaw waits behind any other call to the agent, which may hang for seconds: so it is asked only while no command of
    ours, which may have frozen the guest, is at work.
    """
    if not ready.quiesce:
        return
    limit_ms = min(AGENT_LIMIT_MS, max(ANSWER_MARGIN_MS, view.remaining_ms - ANSWER_MARGIN_MS))
    with exclusive(view, LOCK_PATIENCE):
        try:
            view.guest.require_agent(limit_ms)
        except GuestAgentMissing as missing:
            if command.require_quiesce:
                raise
            message = f"{missing.message}: the snapshot would be crash-consistent"
            yield warning(missing.code, view.vm, message)
            return
    yield fine(view.vm, "the guest's agent answers and offers freezing")


def _of_access(view: View, pair: LeafPair, user: QemuUser | None) -> Iterator[PreflightLine]:
    """Prove on the present leaf, whose owner and mode the new volume will get, and on its folder, what QEMU may do."""
    if user is None:
        yield fine(pair.target, "who may open it is not known: the vm is off, and its definition names its own user")
        return
    access = view.deps.storage.require_access(pair.switch.old, user)
    view.deps.storage.require_way(pair.switch.new, user)
    if access.by_mode:
        yield fine(pair.target, access.how)
        return
    message = f"disk {pair.target}: {access.how}, but owner and mode, which are all that a new volume gets, forbid it"
    yield warning("volume_permission", pair.target, message)
