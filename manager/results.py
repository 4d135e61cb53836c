"""Answers to whoever waits: what the SPMs and hosts saw moves their jobs on, or ends a question without a job.

An answer may come twice, late, or never; the conductor takes exactly the one that its job waits for. One that cannot be
stored (database away) is dropped with a line in the log: the outbox sends its command again, and whoever answered it
answers from its journal.
"""

from typing import get_args

from common.messaging.messages import Answer
from common.messaging.shell import Handler
from common.messaging.wire import Envelope
from manager.conductor import Conductor
from manager.host_checks import HostChecks


class Results:
    """Takes answers. Safe to share between threads."""

    def __init__(self, conductor: Conductor, host_checks: HostChecks) -> None:
        """Feed `conductor` what names a job, `host_checks` what names none."""
        self._conductor = conductor
        self._host_checks = host_checks

    def handlers(self) -> dict[type, Handler]:
        """Return who takes which answer, for the shell."""
        return dict.fromkeys(get_args(Answer), self.take)

    def take(self, envelope: Envelope, answer: Answer) -> Answer | None:
        """Apply one answer. The Manager answers nobody."""
        if envelope.job is None:
            self._host_checks.take(envelope, answer)
        else:
            self._conductor.answer(envelope, answer)
        return None
