"""The shell round each handler: unseal, refuse what is late, run, and answer whatever happens. Knows no Celery.

Whoever sends a command that is authentic gets an answer (P9); whoever sends anything else gets a line in the log. The
answer is published after the handler's own durable writes, so a crash between the two loses only the answer: the
outbox sends the command again and the handler replays what it did (P6).
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Final

from structlog.contextvars import bound_contextvars

from common import logs, metrics
from common.clock import Clock
from common.crashpoints import reach
from common.errors import BrokerUnavailable, LivesnapError, MessageRejected, NotReady, StaleAttempt
from common.ids import StepId, new_id
from common.messaging import refusals
from common.messaging.keys import Keyring, SigningKey
from common.messaging.messages import Answer, Failed, Refusal, Refused
from common.messaging.queues import MANAGER
from common.messaging.reports import Report
from common.messaging.wire import (
    SCHEMA_VERSION,
    Envelope,
    Head,
    Sealed,
    Unreadable,
    readable,
    seal,
    task_of,
    unseal,
)

ANSWER_VALID: Final = timedelta(days=1)
"""An answer is an observation of its moment; the Manager knows by step and attempt whether it still matters."""

REPORT_VALID: Final = timedelta(minutes=10)
"""Reports come every half minute, so that a Manager that was away for long need not read old ones."""

_log = logs.get()

Handler = Callable[[Envelope, Any], Answer | None]
"""What a process does with one type of body. Only the Manager's handlers return None: it answers nobody."""

Publish = Callable[[str, str, Sealed, str], None]
"""Send to a queue, as a task, a sealed message, with a line for people; raises BrokerUnavailable."""


class Shell:
    """One process's side of the conversation. Safe to share between threads, if its handlers are."""

    def __init__(
        self,
        me: str,
        key: SigningKey,
        keyring: Keyring,
        clock: Clock,
        *,
        handlers: Mapping[type, Handler],
        publish: Publish,
    ) -> None:
        """Speak as `me` (a queue's name); `handlers` maps each type of body that is understood to who takes it."""
        self._me = me
        self._key = key
        self._keyring = keyring
        self._clock = clock
        self._handlers = handlers
        self._publish = publish

    def handle(self, sender: str, body: str, signature: str) -> None:
        """Take one message to its end. Never raises: whatever goes wrong is logged, and answered where it can be."""
        try:
            self._handle(Sealed(sender=sender, body=body, signature=signature))
        except Exception:  # noqa: BLE001  (the worker shell: Celery would drop the message with less of a trace)
            _log.exception("shell.fault", sender=str(sender)[:80])

    def send_report(self, report: Report) -> bool:
        """Tell the Manager what is seen here; return False, with a line in the log, if it could not be sent.

        A report that is lost is not sent again: the next one says as much.
        """
        try:
            return self._send(None, report)
        except ValueError:
            _log.exception("report.fault", op=report.op)
            return False

    def _handle(self, sealed: Sealed) -> None:
        try:
            envelope = unseal(sealed, self._keyring, me=self._me)
        except MessageRejected as rejected:
            self._reject(rejected)
            return
        with _bound(envelope):
            began = time.monotonic()
            answer = self._outcome(envelope)
            metrics.handled(envelope.body.op, _word(answer), time.monotonic() - began)
            if answer is not None and envelope.sender == MANAGER:
                reach("shell.before_answer")
                self._answer(envelope, answer)
                reach("shell.after_answer")

    def _reject(self, rejected: MessageRejected) -> None:
        """Log and count a message that was not let in; answer it if the Manager did sign it."""
        refused = refusals.count(refusals.Where.ENVELOPE)
        _log.warning("message.rejected", reason=rejected.message, refused=refused)
        if isinstance(rejected, Unreadable) and rejected.head.sender == MANAGER:
            with _bound(rejected.head):
                self._answer(rejected.head, Refused(why=rejected.why, message=rejected.message))

    def _outcome(self, envelope: Envelope) -> Answer | None:
        """Run the handler and return what to answer: its own word, or what its exception means."""
        now = self._clock.now()
        if now > envelope.deadline:
            late = f"{envelope.body.op} came at {now.isoformat()}, after its deadline {envelope.deadline.isoformat()}"
            _log.warning("message.expired", op=envelope.body.op, deadline=envelope.deadline.isoformat())
            return Refused(why=Refusal.EXPIRED, message=late)
        handler = self._handlers.get(type(envelope.body))
        if handler is None:
            _log.warning("message.unhandled", op=envelope.body.op)
            return Refused(why=Refusal.MALFORMED, message=f"{self._me} does not take {envelope.body.op}")
        try:
            return handler(envelope, envelope.body)
        except StaleAttempt as stale:
            _log.info("message.stale", op=envelope.body.op, highest=stale.highest)
            return Refused(why=Refusal.STALE, message=stale.message, highest=stale.highest)
        except NotReady as not_ready:
            _log.info("message.not_ready", op=envelope.body.op, reason=not_ready.message)
            why = Refusal.BUSY if not_ready.code == "vm_busy" else Refusal.NOT_READY
            return Refused(why=why, message=not_ready.message, code=not_ready.code)
        except LivesnapError as error:
            _log.warning("message.failed", op=envelope.body.op, code=error.code, reason=error.message)
            return Failed(code=error.code, message=error.message, hint=error.hint)
        except Exception as error:  # noqa: BLE001  (the worker shell: a fault here must neither be silent nor kill)
            _log.exception("message.fault", op=envelope.body.op)
            return _fault(envelope.body.op, error)

    def _answer(self, about: Envelope | Head, answer: Answer) -> None:
        """Send `answer` to the Manager; where it cannot be sealed (a fault of ours), say that instead."""
        try:
            self._send(about, answer)
        except Exception as error:  # noqa: BLE001  (a handler may have returned anything; the Manager must hear of it)
            _log.exception("answer.fault")
            self._send(about, _fault("the answer", error))

    def _send(self, about: Envelope | Head | None, body: Answer | Report) -> bool:
        """Seal and publish; return False if the broker did not take it (the outbox will ask for an answer again)."""
        envelope = self._envelope(about, body)
        sealed = seal(envelope, self._key)
        try:
            self._publish(MANAGER, task_of(body), sealed, readable(envelope))
        except BrokerUnavailable as error:
            _log.warning("publish.failed", op=body.op, reason=error.message)
            return False
        return True

    def _envelope(self, about: Envelope | Head | None, body: Answer | Report) -> Envelope:
        """Return an envelope to the Manager: an answer `about` a command, or, about nothing, a report."""
        now = self._clock.now()
        return Envelope(
            v=SCHEMA_VERSION,
            sender=self._me,
            to=MANAGER,
            job=about.job if about else None,
            vm=about.vm if about else None,
            step=about.step if about else StepId(new_id()),
            attempt=about.attempt if about else 0,
            issued_at=now,
            deadline=now + (ANSWER_VALID if about else REPORT_VALID),
            body=body,
        )


def _word(answer: Answer | None) -> str:
    """Return what came of a message, for those who count; a handler may have returned anything."""
    if isinstance(answer, Refused):
        return str(answer.why)
    return "failed" if isinstance(answer, Failed) else "done"


def _fault(what: str, error: Exception) -> Failed:
    """Return the answer to a fault in livesnap itself; the traceback stands in this process's log only."""
    return Failed(code="internal_error", message=f"{what}: {type(error).__name__}: {str(error)[:300]}")


def _bound(about: Envelope | Head) -> AbstractContextManager[None]:
    """Put the ids of a message into every log line of the block."""
    return bound_contextvars(job=about.job, vm=about.vm, step=about.step, attempt=about.attempt)
