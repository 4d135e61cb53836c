"""Put every disk of one vm on its new leaf, all or none: the critical section of the product.

The order of durable writes is protocol.md's (part A, section 5). What a crash leaves behind at each step is found by
the next Probe, because the journal knows that this attempt has begun: it is never carried out twice.

    begun      nothing touched
    defined    the persistent definition is on the empty new leaves; a boot from them is safe at once
    armed      an intent to freeze in the journal and in the live metadata; the guard watches
    frozen     the guard thaws when this process dies
    issued     libvirt may be about to switch: the barrier waits for it
    switched   QEMU is on the new leaves, with both definitions
    thawed     as switched, and the guest writes
    done       the answer is on the journal and is replayed
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime

from common import logs
from common.crashpoints import reach
from common.errors import HypervisorError, LivesnapError, NotReady, OutcomeUnknown
from common.messaging.messages import LeavesObserved, Outcome, Pivot
from common.messaging.wire import Envelope
from common.receipt import Receipt
from hostagent import vm_xml
from hostagent.operations.barrier import call_in_flight
from hostagent.operations.deps import Deps, Work, work_on
from hostagent.operations.first_writes import watch_first_writes, written_at_ms
from hostagent.operations.freeze import FrozenWindow, frozen
from hostagent.operations.judge import judge
from hostagent.operations.observe import look
from hostagent.operations.offline import pivot_stopped
from hostagent.operations.once import carry_out
from hostagent.operations.prepare import Ready, new_definition, prepare, require_unchanged
from hostagent.operations.rollback import roll_back
from hostagent.operations.settle import answer, conclude, in_flight, unknown, unless_gone

_log = logs.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """The one call that moves the leaves: when it returned, how long it took, and what it said if it failed."""

    at: datetime
    ms: float
    failure: LivesnapError | None = None


def pivot(envelope: Envelope, command: Pivot, deps: Deps) -> LeavesObserved:
    """Pivot once; a repeated attempt is answered from the journal or by looking, never by acting again.

    Raises StaleAttempt for an attempt that was overtaken, and NotReady while nothing has been touched or everything
    has been undone. Any other end is an observation.
    """
    work = work_on(envelope, command, deps)
    return carry_out(
        work, "pivot", lambda first: _pivot_once(work, command) if first else unless_gone(work, conclude(work))
    )


def _pivot_once(work: Work, command: Pivot) -> LeavesObserved:
    begun = time.monotonic()
    if held := call_in_flight(work):
        return in_flight(work, held)
    try:
        ready = prepare(work, command)
    except NotReady:
        raise
    except LivesnapError as refused:
        return conclude(work, refused, untouched=True)
    reach("host.pivot.prepared")
    if not ready.is_active:
        return unless_gone(work, pivot_stopped(work, ready))
    return unless_gone(work, _pivot_live(work, command, ready, (time.monotonic() - begun) * 1000))


def _pivot_live(work: Work, command: Pivot, ready: Ready, prepare_ms: float) -> LeavesObserved:
    targets = vm_xml.targets(ready.live_xml)
    request = vm_xml.snapshot_xml({pair.target: pair.new for pair in work.disks}, targets)
    try:
        _define_new(work, ready)
        with _window(work, command, ready) as window:
            switch = _switch(work, ready, request, window)
    except LivesnapError as refused:
        return _never_switched(work, ready, refused)
    if switch.failure is not None:
        return _switch_failed(work, switch.failure)
    receipt = replace(
        _receipt(command, ready, switch, window),
        switch_late=window.guard_fired and switch.ms >= work.deps.switch_limit_ms,
        prepare_ms=round(prepare_ms, 2),
    )
    return _switched(work, ready, receipt)


def _receipt(command: Pivot, ready: Ready, switch: Switch, window: FrozenWindow) -> Receipt:
    return Receipt(
        vm_state=ready.vm_state,
        quiesce=ready.quiesce,
        switched_at=switch.at,
        own_switch=True,
        warnings=ready.warnings,
        freeze_sent=window.freeze_sent,
        freeze_confirmed=window.freeze_confirmed,
        frozen_filesystems=window.frozen_filesystems,
        thaw_confirmed=window.thaw_confirmed,
        thawed_filesystems=window.thawed_filesystems,
        guard_fired=window.guard_fired,
        freeze_ms=round(window.freeze_ms, 2),
        freeze_limit_ms=command.freeze_limit_ms,
        held_ms=round(window.held_ms, 2),
        held_limit_ms=command.held_limit_ms,
        switch_ms=round(switch.ms, 2),
        thaw_ms=round(window.thaw_ms, 2),
    )


def _define_new(work: Work, ready: Ready) -> None:
    """Move the persistent definition first, so that a host that dies right after the switch boots what was written."""
    if not ready.persistent_xml:
        return
    _issue(work)
    work.guest.define(new_definition(work, ready))
    reach("host.pivot.defined")


def _issue(work: Work) -> None:
    deps = work.deps
    deps.journal.call_issued(work.vm, work.attempt, deps.boottime_ms(), deps.libvirtd_instance())


def _window(work: Work, command: Pivot, ready: Ready) -> AbstractContextManager[FrozenWindow]:
    if not ready.quiesce:
        return nullcontext(FrozenWindow(work))
    return frozen(
        work,
        runtime_id=ready.runtime_id,
        freeze_limit_ms=command.freeze_limit_ms,
        held_limit_ms=min(command.held_limit_ms, work.deps.switch_limit_ms),
    )


def _switch(work: Work, ready: Ready, request: str, window: FrozenWindow) -> Switch:
    """Make the one call. The guest may be frozen: nothing else belongs here. Raises only before the call goes out.

    It waits if a migration or another call begins at the last moment; the guard then thaws after the switch's limit,
    and the call may still be carried out, at latest when libvirt gives it up after 30 s.
    """
    require_unchanged(work, ready)
    _issue(work)
    reach("host.pivot.issued")
    window.switching()
    begun, failure = time.monotonic(), None
    try:
        work.guest.switch_leaves(request)
    except LivesnapError as said:
        failure = said
    switch = Switch(at=work.deps.clock.now(), ms=(time.monotonic() - begun) * 1000, failure=failure)
    reach("host.pivot.switched")
    return switch


def _never_switched(work: Work, ready: Ready, refused: LivesnapError) -> LeavesObserved:
    """Undo the definition and observe. With everything undone, what was only not ready may be asked again."""
    _log.warning("pivot.not_switched", vm=work.vm, attempt=work.attempt, error=str(refused))
    try:
        if ready.persistent_xml and work.guest.runtime_id() == ready.runtime_id:
            work.guest.define(ready.persistent_xml)
    except LivesnapError as later:
        _log.warning("definition.not_undone", vm=work.vm, error=str(later))
    seen = conclude(work, refused, call_returned=_has_returned(refused))
    if isinstance(refused, NotReady) and seen.outcome is Outcome.NONE:
        raise refused
    return seen


def _switch_failed(work: Work, failure: LivesnapError) -> LeavesObserved:
    """An error is not an outcome: look. Only an error that libvirt itself returned means that its call has ended."""
    _log.warning("pivot.switch_failed", vm=work.vm, attempt=work.attempt, error=str(failure))
    why = HypervisorError("pivot_failed", f"the new volumes were not taken: {failure.message}")
    return conclude(work, why, call_returned=_has_returned(failure))


def _has_returned(failure: LivesnapError) -> bool:
    return not isinstance(failure, OutcomeUnknown | NotReady)


def _switched(work: Work, ready: Ready, receipt: Receipt) -> LeavesObserved:
    """The call succeeded: see whether the vm is on its new leaves and can write there; if it cannot, roll it back.

    What the switch has proven stands on the journal even if libvirt is lost now: a probe may find the vm ALL_NEW.
    """
    try:
        is_running = ready.vm_state == "running"
        since_ms = written_at_ms(work, ready.first_data) if is_running else 0
        seen = look(work)
        if judge(seen.facts) is Outcome.ALL_NEW and is_running:
            seen = watch_first_writes(work, seen, ready.first_data, since_ms=since_ms)
        if seen.facts.io_error or seen.io_errors:
            return roll_back(work, seen)
        answered = answer(work, seen)
    except LivesnapError as blind:
        answered = unknown(work, f"the vm cannot be looked at after its switch: {blind}")
        answered = replace(answered, runtime_id=ready.runtime_id)
    if answered.outcome not in (Outcome.ALL_NEW, Outcome.UNKNOWN):
        return conclude(work, call_returned=True)
    proven = replace(receipt, own_switch=answered.runtime_id == ready.runtime_id)
    return replace(answered, receipt=proven, live_xml=ready.live_xml, persistent_xml=ready.persistent_xml)
