"""A host or an SPM with nothing behind it, on the real wire: `celery -A tests.integration.manager_peer worker`.

It speaks as `PEER_ME`, has its keys in `PEER_DIR`, reports once when it is ready, and answers every command as if all
had gone well. What it was asked stands in the file `asked`, one line each.
"""

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from common import logs
from common.clock import SystemClock
from common.ids import HostId, new_id
from common.messaging.broker import Publisher, make_app, register_tasks
from common.messaging.keys import Keyring, SigningKey
from common.messaging.messages import (
    Answer,
    Check,
    Checked,
    Command,
    CreateVolumes,
    DeleteVolumes,
    Outcome,
    Pivot,
    Probe,
)
from common.messaging.queues import host_of
from common.messaging.reports import HostReport, Report, SpmReport
from common.messaging.shell import Shell
from common.messaging.wire import Envelope
from common.preflight import fine
from common.settings import SharedSettings
from tests.integration.manager_kit import POOL, created, deleted, mount, observed, receipt, vm

FOLDER = Path(os.environ["PEER_DIR"])
ME = os.environ["PEER_ME"]
CLOCK = SystemClock()
TASKS = ("spm.create", "spm.delete", "spm.inspect", "host.check", "host.pivot", "host.probe", "host.repair")


def note(envelope: Envelope) -> None:
    """Leave a line in one write."""
    with (FOLDER / "asked").open("a") as file:
        file.write(f"{ME} {envelope.body.op} {envelope.step} {envelope.attempt}\n")


def create(envelope: Envelope, _: Command) -> Answer:
    note(envelope)
    return created(envelope)


def delete(envelope: Envelope, _: Command) -> Answer:
    note(envelope)
    return deleted(envelope)


def pivot(envelope: Envelope, _: Command) -> Answer:
    note(envelope)
    (FOLDER / f"pivoted-{envelope.job}").touch()
    return observed(Outcome.ALL_NEW, receipt=receipt(CLOCK.now()))


def check(envelope: Envelope, _: Command) -> Answer:
    return Checked(lines=(fine(envelope.vm or "", "running"),))


def probe(envelope: Envelope, _: Command) -> Answer:
    note(envelope)
    return observed(Outcome.ALL_NEW if (FOLDER / f"pivoted-{envelope.job}").exists() else Outcome.NONE)


def report() -> Report:
    host = host_of(ME)
    if host is None:
        return SpmReport(
            pool_id=POOL,
            incarnation=new_id(),
            sequence=1,
            epoch=1,
            observed_at=CLOCK.now(),
            storage_domains=(mount(),),
        )
    return HostReport(
        host_id=HostId(host),
        boot_id="boot",
        incarnation=new_id(),
        sequence=1,
        observed_at=CLOCK.now(),
        libvirt_up=True,
        full=True,
        vms=(vm("web1"), vm("web2")),
        storage_domains=(mount(),),
    )


def build() -> Celery:
    """Return the peer's app."""
    settings = SharedSettings(key_file=FOLDER / f"{ME}.key", keys_dir=FOLDER)
    logs.configure(log_format="text", process=ME)
    made = make_app(settings, name=ME, queue=ME)
    shell = Shell(
        ME,
        SigningKey.load(settings.key_file, ME),
        Keyring(settings.keys_dir),
        CLOCK,
        handlers={Check: check, CreateVolumes: create, DeleteVolumes: delete, Pivot: pivot, Probe: probe},
        publish=Publisher(made).publish,
    )
    register_tasks(made, TASKS, shell)

    def begin(**_: Any) -> None:
        shell.send_report(report())

    worker_ready.connect(begin, weak=False)
    return made


app = build()
