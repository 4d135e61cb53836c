"""The host agent as a Celery worker: `celery -A hostagent.worker worker -P threads -c 4`.

Threads, because libvirt wants one process with one event loop, and its calls let other threads run. SIGTERM lets the
running command finish; SIGKILL is safe by design: the guard thaws, the journal knows, the Manager probes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutdown

from common import logs
from common.clock import SystemClock
from common.messaging.broker import Publisher, make_app, register_tasks
from common.messaging.identity import own_key, trusted
from common.messaging.messages import Answer, Check, CheckMerge, MergeDisks, Pivot, Probe, Redefine, Repair
from common.messaging.queues import host_queue
from common.messaging.shell import Handler, Shell
from common.messaging.surveys import SurveyHost
from common.messaging.wire import Envelope
from common.metrics import MetricsFile
from hostagent.agent import Agent
from hostagent.merge_ports import BlockJobs
from hostagent.operations.check import check
from hostagent.operations.deps import Deps
from hostagent.operations.merge import check_merge, merge
from hostagent.operations.pivot import pivot
from hostagent.operations.probe import probe
from hostagent.operations.redefine import redefine
from hostagent.operations.repair import repair
from hostagent.operations.survey import survey
from hostagent.settings import HostSettings

TASKS = (
    *("host.survey", "host.check", "host.pivot", "host.redefine", "host.probe", "host.repair"),
    *("host.merge", "host.merge_check"),
)


def handlers(agent: Agent) -> dict[type, Handler]:
    """Return who takes which command; after each, the vm is reported anew: it was left out while it was busy."""

    def reporting(act: Callable[[Envelope, Any, Deps], Answer]) -> Handler:
        def handle(
            envelope: Envelope, command: Check | Pivot | Redefine | Probe | Repair | MergeDisks | CheckMerge
        ) -> Answer:
            try:
                return act(envelope, command, agent.deps)
            finally:
                agent.reporter.changed(command.vm_id)

        return handle

    def merging(act: Callable[[Envelope, Any, Deps, BlockJobs], Answer]) -> Handler:
        return reporting(lambda envelope, command, deps: act(envelope, command, deps, agent.block_jobs(command.vm_id)))

    return {
        SurveyHost: lambda _, command: survey(command, agent.deps, agent.listing),
        Check: reporting(check),
        Pivot: reporting(pivot),
        Redefine: reporting(redefine),
        Probe: reporting(probe),
        Repair: reporting(repair),
        MergeDisks: merging(merge),
        CheckMerge: merging(check_merge),
    }


def build(settings: HostSettings) -> Celery:
    """Return the worker's app; the journal is opened, but nothing is connected or started before the worker starts."""
    me = host_queue(settings.host)
    logs.configure(log_format=settings.log_format, process=me)
    app = make_app(settings, name=me, queue=me)
    agent = Agent(settings, SystemClock(), lambda report: shell.send_report(report))
    shell = Shell(
        me,
        own_key(settings, me),
        trusted(settings),
        SystemClock(),
        handlers=handlers(agent),
        publish=Publisher(app).publish,
    )
    register_tasks(app, TASKS, shell)
    worker_init.connect(lambda **_: agent.start(), weak=False)
    worker_ready.connect(lambda **_: agent.begin_reporting(), weak=False)
    worker_shutdown.connect(lambda **_: agent.stop(), weak=False)
    figures = MetricsFile(settings.metrics_dir, me)
    worker_ready.connect(lambda **_: figures.start(), weak=False)
    worker_shutdown.connect(lambda **_: figures.stop(), weak=False)
    return app


@cache
def _app() -> Celery:
    return build(HostSettings())


def __getattr__(name: str) -> Celery:
    """Make `app` when Celery asks for it: importing this module reads no settings and opens nothing."""
    if name == "app":
        return _app()
    raise AttributeError(name)
