"""Answers to the conductor: what the SPMs and hosts saw moves their jobs on.

An answer may come twice, late, or never; the conductor takes exactly the one that its job waits for. One that cannot be
stored (database away) is dropped with a line in the log: the outbox sends its command again, and whoever answered it
answers from its journal.
"""

from typing import get_args

from common.messaging.messages import Answer
from common.messaging.shell import Handler
from common.messaging.wire import Envelope
from manager.conductor import Conductor


class Results:
    """Takes answers. Safe to share between threads."""

    def __init__(self, conductor: Conductor) -> None:
        """Feed `conductor`."""
        self._conductor = conductor

    def handlers(self) -> dict[type, Handler]:
        """Return who takes which answer, for the shell."""
        return dict.fromkeys(get_args(Answer), self.take)

    def take(self, envelope: Envelope, answer: Answer) -> Answer | None:
        """Apply one answer. The Manager answers nobody."""
        self._conductor.answer(envelope, answer)
        return None
