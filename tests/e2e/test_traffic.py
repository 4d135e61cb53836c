"""What travels where, watched from outside: the broker's own monitor, and Celery's task events as Flower reads them."""

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from common.messaging.queues import ANSWERS
from tests.e2e.kit import Livesnap
from tests.e2e.scene import Scene
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.own_backends,
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("steady"),
]


@contextmanager
def watched_lists(livesnap: Livesnap) -> Iterator[list[tuple[str, str]]]:
    """Collect every (sender, queue) of a push, from Redis' own MONITOR; the sender is a message's first argument."""
    pushed: list[tuple[str, str]] = []
    client = redis.Redis(unix_socket_path=str(livesnap.state_dir / "redis.sock"))
    with client.monitor() as monitor:  # type: ignore[no-untyped-call]
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                seen = monitor.next_command()
                words = seen["command"].split(maxsplit=2)
                if words[0].upper() == "LPUSH" and (body := re.search(r'"body": "([\w+/=]+)"', words[2])):
                    (sender, *_), _kwargs, _embed = json.loads(base64.b64decode(body[1]))
                    pushed.append((sender, words[1]))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield pushed
        finally:
            stop.set()
            client.ping()  # one more command, so that the reader wakes up and sees that it is over
            reader.join(5)


@contextmanager
def watched_events(livesnap: Livesnap) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Collect task events as any Celery monitor does, in a process that knows nothing of livesnap's own transport."""
    url = f"redis+socket://{livesnap.state_dir / 'redis.sock'}"
    seen = livesnap.state_dir.parent / "events.jsonl"
    with seen.open("w") as lines:
        monitor = subprocess.Popen([sys.executable, "-m", "tests.e2e.event_monitor", url], stdout=lines)
    try:
        eventually(lambda: any(client_listens(livesnap)), timeout_s=20, what="the monitor's subscription")
        yield lambda: [json.loads(line) for line in seen.read_text().splitlines(keepends=True) if line.endswith("\n")]
    finally:
        monitor.kill()
        monitor.wait(10)


def client_listens(livesnap: Livesnap) -> list[bool]:
    """Say of each client of the broker whether it has subscribed to a pattern of channels."""
    client = redis.Redis(unix_socket_path=str(livesnap.state_dir / "redis.sock"))
    return [int(entry["psub"]) > 0 for entry in client.client_list()]


def succeeded_steps(events: list[dict[str, Any]]) -> list[str]:
    """Return the names of the tasks that are done, but for the reports, which come at any time."""
    names = {e["uuid"]: e["name"] for e in events if e["type"] == "task-received"}
    done = [names.get(e["uuid"], "") for e in events if e["type"] == "task-succeeded"]
    return [name for name in done if name not in ("", "manager.report")]


def test_each_step_travels_over_its_own_queue(steady: Scene) -> None:
    livesnap, vm = steady.livesnap, steady.vm
    with watched_lists(livesnap) as pushed, watched_events(livesnap) as events_so_far:
        job = livesnap.json("snapshot", "create", vm.name, "--name", "travels")
        assert job["state"] == "completed"
        eventually(
            lambda: len(succeeded_steps(events_so_far())) >= 4, timeout_s=20, what="the events of the job's four tasks"
        )

    of_job = [(sender, queue) for sender, queue in pushed if queue in ("spm.default", "host.h1", ANSWERS)]
    steps = [("manager", "spm.default"), ("spm.default", ANSWERS), ("manager", "host.h1"), ("host.h1", ANSWERS)]
    assert set(of_job) == set(steps)
    later = iter(of_job)
    assert all(step in later for step in steps), f"not in this order, whatever reports come between: {of_job}"

    events = events_so_far()
    received = {e["uuid"]: e for e in events if e["type"] == "task-received"}
    ran = {(e["hostname"].split("@")[0], received[e["uuid"]]["name"]) for e in events if e["type"] == "task-started"}
    assert {("spm", "spm.create"), ("host", "host.pivot"), ("manager", "manager.answer")} <= ran
    pids = {e["hostname"].split("@")[0]: e["pid"] for e in events if e["type"] == "task-succeeded"}
    assert len({pids["spm"], pids["host"], pids["manager"]}) == 3
    shown = str([e for e in received.values() if e["name"] == "host.pivot"])
    assert vm.uuid in shown or vm.name in shown, f"a person cannot tell which machine this was for: {shown}"
