"""Waiting for a job asks the server no more than it must, and goes on where a stream broke."""

from collections.abc import Iterator
from typing import Any, cast

from manager.cli.client import Client, Event, Json
from manager.cli.failures import Unreached
from manager.cli.waiting import follow

RUNNING: Json = {"id": "j1", "state": "pivoting", "finished_at": None, "timeline": []}
DONE: Json = {"id": "j1", "state": "completed", "finished_at": "2026-11-27T00:00:00Z", "timeline": []}
STEP = Event(kind="step", data={"step": "pivoting"}, id=1)
END = Event(kind="job", data=DONE, id=None)


class Server:
    """Answers with a running job; `streams` are what its event streams say, one after the other, None: a break."""

    def __init__(self, *streams: list[Event | None]) -> None:
        self.asked: list[str] = []
        self._streams = iter(streams)

    def get(self, path: str) -> Json:
        self.asked.append(path)
        return RUNNING

    def events(self, job_id: str, *, after: int, limit_s: float) -> Iterator[Event]:
        self.asked.append(f"{job_id} after {after}")
        for event in next(self._streams):
            if event is None:
                raise Unreached("the stream broke")
            yield event


class Watcher:
    """Counts what it is shown."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, entry: Any) -> None:
        self.steps += 1

    def waiting(self, what: str) -> None:
        pass

    trouble = waiting


def followed(server: Server, job: Json | str) -> int:
    watcher = Watcher()
    assert follow(cast(Client, server), job, timeout_s=60, watcher=watcher) == DONE
    return watcher.steps


def test_one_that_was_just_answered_is_not_asked_for_again() -> None:
    server = Server([STEP, END])
    assert followed(server, RUNNING) == 1
    assert server.asked == ["j1 after 0"]


def test_one_that_was_over_at_once_is_not_followed() -> None:
    server = Server()
    assert followed(server, DONE) == 0
    assert server.asked == []


def test_one_that_is_named_is_asked_for() -> None:
    server = Server([STEP, END])
    assert followed(server, "j1") == 1
    assert server.asked == ["/v1/jobs/j1", "j1 after 0"]


def test_after_a_break_it_is_asked_for_and_its_stream_goes_on_where_it_was() -> None:
    server = Server([STEP, None], [END])
    assert followed(server, RUNNING) == 1
    assert server.asked == ["j1 after 0", "/v1/jobs/j1", "j1 after 1"]
