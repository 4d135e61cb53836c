"""The least that a Celery worker can be: `celery -A tests.bench.minimal worker`. It imports Celery alone."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

app = Celery("minimal", broker=os.environ["MINIMAL_BROKER"], set_as_current=False)
app.conf.broker_connection_retry_on_startup = True


def _nothing() -> None:
    """Do nothing."""


def _ready(**_: Any) -> None:
    with open(os.environ["MINIMAL_READY"], "w", encoding="ascii"):
        return


app.task(_nothing, name="minimal.nothing")
worker_ready.connect(_ready, weak=False)
