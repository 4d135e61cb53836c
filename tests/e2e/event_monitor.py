"""A Celery monitor in a process of its own, knowing nothing of livesnap: prints each event as a line of JSON."""

import json
import sys
from typing import Any

from celery import Celery


def show(event: dict[str, Any]) -> None:
    """Print one event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    app = Celery(broker=sys.argv[1])
    with app.connection_for_read() as connection:
        app.events.Receiver(connection, handlers={"*": show}).capture(wakeup=False)
