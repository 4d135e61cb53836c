"""A process of the messaging tests: `celery -A tests.integration.messaging_app worker`, told by its environment.

It is a host or the Manager by `MESSAGING_ME`, and leaves in `MESSAGING_DIR` what a test wants to see: the Manager's
`heard` file has one line per answer or report, a host's `begun` and `ended` one line per command.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery

from common import logs
from common.clock import SystemClock
from common.errors import GuestAgentMissing, NotReady, StaleAttempt
from common.messaging.broker import Publisher, make_app, register_tasks
from common.messaging.keys import Keyring, SigningKey
from common.messaging.messages import (
    Answer,
    Failed,
    LeavesObserved,
    Outcome,
    Pivot,
    Probe,
    Refused,
    Repair,
)
from common.messaging.queues import MANAGER
from common.messaging.reports import HostReport
from common.messaging.shell import Handler, Shell
from common.messaging.wire import TASK_ANSWER, TASK_REPORT, Envelope
from common.settings import SharedSettings
from tests.wait import eventually

DIR = Path(os.environ["MESSAGING_DIR"])
ME = os.environ["MESSAGING_ME"]
OBSERVED = LeavesObserved(outcome=Outcome.ALL_NEW, boot_id="boot", runtime_id="run")


def note(name: str, line: str) -> None:
    """Append one line in one write, so that lines of several processes do not mix."""
    with (DIR / name).open("a") as file:
        file.write(line + "\n")


def hear(envelope: Envelope, body: Any) -> None:
    """The Manager's handler."""
    detail = getattr(body, "why", "") or getattr(body, "code", "") or getattr(body, "incarnation", "")
    note("heard", f"{envelope.step} {envelope.sender} {body.op} {detail}")


def probe(envelope: Envelope, body: Probe) -> Answer:
    """Answer at once, or as the attempt tells."""
    match envelope.attempt:
        case 404:
            raise NotReady("libvirt_unavailable", "no libvirt here")
        case 405:
            raise NotReady("vm_busy", "another handler has it")
        case 409:
            raise StaleAttempt("attempt_stale", "410 is on record", highest=410)
        case 418:
            raise GuestAgentMissing("guest_agent_missing", "no agent")
        case 500:
            raise RuntimeError("a fault")
        case _:
            return OBSERVED


def pivot(envelope: Envelope, body: Pivot) -> Answer:
    """Take as long as the test likes: until the file `go` exists."""
    note("begun", f"{envelope.step} {os.getpid()}")
    eventually((DIR / "go").exists, timeout_s=60, what="the test's leave")
    note("ended", f"{envelope.step} {os.getpid()}")
    return OBSERVED


def repair(envelope: Envelope, body: Repair) -> Answer:
    """Return what cannot be sent."""
    return Refused(why="no such reason", message="")  # type: ignore[arg-type]


def create_snapshot(**request: str) -> None:
    """Take a request as any Celery client may send it: unsigned, by keyword."""
    note("requested", request["vm"])


HEARD: dict[type, Handler] = {kind: hear for kind in (LeavesObserved, Failed, Refused, HostReport)}
DONE: dict[type, Handler] = {Probe: probe, Pivot: pivot, Repair: repair}


def build() -> Celery:
    """Return the app of the role that the environment tells."""
    settings = SharedSettings(key_file=DIR / f"{ME}.key", keys_dir=DIR)
    logs.configure(log_format="text", process=ME)
    made = make_app(settings, name=ME, queue=ME)
    if visibility := os.environ.get("MESSAGING_VISIBILITY_S"):
        made.conf.broker_transport_options |= {"visibility_timeout": int(visibility), "unacked_restore_interval": 1}
    manager = ME == MANAGER
    shell = Shell(
        ME,
        SigningKey.load(settings.key_file, ME),
        Keyring(settings.keys_dir),
        SystemClock(),
        handlers=HEARD if manager else DONE,
        publish=Publisher(made).publish,
    )
    made.task(create_snapshot, name="manager.create_snapshot", typing=False)
    register_tasks(made, (TASK_ANSWER, TASK_REPORT) if manager else ("host.pivot", "host.probe", "host.repair"), shell)
    return made


app = build()
