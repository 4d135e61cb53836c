# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""The floor of a saga: bare Celery that passes as many messages, of the same size, and does nothing with them.

`celery -A tests.bench.courier worker`, three of them: COURIER_ME is `manager`, `spm` or `host`. The way is the saga's:
asked, create, created, pivot, pivoted, and the report of what has changed. No signature, no database, no journal.
"""

import os
from pathlib import Path
from typing import Any, Final

from celery import Celery
from celery.signals import worker_ready
from kombu.entity import Exchange, Queue

from common.messaging.broker import make_app
from common.messaging.topology import exchange_to
from common.messaging.urls import is_redis
from common.settings import SharedSettings

QUEUES: Final = {"manager": "host.floor-manager", "spm": "host.floor-spm", "host": "host.floor-host"}
"""By role; names of hosts, so that the product's own function declares them at RabbitMQ."""
PAYLOAD: Final = "x" * 1200
"""About what a signed command has."""
WAY: Final = {
    "asked": (("spm", "create"),),
    "create": (("manager", "created"),),
    "created": (("host", "pivot"),),
    "pivot": (("manager", "pivoted"), ("manager", "report")),
    "pivoted": (),
    "report": (),
}
"""What each message causes: who is sent what."""
ROLES: Final = {"manager": ("asked", "created", "pivoted", "report"), "spm": ("create",), "host": ("pivot",)}


def send(app: Celery, to: str, task: str, number: int) -> None:
    """Send one message by Celery's own kept connections."""
    name = QUEUES[to]
    exchange = Exchange("" if is_redis(str(app.conf.broker_url)) else exchange_to(name), type="direct", no_declare=True)
    queue = Queue(name, exchange, routing_key=name, no_declare=True)
    where = {"queue": queue, "exchange": exchange.name, "routing_key": name, "declare": []}
    app.send_task(f"courier.{task}", args=[number, PAYLOAD], **where)


class Arrivals:
    """Counts what has come through: the file `arrivals` grows by one byte, and its time is that of the last."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        self._file = (folder / "arrivals").open("ab", buffering=0)

    def one(self) -> None:
        """Count one."""
        self._file.write(b".")


def build(role: str, folder: Path) -> Celery:
    """Return one role's app; the settings that make a broker safe are the product's."""
    made = make_app(SharedSettings(task_events=False), name=f"floor-{role}", queue=QUEUES[role])
    arrivals = Arrivals(folder) if role == "manager" else None

    def take(task: str) -> Any:
        def taken(number: int, _: str) -> None:
            for to, following in WAY[task]:
                send(made, to, following, number)
            if task == "pivoted" and arrivals:
                arrivals.one()

        return taken

    for task in ROLES[role]:
        made.task(take(task), name=f"courier.{task}", typing=False)
    worker_ready.connect(lambda **_: (folder / f"floor-{role}.ready").touch(), weak=False)
    return made


if "COURIER_ME" in os.environ:
    app = build(os.environ["COURIER_ME"], Path(os.environ["SIM_DIR"]))
