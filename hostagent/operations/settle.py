"""Bring the persistent definition in line with QEMU, and say what is true: how every operation ends.

`conclude` never raises a LivesnapError: once a command has begun, it is answered with an observation, and what could
not be observed is UNKNOWN.
"""

from dataclasses import replace

from common import logs
from common.errors import GuestAgentMissing, LivesnapError, OutcomeUnknown, StorageError
from common.messaging.messages import LeavesObserved, Outcome
from hostagent import vm_xml
from hostagent.operations.barrier import call_in_flight
from hostagent.operations.deps import LeafPair, Work
from hostagent.operations.judge import DiskFacts, Place, judge, reason
from hostagent.operations.observe import Seen, look

_log = logs.get()


def conclude(
    work: Work, why: LivesnapError | None = None, *, call_returned: bool = False, untouched: bool = False
) -> LeavesObserved:
    """Observe, repair the persistent definition where that is safe, and return the strongest claim that is proven.

    `why` explains an outcome of NONE. `call_returned` says that no call of ours can be in flight, since the only one
    has returned; otherwise the barrier decides, which may take 30 s. `untouched` says that there was none at all.
    """
    try:
        if not (call_returned or untouched) and (held := call_in_flight(work)):
            return in_flight(work, held)
        seen = look(work)
        if untouched:
            seen = _as_untouched(work, seen)
        try:
            return answer(work, align_definition(work, seen), why)
        except StorageError as not_empty:
            return answer(work, seen, not_empty)
    except LivesnapError as blind:
        return unknown(work, f"the vm cannot be looked at: {blind}")


def _as_untouched(work: Work, seen: Seen) -> Seen:
    """Return what is seen of a vm that no definition of ours can have left with, or is about to leave with.

    Who writes to a stopped one's volumes may be a tool; that it was migrated, libvirt must have said.
    """
    elsewhere = seen.facts.elsewhere and work.guest.has_moved_away()
    return replace(seen, facts=replace(seen.facts, elsewhere=elsewhere, migrating=False))


def align_definition(work: Work, seen: Seen) -> Seen:
    """Set the persistent definition of an active vm to what QEMU has; return what is seen then.

    Forward it is always safe. Back to the old leaf only when the new one is empty, is gone, or was committed: else it
    may hold the only copy of what the guest wrote (V6). Raises StorageError then, and leaves the definition alone. One
    that a vm has left behind on its way to another host is set back too, unless the vm is on the new leaf there.
    """
    facts = seen.facts
    if not facts.elsewhere and not (facts.active and all(disk.is_known for disk in facts.disks)):
        return seen
    leaves: dict[str, tuple[str, str]] = {}
    for pair, disk in zip(work.disks, facts.disks, strict=True):
        if _is_behind(disk):
            leaves[pair.target] = (pair.new, pair.switch.new.format)
        elif _is_ahead(disk) or (facts.elsewhere and disk.persistent is Place.NEW and not disk.new_is_locked):
            # A kept leaf is left and come back to only while the vm is off: what QEMU has is where it writes.
            if not facts.commit_begun and not pair.switch.kept:
                require_empty(work, pair)
            leaves[pair.target] = (pair.old, pair.switch.old.format)
    if not leaves:
        return seen
    work.guest.define(vm_xml.with_sources(seen.persistent_xml, leaves))
    _log.info("definition.aligned", vm=work.vm, leaves={target: path for target, (path, _) in leaves.items()})
    return look(work)


def _is_behind(disk: DiskFacts) -> bool:
    return {disk.truth, disk.live} == {Place.NEW} and disk.persistent is Place.OLD


def _is_ahead(disk: DiskFacts) -> bool:
    return {disk.truth, disk.live} == {Place.OLD} and disk.persistent is Place.NEW


def require_empty(work: Work, pair: LeafPair) -> None:
    """Raise StorageError unless the new leaf holds nothing of the guest's, or does not exist at all."""
    try:
        work.deps.storage.check_new_volume(pair.switch.new, pair.switch.parent)
    except StorageError as refused:
        if refused.code != "volume_not_found" or work.deps.storage.exists(pair.switch.new):
            raise


def answer(work: Work, seen: Seen, why: LivesnapError | None = None) -> LeavesObserved:
    """Return what these facts prove, with the code that says why it is not ALL_NEW."""
    outcome = judge(seen.facts)
    code, message, hint = _explanation(seen, outcome, why)
    if outcome is Outcome.NONE and isinstance(why, GuestAgentMissing):
        outcome = Outcome.NONE_NO_AGENT
    _log.info("leaves.observed", vm=work.vm, attempt=work.attempt, outcome=outcome.value, code=code, message=message)
    return LeavesObserved(
        outcome=outcome,
        boot_id=work.deps.boot_id,
        runtime_id=seen.runtime_id,
        disks=seen.disks,
        commit_begun=seen.facts.commit_begun,
        code=code,
        message=message,
        hint=hint,
    )


def _explanation(seen: Seen, outcome: Outcome, why: LivesnapError | None) -> tuple[str, str, str]:
    """An error explains why nothing was done, never what is wrong with the leaves: that, the facts do. It is told all
    the same: it may be the only trace of the cause."""
    if outcome is Outcome.ALL_NEW:
        return "", "", ""
    none = outcome in (Outcome.NONE, Outcome.NONE_ROLLED_BACK)
    if why is not None and (none or why.code == "volume_not_empty"):
        code = "pivot_failed" if isinstance(why, OutcomeUnknown) else why.code
        return code, why.message, why.hint
    code, message = reason(seen.facts)
    return code, message if why is None else f"{message}; {why.message}", ""


def unknown(work: Work, why: str, code: str = "pivot_unknown") -> LeavesObserved:
    """Return UNKNOWN: nothing was seen, or what was seen may be otherwise in a moment."""
    _log.warning("leaves.unknown", vm=work.vm, attempt=work.attempt, why=why)
    return LeavesObserved(outcome=Outcome.UNKNOWN, boot_id=work.deps.boot_id, runtime_id="", code=code, message=why)


def in_flight(work: Work, held: LivesnapError) -> LeavesObserved:
    """Return UNKNOWN because of what the barrier has met."""
    code = "vm_migrating" if held.code == "vm_migrating" else "pivot_unknown"
    return unknown(work, f"an earlier libvirt call that can move the vm may still be running: {held.message}", code)


def unless_gone(work: Work, seen: LeavesObserved) -> LeavesObserved:
    """Return `seen`, but UNKNOWN for a vm that has left while a pivot was at work on it.

    NOT_HERE would send the next pivot after it at once, and the definition that it took along may name the new leaves:
    the Manager shall probe, here and where the vm is now.
    """
    if seen.outcome is not Outcome.NOT_HERE:
        return seen
    return unknown(work, f"vm {work.vm} has left this host while it was being pivoted: {seen.message}", "vm_migrating")
