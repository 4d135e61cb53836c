"""What Flower runs on: `celery -A common.flower flower`, with the account `flower`.

It sees task events and changes nothing. Its users and passwords are Flower's own settings (FLOWER_BASIC_AUTH): give
them by the environment, since the process list is public. Without any it does not start: whoever reached it would see
every machine's jobs.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from celery import Celery
from celery.events.event import event_exchange

from common.messaging.broker import make_app
from common.messaging.urls import is_redis
from common.settings import SharedSettings

SAFE_DEFAULTS: Final = {
    # Not every interface, which is Flower's own default; and nothing on its pages that does anything.
    "FLOWER_ADDRESS": "127.0.0.1",
    "FLOWER_READ_ONLY": "true",
    # What was asked, of which machine and attempt, for whom, and when: Flower's own choice leaves the arguments out.
    "FLOWER_TASKS_COLUMNS": "name,args,state,received,runtime,worker,routing_key",
}
"""Flower's options where neither the environment nor its command line says otherwise."""


LOGINS: Final = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")
_LOGIN_WORDS: Final = ("--basic_auth", "--basic-auth", "--auth", "--conf")
"""A file of Flower's settings is taken at its word."""


def has_login(environment: Mapping[str, str], words: Sequence[str]) -> bool:
    """Tell whether Flower's environment or command line asks its users who they are."""
    return any(environment.get(name) for name in LOGINS) or any(
        word == option or word.startswith(f"{option}=") for word in words for option in _LOGIN_WORDS
    )


@cache
def _app() -> Celery:
    if not has_login(os.environ, sys.argv):
        sys.exit("Flower has no login: set FLOWER_BASIC_AUTH=user:password (or FLOWER_AUTH) in its environment")
    for option, value in SAFE_DEFAULTS.items():
        os.environ.setdefault(option, value)  # Flower reads it after this module
    settings = SharedSettings()
    # Flower makes a receiver of Celery's, whose exchange is a copy of this one. On RabbitMQ it is there already, and to
    # declare it would be a right to remove it; on Redis it is an entry in kombu's own memory.
    event_exchange.no_declare = not is_redis(settings.broker_url)
    app = make_app(settings, name="flower", queue=None)
    if is_redis(settings.broker_url):
        app.conf.event_queue_expires = (
            None  # events come by PUBLISH, so nothing is left to expire; else kombu runs scripts
        )
    return app


def __getattr__(name: str) -> Celery:
    """Make `app` when Celery asks for it: importing this module reads no settings and opens nothing."""
    if name == "app":
        return _app()
    raise AttributeError(name)
