"""The envelope: which job, step and attempt a message belongs to, who signed it, and how it crosses a queue.

The JSON text that is transmitted is itself what is signed, so there is no canonical form to agree on. `unseal` trusts
nothing: size, then the claimed sender's signature over the text as it came, and only then the content, strictly.
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Final, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import MessageRejected
from common.ids import JobId, StepId, VmId, require_uuid
from common.messaging.keys import Keyring, SigningKey, require_sender
from common.messaging.messages import (
    Answer,
    Checked,
    Command,
    Failed,
    HostInspected,
    LeavesObserved,
    MergeSeen,
    Refusal,
    Refused,
    VolumesCreated,
    VolumesDeleted,
    VolumesInspected,
)
from common.messaging.queues import MANAGER, host_of, pool_of
from common.messaging.reports import HostReport, Report, SpmReport
from common.messaging.surveys import HostSurveyed, StorageSurveyed

SCHEMA_VERSION: Final = 1
MAX_BODY_BYTES: Final = 1024 * 1024
"""A full report of some hundred vms fits; a host with more sends several that are not `full`."""

TASK_ANSWER: Final = "manager.answer"
TASK_REPORT: Final = "manager.report"

Body = Command | Answer | Report

_MAX_ATTEMPT: Final = 2**31 - 1
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_LONG_INTEGER: Final = re.compile(rb"\d{19}")
_FROM_HOST: Final = (HostSurveyed, Checked, LeavesObserved, MergeSeen, Failed, Refused)
_FROM_SPM: Final = (
    *(VolumesCreated, VolumesDeleted, VolumesInspected, HostInspected, StorageSurveyed, MergeSeen),
    *(Failed, Refused),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message. `sender` and `to` are queue names; times carry their zone; `job` and `vm` are None in reports, `job`
    is in what belongs to none (a check and its answer).

    `step` names one request of the Manager: its answer carries the same, and re-sending repeats it. `attempt` counts
    per vm and fences (P6).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    v: int
    sender: str
    to: str
    job: JobId | None
    vm: VmId | None
    step: StepId
    attempt: int
    issued_at: datetime
    deadline: datetime
    body: Annotated[Body, Field(discriminator="op")]

    def __post_init__(self) -> None:
        """Refuse what could not have come from an honest process: ids, names, times, and who may say what to whom."""
        require_sender(self.sender)
        require_sender(self.to)
        require_uuid(*(value for value in (self.job, self.vm, self.step) if value is not None))
        if not 0 <= self.attempt <= _MAX_ATTEMPT:
            raise ValueError(f"attempt {self.attempt} is not between 0 and {_MAX_ATTEMPT}")
        if self.issued_at.tzinfo is None or self.deadline.tzinfo is None:
            raise ValueError("a time without its zone")
        if getattr(self.body, "vm_id", self.vm) != self.vm:
            raise ValueError("the envelope's vm is not the one that the command names")
        if not _may_say(self.sender, self.to, self.body):
            raise ValueError(f"{self.sender} may not say {self.body.op} to {self.to}")


def _may_say(sender: str, to: str, body: Body) -> bool:
    """Tell whether `sender` speaks for itself here: only the Manager commands, others answer and report to it."""
    if sender == MANAGER:
        return isinstance(body, get_args(Command)) and to.partition(".")[0] == body.op.partition(".")[0]
    if to != MANAGER:
        return False
    match body:
        case HostReport(host_id=host):
            return host == host_of(sender)
        case SpmReport(pool_id=pool):
            return pool == pool_of(sender)
        case _:
            return isinstance(body, _FROM_HOST if host_of(sender) else _FROM_SPM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A message as it is transmitted: who claims to have sent it, the signed JSON text, the signature in base64."""

    sender: str
    body: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What any version of an envelope says of itself: enough to answer one whose content cannot be read."""

    v: int
    sender: str
    to: str
    step: StepId
    job: JobId | None = None
    vm: VmId | None = None
    attempt: int = 0

    def __post_init__(self) -> None:
        """Refuse malformed ids: they are sent back."""
        require_uuid(*(value for value in (self.job, self.vm, self.step) if value is not None))
        if not 0 <= self.attempt <= _MAX_ATTEMPT:
            raise ValueError("attempt out of range")


class Unreadable(MessageRejected):
    """The signature is good and the message is for us, but its content cannot be understood: it can be answered."""

    why: ClassVar[Refusal] = Refusal.MALFORMED

    def __init__(self, message: str, *, head: Head) -> None:
        """Carry what could be read."""
        super().__init__("message_rejected", message)
        self.head = head


class NewerVersion(Unreadable):
    """The sender's schema is newer than ours."""

    why: ClassVar[Refusal] = Refusal.VERSION


_ENVELOPE: Final = TypeAdapter(Envelope)
_HEAD: Final = TypeAdapter(Head)


def task_of(body: Body) -> str:
    """Return the Celery task that takes `body`: a command's own name, or one of the Manager's two inboxes."""
    if isinstance(body, get_args(Command)):
        return str(body.op)
    return TASK_REPORT if isinstance(body, HostReport | SpmReport) else TASK_ANSWER


def readable(envelope: Envelope, machine: str = "") -> str:
    """Return one line for people (Flower shows it in place of the arguments); ids and the machine's name, no secret.

    A name that is not plain is left out: it comes from guests' owners, and this is shown on a page.
    """
    name = machine if _PLAIN_NAME.fullmatch(machine) else None
    facts = {
        "vm": name or envelope.vm,
        "attempt": envelope.attempt,
        "job": envelope.job,
        "step": envelope.step,
        "vm_id": envelope.vm if name else None,
    }
    return " ".join([envelope.body.op, *(f"{name}={value}" for name, value in facts.items() if value is not None)])


def seal(envelope: Envelope, key: SigningKey) -> Sealed:
    """Sign `envelope` with its sender's key.

    Raises ValueError if the key is another's, if a field holds what its type does not allow, or if the text is longer
    than MAX_BODY_BYTES: better here than at the receiver, who could only refuse it.
    """
    if key.sender != envelope.sender:
        raise ValueError(f"{key.sender}'s key cannot sign for {envelope.sender}")
    text = _ENVELOPE.dump_json(envelope, warnings="error")
    if len(text) > MAX_BODY_BYTES:
        raise ValueError(f"{envelope.body.op} of {len(text)} bytes, at most {MAX_BODY_BYTES}")
    signature = base64.b64encode(key.sign(text)).decode("ascii")
    return Sealed(sender=envelope.sender, body=text.decode(), signature=signature)


def unseal(sealed: Sealed, keyring: Keyring, *, me: str) -> Envelope:
    """Return the envelope, authentic and well-formed and meant for `me`; raise MessageRejected otherwise.

    NewerVersion and Unreadable are raised only for what the sender did sign and address to `me`, so that it may be
    answered; nothing in any other rejected message can be believed, its sender's name least of all.
    """
    text = _authentic_text(sealed, keyring)
    try:
        _refuse_long_integers(text)
        envelope = _ENVELOPE.validate_json(text)
    except (ValueError, RecursionError) as error:
        raise _rejection(text, sealed.sender, me, error) from None
    if envelope.sender != sealed.sender:
        raise MessageRejected("message_rejected", f"signed by {sealed.sender}, but says it is from {envelope.sender}")
    if envelope.to != me:
        raise MessageRejected("message_rejected", f"from {sealed.sender} to {envelope.to}, not to {me}")
    if envelope.v != SCHEMA_VERSION:
        raise _rejection(text, sealed.sender, me, ValueError(f"schema version {envelope.v}"))
    return envelope


def _authentic_text(sealed: Sealed, keyring: Keyring) -> bytes:
    """Return the transmitted text once its signature is proven; nothing of it is parsed before."""
    if not all(isinstance(part, str) for part in (sealed.sender, sealed.body, sealed.signature)):
        raise MessageRejected("message_rejected", "sender, body and signature must be text")
    if len(sealed.body) > MAX_BODY_BYTES:
        raise MessageRejected("message_rejected", f"{len(sealed.body)} characters, at most {MAX_BODY_BYTES}")
    try:
        text = sealed.body.encode()
        signature = base64.b64decode(sealed.signature, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise MessageRejected("message_rejected", f"not text and base64: {error}") from None
    # base64 has spare bits at its end: two texts must not pass for one signature.
    if base64.b64encode(signature).decode("ascii") != sealed.signature:
        raise MessageRejected("message_rejected", "the signature's base64 is not in its usual form")
    keyring.verify(sealed.sender, signature, text)
    return text


def _refuse_long_integers(text: bytes) -> None:
    """Raise ValueError for an integer beyond 64 bits: Python would take it, and every database driver would choke."""
    if _LONG_INTEGER.search(text) is not None:
        json.loads(text, parse_int=_int64)


def _int64(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"integer beyond 64 bits: {digits[:40]}")
    return value


def _rejection(text: bytes, sender: str, me: str, error: Exception) -> MessageRejected:
    """Say why a signed text was refused, as an answerable exception where its head can be read and is in order."""
    seen = _first_line(error)
    try:
        head = _HEAD.validate_json(text, strict=True, extra="ignore")
    except (ValueError, RecursionError):
        return MessageRejected("message_rejected", f"from {sender}: {seen}")
    if head.sender != sender or head.to != me:
        return MessageRejected("message_rejected", f"signed by {sender}, but from {head.sender} to {head.to}")
    if head.v > SCHEMA_VERSION:
        return NewerVersion(f"from {sender}: schema version {head.v}, this process knows {SCHEMA_VERSION}", head=head)
    return Unreadable(f"from {sender}: {seen}", head=head)


def _first_line(error: Exception) -> str:
    """Return what went wrong on one line of bounded length; pydantic's own text repeats the whole input."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:300]
    return str(error).partition("\n")[0][:300]
