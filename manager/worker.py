"""The Manager as a Celery worker: `celery -A manager.worker worker -P threads -c 4`. Any number may run.

It takes answers and reports, and requests for snapshots from whoever may publish to its queue; beside them run the
relay and the timers.
"""

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutdown

from common import logs
from common.errors import LivesnapError, RequestRefused
from common.messaging.broker import Publisher, make_app, register_tasks
from common.messaging.queues import MANAGER
from common.messaging.shell import Shell
from common.messaging.wire import TASK_ANSWER, TASK_REPORT
from common.metrics import MetricsFile
from manager.assembly import Assembly, assemble
from manager.enqueued import request_of
from manager.heartbeat import Heartbeat
from manager.relay import Relay
from manager.reports import Reports
from manager.results import Results
from manager.service import Service
from manager.settings import ManagerSettings
from manager.timers import Timers

TASK_CREATE_SNAPSHOT = "manager.create_snapshot"
DATABASE_RETRY_S = 1.0
STOP_WAIT_S = 5.0
"""A thread that is sending ends within the broker's own timeouts; a commit cut short by the end is rolled back."""

_log = logs.get()


def build(settings: ManagerSettings) -> Celery:
    """Return the worker's app; nothing is connected or started before the worker starts."""
    logs.configure(log_format=settings.log_format, process=MANAGER)
    app = make_app(settings, name=MANAGER, queue=MANAGER)
    publisher = Publisher(app)
    parts = assemble(settings, publisher.publish)
    relay = Relay(parts.database, publisher.publish, parts.clock, settings=settings)
    timers = Timers(parts.database, parts.conductor, parts.clock)
    parts.conductor.on_timer(timers.wake)
    results = Results(parts.conductor, parts.host_checks)
    silent_after = settings.host_silent_after
    reports = Reports(
        parts.database,
        parts.clock,
        parts.keyring,
        wake_relay=relay.wake,
        look_early=parts.conductor.look_early,
        silent_after=silent_after,
    )
    handlers = {**results.handlers(), **reports.handlers()}
    shell = Shell(MANAGER, parts.key, parts.keyring, parts.clock, handlers=handlers, publish=publisher.publish)
    register_tasks(app, (TASK_ANSWER, TASK_REPORT), shell)
    app.task(_taking_requests(parts.service), name=TASK_CREATE_SNAPSHOT, bind=True, typing=False)
    _connect(parts, relay, timers)
    figures = MetricsFile(settings.metrics_dir, MANAGER)
    worker_ready.connect(lambda **_: figures.start(), weak=False)
    worker_shutdown.connect(lambda **_: figures.stop(), weak=False)
    return app


def _taking_requests(service: Service) -> Callable[..., None]:
    """Return the task for those who enqueue instead of calling the API; its id is the idempotency key.

    There is no result backend: what became of a request stands in the log, and in the list of jobs.
    """

    def create_snapshot(task: Any, *args: Any, **kwargs: Any) -> None:
        try:
            require_request_queue(task.request.delivery_info)
            request = request_of(args, kwargs, idempotency_key=str(task.request.id))
            job = service.create_snapshot(request)
            _log.info("request.accepted", task=task.request.id, job=getattr(job, "id", ""))
        except LivesnapError as refused:
            _log.warning("request.refused", task=task.request.id, code=refused.code, reason=refused.message)
        except Exception:  # noqa: BLE001  (the worker shell: a fault must leave a trace, and not stop the worker)
            _log.exception("request.fault", task=task.request.id)

    return create_snapshot


def require_request_queue(delivery_info: Any) -> None:
    """Raise RequestRefused unless a request came by the queue of requests: hosts and SPMs may write to another only.

    On RabbitMQ the broker says where it was, on Redis the guard has seen to it that the message says the truth.
    """
    came_by = delivery_info.get("routing_key") if isinstance(delivery_info, dict) else None
    if came_by != MANAGER:
        raise RequestRefused("request_malformed", f"a request came by {str(came_by)[:80]!r}, not by {MANAGER!r}")


def await_database(parts: Assembly) -> None:
    """Bring the tables up to date; wait, and say so, for a database that does not answer yet.

    Ends the process if they cannot be: Celery would swallow an exception here, and consume all the same.
    """
    while True:
        try:
            parts.database.upgrade()
            return
        except LivesnapError as error:
            _log.warning("database.awaited", reason=error.message)
            time.sleep(DATABASE_RETRY_S)
        except Exception as error:
            _log.exception("database.unusable", database=parts.database.shown)
            raise SystemExit(1) from error


def _connect(parts: Assembly, relay: Relay, timers: Timers) -> None:
    """Tie database and threads to the worker's life."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=relay.run, args=(stop,), name="relay", daemon=True),
        threading.Thread(target=timers.run, args=(stop,), name="timers", daemon=True),
        threading.Thread(
            target=Heartbeat(parts.database, parts.clock).run, args=(stop,), name="heartbeat", daemon=True
        ),
    ]

    def upgrade(**_: Any) -> None:
        await_database(parts)

    def begin(**_: Any) -> None:
        for thread in threads:
            thread.start()
        _log.info("manager.ready", database=parts.database.shown)

    def end(**_: Any) -> None:
        stop.set()
        relay.wake()
        timers.wake()
        for thread in threads:
            if thread.is_alive():
                thread.join(STOP_WAIT_S)
        parts.database.close()

    worker_init.connect(upgrade, weak=False)
    worker_ready.connect(begin, weak=False)
    worker_shutdown.connect(end, weak=False)


@cache
def _app() -> Celery:
    return build(ManagerSettings())


def __getattr__(name: str) -> Celery:
    """Make `app` when Celery asks for it: importing this module reads no settings and opens nothing."""
    if name == "app":
        return _app()
    raise AttributeError(name)
