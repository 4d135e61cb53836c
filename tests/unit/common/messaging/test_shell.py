"""The shell answers whatever is authentic, and lets nothing out but answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from common.errors import BrokerUnavailable, LivesnapError, NotReady, OutcomeUnknown, StaleAttempt
from common.messaging import refusals
from common.messaging.messages import Failed, LeavesObserved, Pivot, Probe, Refusal, Refused, VolumesDeleted
from common.messaging.reports import HostReport
from common.messaging.shell import ANSWER_VALID, Handler, Shell
from common.messaging.wire import Envelope, Sealed, seal, unseal
from tests.unit.common.messaging.samples import NOW, Clock, Parties, envelope, observed
from tests.unit.common.messaging.test_wire import signed

Handle = Callable[[Envelope, Any], Any]


@dataclass
class Host:
    """Host h1's shell with one handler, and what it has published."""

    parties: Parties
    handler: Handle = lambda _envelope, _body: observed()
    clock: Clock = field(default_factory=Clock)
    broker_is_down: bool = False
    published: list[tuple[str, str, Sealed, str]] = field(default_factory=list)
    handled: list[Envelope] = field(default_factory=list)

    def __post_init__(self) -> None:
        handlers: dict[type, Handler] = {Pivot: self._handle}
        key = self.parties.key("host.h1")
        self.shell = Shell("host.h1", key, self.parties.ring, self.clock, handlers=handlers, publish=self._publish)

    def take(self, sent: Envelope) -> None:
        sealed = seal(sent, self.parties.key(sent.sender))
        self.take_sealed(sealed)

    def take_sealed(self, sealed: Sealed) -> None:
        self.shell.handle(sealed.sender, sealed.body, sealed.signature)

    @property
    def answers(self) -> list[Envelope]:
        """What the Manager would read."""
        return [unseal(sealed, self.parties.ring, me="manager") for _, _, sealed, _ in self.published]

    def _handle(self, envelope: Envelope, body: Any) -> Any:
        self.handled.append(envelope)
        return self.handler(envelope, body)

    def _publish(self, queue: str, task: str, sealed: Sealed, readable: str) -> None:
        if self.broker_is_down:
            raise BrokerUnavailable("broker_unavailable", "down")
        self.published.append((queue, task, sealed, readable))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Parties(tmp_path))


def test_an_answer_belongs_to_its_command(host: Host) -> None:
    sent = envelope()
    host.take(sent)
    [answer] = host.answers
    assert (answer.sender, answer.to) == ("host.h1", "manager")
    assert (answer.job, answer.vm, answer.step, answer.attempt) == (sent.job, sent.vm, sent.step, sent.attempt)
    assert answer.body == observed()
    assert answer.deadline == NOW + ANSWER_VALID
    [(queue, task, _, line)] = host.published
    assert (queue, task) == ("manager", "manager.answer")
    assert str(sent.vm) in line


def raising(error: Exception) -> Handle:
    def handler(_envelope: Envelope, _body: Any) -> Any:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            StaleAttempt("attempt_stale", "m", highest=9),
            Refused(why=Refusal.STALE, message="m", highest=9),
            id="stale",
        ),
        pytest.param(
            NotReady("libvirt_unavailable", "m"),
            Refused(why=Refusal.NOT_READY, message="m", code="libvirt_unavailable"),
            id="not ready",
        ),
        pytest.param(NotReady("vm_busy", "m"), Refused(why=Refusal.BUSY, message="m", code="vm_busy"), id="busy"),
        pytest.param(
            LivesnapError("storage_full", "m", "h"),
            Failed(code="storage_full", message="m", hint="h"),
            id="of the tree",
        ),
        pytest.param(
            OutcomeUnknown("pivot_unknown", "m", "h"), Failed(code="pivot_unknown", message="m", hint="h"), id="unknown"
        ),
    ],
)
def test_exceptions_become_answers(host: Host, error: Exception, expected: Any) -> None:
    host.handler = raising(error)
    host.take(envelope())
    assert [answer.body for answer in host.answers] == [expected]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("x"), RecursionError("deep"), ValueError("y" * 2000)])
def test_a_fault_is_answered_shortly(host: Host, error: Exception) -> None:
    host.handler = raising(error)
    host.take(envelope())
    [answer] = host.answers
    assert isinstance(answer.body, Failed)
    assert answer.body.code == "internal_error"
    assert type(error).__name__ in answer.body.message
    assert len(answer.body.message) < 500


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(VolumesDeleted(gone=()), id="not a host's to say"),
        pytest.param(replace(observed(), message="\ud800"), id="not UTF-8"),
        pytest.param(replace(observed(), live_xml="x" * 2**20), id="too large"),
        pytest.param(LeavesObserved(outcome=cast(Any, "great"), boot_id="b", runtime_id="r"), id="no such outcome"),
        pytest.param("done", id="no answer at all"),
    ],
)
def test_what_cannot_be_sent_is_said(host: Host, answer: Any) -> None:
    host.handler = lambda _envelope, _body: answer
    host.take(envelope())
    [sent] = host.answers
    assert isinstance(sent.body, Failed)
    assert sent.body.code == "internal_error"


def test_late_commands_are_refused_unhandled(host: Host) -> None:
    sent = envelope()
    host.clock.at = sent.deadline
    host.take(sent)
    assert len(host.handled) == 1, "at the deadline it is still good"
    host.clock.at = sent.deadline + timedelta(microseconds=1)
    host.take(sent)
    assert len(host.handled) == 1
    body = host.answers[1].body
    assert isinstance(body, Refused)
    assert body.why is Refusal.EXPIRED


def test_a_command_that_nobody_here_takes(host: Host) -> None:
    plain = envelope()
    assert isinstance(plain.body, Pivot)
    host.take(replace(plain, body=Probe(vm_id=plain.body.vm_id, disks=plain.body.disks)))
    [answer] = host.answers
    assert isinstance(answer.body, Refused)
    assert answer.body.why is Refusal.MALFORMED


@pytest.mark.parametrize(("change", "why"), [({"v": 2}, Refusal.VERSION), ({"extra": 1}, Refusal.MALFORMED)])
def test_unreadable_commands_of_the_manager_are_answered(host: Host, change: dict[str, Any], why: Refusal) -> None:
    sent = envelope()
    content = json.loads(seal(sent, host.parties.key("manager")).body) | change
    host.take_sealed(signed(host.parties, json.dumps(content)))
    [answer] = host.answers
    assert (answer.step, answer.attempt, answer.job) == (sent.step, sent.attempt, sent.job)
    assert isinstance(answer.body, Refused)
    assert answer.body.why is why
    assert host.handled == []


def test_the_unauthentic_is_counted_and_not_answered(host: Host) -> None:
    before = refusals.counted()[refusals.Where.ENVELOPE]
    good = seal(envelope(), host.parties.key("manager"))
    host.parties.key("host.h2")
    content = json.loads(good.body)
    bad: list[Sealed] = [
        replace(good, signature="AAAA"),
        replace(good, sender="host.h2"),
        replace(good, sender="../../etc/passwd"),
        replace(good, body=good.body.replace("host.h1", "host.h2")),
        signed(host.parties, json.dumps(content | {"to": "host.h2"})),
        signed(host.parties, json.dumps(content), sender="host.h2"),
        signed(host.parties, json.dumps(content | {"sender": "host.h2", "v": 2}), sender="host.h2"),
        signed(host.parties, "{}"),
        Sealed(sender=None, body=7, signature=[]),  # type: ignore[arg-type]
    ]
    for sealed in bad:
        host.take_sealed(sealed)
    assert (host.published, host.handled) == ([], [])
    assert refusals.counted()[refusals.Where.ENVELOPE] == before + len(bad)
    host.take_sealed(good)
    assert len(host.answers) == 1


def test_a_broker_that_is_down_costs_the_answer_only(host: Host) -> None:
    sent = envelope()
    host.broker_is_down = True
    host.take(sent)
    assert host.published == []
    host.broker_is_down = False
    host.take(sent)
    assert [answer.body for answer in host.answers] == [observed()]


def report(**changes: Any) -> HostReport:
    plain = {"boot_id": "b", "incarnation": "i", "sequence": 1, "observed_at": NOW, "libvirt_up": True, "full": True}
    return HostReport(host_id="h1", **(plain | changes))  # type: ignore[arg-type]


def test_reports(host: Host) -> None:
    assert host.shell.send_report(report())
    [sent] = host.answers
    assert (sent.job, sent.vm, sent.attempt) == (None, None, 0)
    assert sent.body == report()
    assert host.published[0][1] == "manager.report"


def test_reports_that_cannot_be_sent(host: Host) -> None:
    assert not host.shell.send_report(report(sequence="one"))
    assert not host.shell.send_report(report(problem="x" * 2**20))
    assert not host.shell.send_report(HostReport(**{**_fields(report()), "host_id": "h2"}))
    host.broker_is_down = True
    assert not host.shell.send_report(report())
    assert host.published == []


def _fields(body: HostReport) -> dict[str, Any]:
    return {name: getattr(body, name) for name in body.__slots__ if name != "op"}


def test_the_manager_answers_nobody(tmp_path: Path) -> None:
    parties, heard, published = Parties(tmp_path), list[Any](), list[Any]()
    shell = Shell(
        "manager",
        parties.key("manager"),
        parties.ring,
        Clock(),
        handlers={LeavesObserved: lambda _envelope, body: heard.append(body)},
        publish=lambda *parts: published.append(parts),
    )
    for sent in (
        envelope(sender="host.h1", to="manager", body=observed()),
        envelope(sender="host.h1", to="manager", body=Failed(code="c", message="m")),
        envelope(sender="host.h1", to="manager", body=observed(), deadline=NOW - timedelta(days=2)),
    ):
        sealed = seal(sent, parties.key("host.h1"))
        shell.handle(sealed.sender, sealed.body, sealed.signature)
    assert heard == [observed()]
    assert published == []
