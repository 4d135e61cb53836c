"""The freeze window: entered only with a durable intent and a guard, and always left through a thaw (P2).

    with frozen(work, freeze_limit_ms=60_000, held_limit_ms=10_000) as window:
        ...                         # every file system of the guest is frozen here: only what must be
    window.thawed_filesystems       # what the thaw really thawed

The intent stands in the host's journal and in the live machine's libvirt metadata, which migrates with it. Both are
cleared only by a thaw that the guest's agent has confirmed.
"""

import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

from common import logs
from common.crashpoints import reach
from common.errors import HypervisorError, LivesnapError
from common.messaging.reports import VmState
from hostagent import processes
from hostagent.operations.deps import Work

THAW_LIMIT_MS = 3_000
"""The agent's time limit for one thaw. A thaw whose own write fails never returns: the machine is paused by then."""
THAW_TRIES = 3
"""After so many in vain the guard goes on for as long as it takes."""
_LOOK_EVERY_S = 0.02
FROZEN_BY_OTHERS = "guest_frozen_by_others"

_log = logs.get()


class FrozenWindow:
    """What happened in one window; the counts are complete once the `with` has been left."""

    def __init__(self, work: Work) -> None:
        """Describe a window in which nothing was frozen, as for a paused vm."""
        self._work = work
        self._token = processes.freeze_token(work.deps.host_id)
        self._thawer = _Thawer(work)
        self._frozen_at = 0.0
        self.freeze_sent = False
        self.freeze_confirmed = False
        self.frozen_filesystems = 0
        self.thaw_confirmed = False
        self.thawed_filesystems = 0
        self.guard_fired = False
        self.freeze_ms = 0.0
        self.thaw_ms = 0.0
        self.held_ms = 0.0

    def declare(self, runtime_id: str, freeze_limit_ms: int, held_limit_ms: int) -> None:
        """Write the intent down and arm the guard. Raises NotReady (no guard) or HypervisorError with nothing left."""
        work = self._work
        self._thawer.stand_ready()
        work.deps.journal.maybe_frozen(work.vm, self._token, runtime_id)
        try:
            work.guest.mark_frozen(self._token)
            work.guest.limit_agent(freeze_limit_ms)
            work.deps.guard.arm(work.vm, self._token, freeze_limit_ms + held_limit_ms)
        except LivesnapError:
            self._withdraw()
            raise
        reach("host.pivot.armed")

    def freeze(self, freeze_limit_ms: int, held_limit_ms: int) -> None:
        """Freeze, and give the guard its limit for the time from now on. Raises HypervisorError or NotReady.

        The limit is kept by our own clock too: libvirt counts whole seconds of the wall clock, from a moment of its own
        (after a greeting that has a limit as long), with a limit that belongs to the machine and that others may set.
        """
        work, begun = self._work, time.monotonic()
        self.freeze_sent = True
        self.frozen_filesystems = work.guest.freeze(freeze_limit_ms)
        self._frozen_at = time.monotonic()
        self.freeze_confirmed = True
        self.freeze_ms = (self._frozen_at - begun) * 1000
        reach("host.pivot.frozen")
        if self.freeze_ms > freeze_limit_ms:
            took = f"the freeze took {self.freeze_ms:.0f} ms, and its limit is {freeze_limit_ms} ms"
            raise HypervisorError("freeze_failed", took)
        work.deps.guard.arm(work.vm, self._token, held_limit_ms)

    def switching(self) -> None:
        """Give the thaw its limit beside the switch, which QEMU is about to be asked for: no frozen guest waits for it.

        Before it, our own questions to libvirt would wait for that (1.1 ms, measured).
        """
        if self.freeze_confirmed:
            self._thawer.limit()

    def thaw(self) -> None:
        """End the guard's watch and thaw; what cannot be confirmed is handed back to the guard. Never raises."""
        work, begun = self._work, time.monotonic()
        self.guard_fired = work.deps.guard.disarm(work.vm, self._token)
        count = self._thawer.thaw()
        now = time.monotonic()
        self.thaw_ms = (now - begun) * 1000
        self.held_ms = (now - self._frozen_at) * 1000 if self._frozen_at else 0.0
        reach("host.pivot.thawed")
        if count is None:
            _hand_over(work, self._token)
            return
        self.thaw_confirmed, self.thawed_filesystems = True, count
        self._withdraw()

    def leave_alone(self) -> None:
        """End the guard's watch over a guest that somebody else has frozen: that is not ours to thaw. Never raises."""
        self._work.deps.guard.disarm(self._work.vm, self._token)
        self._withdraw()

    def _withdraw(self) -> None:
        """Remove the intent: the mark first, so that the record is still there to sweep by if that fails."""
        work = self._work
        try:
            if work.guest.frozen_mark():
                work.guest.clear_frozen_mark()
            work.deps.journal.thawed(work.vm, self._token)
        except LivesnapError as later:
            _log.warning("freeze.intent_kept", vm=work.vm, tokens=[self._token], error=str(later))


@contextmanager
def frozen(work: Work, *, runtime_id: str, freeze_limit_ms: int, held_limit_ms: int) -> Iterator[FrozenWindow]:
    """Freeze the guest for the body of the `with`; thaw it whatever happens, a failed freeze included.

    A freeze that fails may still complete later (the agent is slower than its limit): the thaw then waits behind it in
    the agent's queue. Only where the agent refused because it is frozen already there is nothing of ours to thaw.
    Raises NotReady(guard_unavailable) with nothing frozen; HypervisorError: freeze_failed with the guest thawed again,
    guest_not_thawed when that is not proven, guest_frozen_by_others. A crash inside leaves the intent and the guard.
    """
    window = FrozenWindow(work)
    window.declare(runtime_id, freeze_limit_ms, held_limit_ms)
    failure: LivesnapError | None = None
    try:
        try:
            window.freeze(freeze_limit_ms, held_limit_ms)
        except LivesnapError as refused:
            failure = refused
        else:
            yield window
    finally:
        if failure is not None and failure.code == FROZEN_BY_OTHERS:
            window.leave_alone()
        else:
            window.thaw()
    if failure is not None:
        raise _freeze_error(window, failure) from failure


def _freeze_error(window: FrozenWindow, failure: LivesnapError) -> LivesnapError:
    if failure.code == FROZEN_BY_OTHERS:
        return failure
    if not window.thaw_confirmed:
        message = f"the freeze failed and the guest is not proven thawed: {failure.message}"
        return HypervisorError("guest_not_thawed", message)
    if failure.code == "guard_unavailable":
        return failure
    return HypervisorError("freeze_failed", f"the guest's file systems did not freeze: {failure.message}")


def thaw_orphans(work: Work) -> frozenset[str]:
    """Thaw what an earlier, dead handler of ours may have left frozen; return the tokens of the intents that are over.

    Call it with the vm's lock held. Never raises LivesnapError: what cannot be thawed now goes to the guard, and its
    intent stays.
    """
    try:
        tokens = _orphaned(work)
        if not tokens:
            return tokens
        _log.warning("freeze.orphaned", vm=work.vm, tokens=sorted(tokens))
        is_active = work.guest.exists() and bool(work.guest.runtime_id())
    except LivesnapError as later:
        _log.warning("freeze.not_swept", vm=work.vm, error=str(later))
        return frozenset()
    if is_active and _Thawer(work).thaw() is None:
        for token in tokens:
            _hand_over(work, token)
        return frozenset()
    return tokens


def _orphaned(work: Work) -> frozenset[str]:
    tokens = {token for vm, token, _ in work.deps.journal.frozen_records() if vm == work.vm}
    if work.guest.exists() and work.guest.runtime_id() and (mark := work.guest.frozen_mark()):
        tokens.add(mark)
    return frozenset(tokens)


class _Thawer:
    """Thaws in a thread of its own, so that the vm can be looked at meanwhile.

    A thaw whose own write fails does not return: the write has paused the machine, and with it the agent. Waiting for
    the call's limit would hold the guest for 3 s (measured), while all that helps is to bring it back and resume it;
    then the agent goes on, and the call returns to nobody.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        # A guest of its own, since each thread has its own connection to libvirt.
        self._guest = work.deps.guest_of(work.vm)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="thaw")

    def stand_ready(self) -> None:
        """Start the thread and its connection, so that no frozen guest waits for that."""
        self._thread.submit(self._guest.state)

    def limit(self) -> None:
        """Set the thaw's limit; if that fails, the thaw itself does it, and says what failed."""
        self._thread.submit(self._guest.limit_agent, THAW_LIMIT_MS)

    def thaw(self) -> int | None:
        """Return how many file systems the first confirmed thaw has thawed, None if there was none. Call it once."""
        try:
            for _ in range(THAW_TRIES):
                try:
                    return self._thaw_unless_paused()
                except LivesnapError as failed:
                    _log.warning("thaw.failed", vm=self._work.vm, error=str(failed))
                if _cannot_thaw(self._work):
                    break
        finally:
            self._thread.shutdown(wait=False)
        return None

    def _thaw_unless_paused(self) -> int:
        call = self._thread.submit(self._guest.thaw, THAW_LIMIT_MS)
        while not wait((call,), timeout=_LOOK_EVERY_S).done:
            if self._work.guest.state() is VmState.PAUSED_IO_ERROR:
                raise HypervisorError("vm_paused_io_error", f"an I/O error has paused vm {self._work.vm} in its thaw")
        return call.result()


def _cannot_thaw(work: Work) -> bool:
    """Tell whether asking again is useless: a paused machine's agent does not answer, a stopped one has none."""
    try:
        return work.guest.state() is not VmState.RUNNING
    except LivesnapError:
        return False


def _hand_over(work: Work, token: str) -> None:
    """Let the guard thaw until the agent answers: a limit that is over at once."""
    try:
        work.deps.guard.arm(work.vm, token, 1)
    except LivesnapError as nobody:
        _log.error("guest.maybe_frozen", vm=work.vm, token=token, error=str(nobody))


def clear_intents(work: Work, tokens: Collection[str]) -> None:
    """Remove intents of freezes that are over: the guard's, the mark, and last the record. Never raises LivesnapError.

    It needs libvirt's job lock. What cannot be removed now is thawed and removed again later, which is harmless. A vm
    that carries a mark is thawed once more: it may have been away when the others were looked for, and have come back
    frozen.
    """
    if not tokens:
        return
    try:
        for token in tokens:
            work.deps.guard.disarm(work.vm, token)
        if work.guest.exists() and work.guest.runtime_id() and work.guest.frozen_mark() in tokens:
            work.guest.thaw(THAW_LIMIT_MS)
            work.guest.clear_frozen_mark()
        for token in tokens:
            work.deps.journal.thawed(work.vm, token)
    except LivesnapError as later:
        _log.warning("freeze.intent_kept", vm=work.vm, tokens=sorted(tokens), error=str(later))
