"""The SPM as a Celery worker: `celery -A spm.worker worker -P threads -c 2`.

It takes the lease of its storage domains before it begins to consume; a second one with the same settings stands by
until the first is gone. What the first left unanswered, the Manager's outbox sends again.
"""

import os
from functools import cache
from typing import Any, NoReturn

from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutdown

from common import logs
from common.clock import SystemClock
from common.errors import LivesnapError
from common.messaging.broker import Publisher, make_app, register_tasks
from common.messaging.identity import own_key, trusted
from common.messaging.messages import (
    AdoptVolumes,
    CreateVolumes,
    DeleteVolumes,
    FinishMerge,
    InspectHost,
    InspectVolumes,
    MarkMerge,
    MergeVolumes,
)
from common.messaging.queues import spm_queue
from common.messaging.shell import Handler, Shell
from common.messaging.surveys import SurveyStorage
from common.metrics import MetricsFile
from spm.background import Background
from spm.merges import Merges
from spm.operations.adopt_volumes import adopt_volumes
from spm.operations.create_volumes import create_volumes
from spm.operations.delete_volumes import delete_volumes
from spm.operations.inspect_host import inspect_host
from spm.operations.inspect_volumes import inspect_volumes
from spm.operations.merge_volumes import finish_merge, mark_merge, merge_volumes
from spm.operations.survey import survey
from spm.pool import Pool
from spm.settings import SpmSettings

TASKS = (
    *("spm.create", "spm.adopt", "spm.delete", "spm.inspect", "spm.inspect_host", "spm.survey"),
    *("spm.merge_mark", "spm.merge", "spm.merge_finish"),
)

_log = logs.get()


def end_process(lost: LivesnapError) -> NoReturn:
    """End at once, with whatever runs: another SPM acts on the storage domain now."""
    _log.error("lease.lost", reason=lost.message)
    os._exit(1)


def handlers(pool: Pool, settings: SpmSettings, clock: SystemClock, merges: Merges) -> dict[type, Handler]:
    """Return who takes which command."""
    room = settings.min_free_bytes
    return {
        MarkMerge: lambda envelope, command: mark_merge(command, envelope.attempt, pool, min_free_bytes=room),
        MergeVolumes: lambda envelope, command: merge_volumes(
            command, envelope.attempt, pool, merges, min_free_bytes=room
        ),
        FinishMerge: lambda envelope, command: finish_merge(command, envelope.attempt, pool, clock),
        CreateVolumes: lambda envelope, command: create_volumes(command, envelope.attempt, pool, min_free_bytes=room),
        DeleteVolumes: lambda envelope, command: delete_volumes(command, envelope.attempt, pool, clock),
        AdoptVolumes: lambda envelope, command: adopt_volumes(command, envelope.attempt, pool),
        SurveyStorage: lambda _, command: survey(command, pool),
        InspectVolumes: lambda _, command: inspect_volumes(command, pool),
        InspectHost: lambda _, command: inspect_host(command, pool),
    }


def build(settings: SpmSettings) -> Celery:
    """Return the worker's app; nothing is connected, locked or started before the worker starts."""
    me = spm_queue(settings.pool_id)
    logs.configure(log_format=settings.log_format, process=me)
    clock = SystemClock()
    pool = Pool(settings.pool_id, settings.storage_domains, on_lease_lost=end_process)
    merges = Merges(lambda vm: background.merge_ended(vm))
    app = make_app(settings, name=me, queue=me)
    publisher = Publisher(app)
    shell = Shell(
        me,
        own_key(settings, me),
        trusted(settings),
        clock,
        handlers=handlers(pool, settings, clock, merges),
        publish=publisher.publish,
    )
    register_tasks(app, TASKS, shell)
    background = Background(pool, clock, shell.send_report, min_free_bytes=settings.min_free_bytes)
    _connect(pool, background, merges, settings)
    figures = MetricsFile(settings.metrics_dir, me)
    worker_ready.connect(lambda **_: figures.start(), weak=False)
    worker_shutdown.connect(lambda **_: figures.stop(), weak=False)
    return app


def _connect(pool: Pool, background: Background, merges: Merges, settings: SpmSettings) -> None:
    """Tie pool and background to the worker's life."""

    def take_leases(**_: Any) -> None:
        pool.wait_for_leases()

    def begin(**_: Any) -> None:
        _log.info("spm.active", pool=pool.pool_id, epoch=pool.epoch)
        background.start(settings)

    def end(**_: Any) -> None:
        background.stop()
        merges.close()
        pool.close()

    worker_init.connect(take_leases, weak=False)
    worker_ready.connect(begin, weak=False)
    worker_shutdown.connect(end, weak=False)


@cache
def _app() -> Celery:
    return build(SpmSettings())


def __getattr__(name: str) -> Celery:
    """Make `app` when Celery asks for it: importing this module reads no settings and opens nothing."""
    if name == "app":
        return _app()
    raise AttributeError(name)
