"""Put the disks of a stopped vm onto another branch of their volumes, or back: only its definition is changed.

A snapshot is previewed so, and a preview undone. The rules are those of `offline.py`: stale <backingStore> goes, a
managed save image forbids it, and "off" must hold before and after. What a crash leaves at each step is found by the
next Probe: this attempt is never carried out twice.

    begun      nothing touched
    prepared   nothing touched
    defined    the definition is on the new leaves, all of them
    done       the answer is on the journal and is replayed
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from common.crashpoints import reach
from common.errors import LivesnapError, NotReady, RequestRefused
from common.messaging.messages import LeavesObserved, Redefine
from common.messaging.reports import VmState
from common.messaging.wire import Envelope
from common.preflight import DEFAULT_LIMITS, PreflightLine
from hostagent.operations.barrier import call_in_flight
from hostagent.operations.deps import Deps, LeafPair, Work, work_on
from hostagent.operations.once import carry_out
from hostagent.operations.prepare import (
    Ready,
    disks_of,
    found_stopped,
    new_definition,
    qemu_user,
    refused_in,
    require_unchanged,
    settled_state,
)
from hostagent.operations.rules import of_disk, of_vm, warnings_of
from hostagent.operations.settle import conclude, in_flight, unless_gone

ANY_DEPTH: Final = replace(DEFAULT_LIMITS, max_chain=sys.maxsize)
"""A chain that has become too deep for one more snapshot is left by going back to an older one."""


def redefine(envelope: Envelope, command: Redefine, deps: Deps) -> LeavesObserved:
    """Redefine once; a repeated attempt is answered from the journal or by looking, never by acting again.

    Raises StaleAttempt for an attempt that was overtaken, and NotReady while nothing has been touched. Any other end is
    an observation: ALL_NEW, or why not.
    """
    work = work_on(envelope, command, deps)
    return carry_out(
        work, "redefine", lambda first: _redefine_once(work) if first else unless_gone(work, conclude(work))
    )


def _redefine_once(work: Work) -> LeavesObserved:
    if held := call_in_flight(work):
        return in_flight(work, held)
    try:
        ready = _prepare(work)
    except NotReady:
        raise
    except LivesnapError as refused:
        return conclude(work, refused, untouched=True)
    reach("host.redefine.prepared")
    return unless_gone(work, _define(work, ready))


def _prepare(work: Work) -> Ready:
    """Check every condition; touch nothing. Raises RequestRefused, StorageError, HeaderRefused, NotReady."""
    state = settled_state(work)
    if state in (VmState.RUNNING, VmState.PAUSED):
        raise RequestRefused("vm_running", f"vm {work.vm} is {state.value}")
    if state is not VmState.OFF:
        raise refused_in(work, state)
    if work.guest.has_moved_away():
        raise RequestRefused("vm_not_found", f"vm {work.vm} was migrated away, only its definition is here")
    ready = found_stopped(work)
    warnings_of(_lines(work, ready))
    user = qemu_user(work, ready)
    for pair in work.disks:
        _require_leaf(work, pair)
        if user is not None:
            work.deps.storage.require_access(pair.switch.new, user)
    return ready


def _lines(work: Work, ready: Ready) -> Iterator[PreflightLine]:
    yield from of_vm(work, is_active=False)
    by_target = disks_of(work, ready)
    for pair in work.disks:
        yield from of_disk(work, pair, by_target.get(pair.target), ANY_DEPTH, is_active=False)


def _require_leaf(work: Work, pair: LeafPair) -> None:
    if pair.switch.kept:
        work.deps.storage.check_kept_volume(pair.switch.new, pair.switch.disk_id)
    else:
        work.deps.storage.check_new_volume(pair.switch.new, pair.switch.parent)


def _define(work: Work, ready: Ready) -> LeavesObserved:
    """Make the one call, and look. A crash in between leaves either definition whole; both are right to boot from."""
    deps = work.deps
    try:
        require_unchanged(work, ready)
        if work.guest.has_managed_save():
            raise RequestRefused("vm_managed_save", f"vm {work.vm} was saved while it was being prepared")
        deps.journal.call_issued(work.vm, work.attempt, deps.boottime_ms(), deps.libvirtd_instance())
        work.guest.define(new_definition(work, ready))
    except LivesnapError as refused:
        return conclude(work, refused)
    reach("host.redefine.defined")
    changed = RequestRefused("vm_state_changed", f"vm {work.vm} was started while it was being redefined")
    return conclude(work, changed, call_returned=True)
