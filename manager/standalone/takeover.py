"""One instance per state directory, and the end of what a killed one left behind."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from manager.cli.failures import CommandFailed
from manager.standalone.layout import StateDir, write
from manager.standalone.processes import Process, boot_id, end, in_session, look

PATIENCE_S = 10.0
"""For workers that finish a snapshot's step; then they are killed, which is safe at any moment."""
NOTICE_S, STOP_S, LOOK_S = 1.0, 40.0, 0.05
"""An instance that is told to stop says so within a moment; then it may take its three waves of ten seconds."""
STOPPING = "stopping"
BROKER = "redis-server"


@contextmanager
def sole_instance(state: StateDir) -> Iterator[Callable[[], None]]:
    """Be the only instance of a state directory, after ending what is left of a killed one.

    Yields what is to be called when the instance begins to stop: from then on another one waits for the end of this
    one. Raises CommandFailed if another one lives and does not stop. A crash here leaves the lock free and the record
    as it was: the next one takes over again.

    >>> with sole_instance(StateDir(root=path)) as stopping:
    ...     supervise(on_stop=stopping)
    """
    with state.lock.open("a+") as lock:
        _take(lock, state)
        end_remains(state)
        me = look(os.getpid())
        assert me is not None
        record = {"session": me.session, "pid": me.pid, "started": me.started, "boot": boot_id()}
        write(state.record, json.dumps(record))
        try:
            yield lambda: write(state.record, json.dumps({**record, STOPPING: True}))
        finally:
            state.record.unlink(missing_ok=True)


def _take(lock: TextIO, state: StateDir) -> None:
    """Take the lock, waiting for an instance that stops."""
    patience_s = NOTICE_S
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if STOPPING in _record(state):
                patience_s = STOP_S
            if time.monotonic() - began > patience_s:
                message = f"another standalone instance runs in {state.root}"
                hint = "Stop it first, or choose another --state-dir."
                raise CommandFailed("settings_invalid", message, hint) from None
            time.sleep(LOOK_S)
        else:
            return


def end_remains(state: StateDir) -> int:
    """End the processes of a killed instance: first the workers, then the broker they speak to. Return how many."""
    remains = _remains(state)
    workers = [process for process in remains if process.name != BROKER]
    end(workers, patience_s=PATIENCE_S)
    end([process for process in remains if process.name == BROKER], patience_s=PATIENCE_S)
    return len(remains)


def _remains(state: StateDir) -> list[Process]:
    """Return the living processes of the session on record.

    A session's number may be in use again by strangers, once all of ours are gone. Ours began in the same boot, no
    earlier than their supervisor, and work in the state directory; all of that together no stranger does.
    """
    record, root = _record(state), state.root.resolve()
    if not record or record.get("boot") != boot_id():
        return []
    session, started = record["session"], record["started"]
    return [
        process
        for process in in_session(session)
        if process.pid != os.getpid() and process.started >= started and process.works_below(root)
    ]


def _record(state: StateDir) -> dict[str, Any]:
    """Return what an instance has written down about itself, {} if there is none. Raises CommandFailed for nonsense."""
    try:
        record = json.loads(state.record.read_text(encoding="utf-8"))
        return {**record, "session": int(record["session"]), "started": int(record["started"])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed("settings_invalid", f"reading {state.record}: {error}", "Remove the file.") from error
