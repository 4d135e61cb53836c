"""What Flower runs on: `celery -A common.flower flower --address=127.0.0.1`, with the account `flower`.

It sees task events and changes nothing. Its users and passwords are Flower's own settings (FLOWER_BASIC_AUTH).
"""

from functools import cache

from celery import Celery
from celery.events.event import event_exchange

from common.messaging.broker import is_redis, make_app
from common.settings import SharedSettings


@cache
def _app() -> Celery:
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
