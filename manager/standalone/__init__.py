"""`livesnap standalone`: one machine's Manager, API, SPM, host agent, freeze guard and broker under one supervisor.

It starts the processes and does not import them. All that it keeps lies in one state directory (layout.py).
"""

import io
import sys
from contextlib import suppress
from typing import TextIO

from common import logs
from common.errors import LivesnapError
from common.messaging.urls import is_redis
from manager.cli.client import Client
from manager.cli.failures import CommandFailed, Status
from manager.cli.session import Server
from manager.standalone.child import Child
from manager.standalone.layout import StateDir
from manager.standalone.options import Options
from manager.standalone.prepare import POOL, Prepared, prepare
from manager.standalone.programs import inherited, programs
from manager.standalone.readiness import Readiness
from manager.standalone.registering import register
from manager.standalone.session import in_own_session
from manager.standalone.supervisor import Supervisor
from manager.standalone.takeover import sole_instance

_log = logs.get()


def run(options: Options) -> int:
    """Run an instance until it is told to stop; return the exit status.

    Prints one line, `ready`, on standard output once the first inventory is in. Raises CommandFailed if it cannot
    start.
    After a kill -9 of it the children go on by themselves; the next start on the same folder ends them first.
    """
    # What it says is for whoever looks; somebody who looks away (`… | head -1`) does not stop the instance.
    sys.stderr = Heedless(sys.stderr)
    logs.configure(log_format="text", process="standalone")
    return in_own_session(lambda end_of_front: _run(options, end_of_front))


class Heedless(io.TextIOBase):
    """A stream that goes on writing where nobody reads any more."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream` as long as somebody reads."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or not."""
        with suppress(BrokenPipeError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with suppress(BrokenPipeError):
            self._stream.flush()


def _run(options: Options, end_of_front: int | None) -> int:
    state = StateDir(root=options.state_dir)
    try:
        state.make()
        with sole_instance(state) as stopping:
            prepared = prepare(options, state)
            for storage in options.storage:
                register(storage.name, storage.path, POOL)
            _declare_queues(prepared)
            children, readiness = _children(state, prepared), _readiness(prepared)
            Supervisor(children, readiness, end_of_front=end_of_front, on_stop=stopping).run()
    except LivesnapError as error:
        raise CommandFailed(error.code, error.message, error.hint) from error
    except OSError as error:
        raise CommandFailed("settings_invalid", f"preparing {state.root}: {error}") from error
    return Status.DONE


def _declare_queues(prepared: Prepared) -> None:
    """Make RabbitMQ's queues. Redis needs none, and its users no Celery in the supervisor: 0.4 s of a start."""
    if not is_redis(prepared.broker_url):
        from common.messaging.broker import declare_queues

        declare_queues(prepared.broker_url, prepared.queues)


def _children(state: StateDir, prepared: Prepared) -> list[Child]:
    environment = inherited()
    return [
        Child(program, folder=state.root, log=state.logs / f"{program.name}.log", environment=environment)
        for program in programs(state, prepared)
    ]


def _readiness(prepared: Prepared) -> Readiness:
    _log.info("standalone.started", url=prepared.url, host=prepared.host)
    return Readiness(Client(Server(url=prepared.url, token=prepared.token)), prepared.host)
