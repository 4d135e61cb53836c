"""The error tree.

LivesnapError                    code, message, hint: what a user sees; the code is in common/error_codes.py
├── RequestRefused               nothing was created or touched; the request itself cannot be carried out
├── StorageError                 a storage domain, a volume or qemu-img said no
│   └── HeaderRefused            a file's header is not one we let any tool open (P8)
├── HypervisorError              libvirt, QEMU or the guest agent said no, and what happened is known
│   ├── GuestAgentMissing        no compatible guest agent, found out before anything was touched (P4)
│   └── OutcomeUnknown           nobody can say what happened: probe, never guess (P3)
├── NotReady                     something needed is not there now; nothing was touched, asking again is safe
├── StaleAttempt                 a higher attempt is on record; refused for ever (P6)
├── MessageRejected              a message that is malformed, forged, or not for this consumer (P9)
└── BrokerUnavailable            publishing failed; the outbox still holds the message
"""

from common.error_codes import CATALOGUE


class LivesnapError(Exception):
    """Something that a user is told. `code` is stable, `message` says what was tried and seen, `hint` what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        """Look the default hint up under `code`; an unknown code is a programming error and raises KeyError."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint or CATALOGUE[code].cure

    def __str__(self) -> str:
        """Return code and message, as logs show them."""
        return f"{self.code}: {self.message}"


class RequestRefused(LivesnapError):
    """Nothing was created or touched."""


class StorageError(LivesnapError):
    """A storage domain, a volume or qemu-img said no."""


class HeaderRefused(StorageError):
    """A file's header is not one that we let any tool open (P8)."""


class HypervisorError(LivesnapError):
    """libvirt, QEMU or the guest agent said no, and it is known what happened."""


class GuestAgentMissing(HypervisorError):
    """No compatible guest agent; found out before anything was touched (P4)."""


class OutcomeUnknown(HypervisorError):
    """Nobody can say what happened: probe, never guess (P3)."""


class NotReady(LivesnapError):
    """Something needed is not there now; nothing was touched, asking again is safe."""


class StaleAttempt(LivesnapError):
    """A higher attempt of this vm is on record."""

    def __init__(self, code: str, message: str, *, highest: int) -> None:
        """Carry the highest attempt on record, so that a Manager restored from a backup can catch up."""
        super().__init__(code, message)
        self.highest = highest


class MessageRejected(LivesnapError):
    """A message that is malformed, forged, or not for this consumer (P9)."""


class BrokerUnavailable(LivesnapError):
    """Publishing failed; the outbox still holds the message (P6)."""
