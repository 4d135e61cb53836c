"""Waiting for a job: its event stream, taken up again wherever it broke, until the job is over or the time is up."""

import time
from typing import Protocol

from manager.cli.client import FIRST_PAUSE_S, LONGEST_PAUSE_S, Client, Json
from manager.cli.failures import Status, Unreached, status_of
from manager.cli.session import segment
from manager.cli.text import progress

REACH_LIMIT_S = 10.0
"""How long a server that was never reached is tried before a command gives up (exit status 3)."""


class Watcher(Protocol):
    """Shows a job while it runs."""

    def step(self, entry: Json) -> None:
        """Show one new entry of the timeline."""
        ...

    def waiting(self, what: str) -> None:
        """Show what the job waits for; '' when it goes on."""
        ...

    def trouble(self, what: str) -> None:
        """Show that the server is out of reach, which says nothing about the job."""
        ...


def follow(client: Client, job: Json | str, *, timeout_s: float, watcher: Watcher) -> Json:
    """Return a job as last seen: over, waiting for an operator, or still running after `timeout_s`.

    `job`: as the server has just answered it, which saves a question, or its id or the beginning of it. Once the server
    has been reached, an unreachable one is tried again until the time is up. Raises Unreached if it was never reached,
    CommandFailed if it refuses.
    """
    return _Following(client, job, time.monotonic() + timeout_s, watcher).to_the_end()


class _Following:
    """One wait: what has been shown so far, and the job as last seen."""

    def __init__(self, client: Client, job: Json | str, deadline: float, watcher: Watcher) -> None:
        self._client = client
        self._path = f"/v1/jobs/{segment(job if isinstance(job, str) else job['id'])}"
        self._deadline = deadline
        self._reach_limit = min(deadline, time.monotonic() + REACH_LIMIT_S)
        self._watcher = watcher
        self._job: Json | None = None if isinstance(job, str) else job
        self._is_new = self._job is not None
        self._shown = 0

    def to_the_end(self) -> Json:
        pause_s = FIRST_PAUSE_S
        while True:
            shown = self._shown
            try:
                job = self._fetched()
                if status_of(job) is not Status.RUNNING or self._late():
                    return self._shown_whole(job)
                if self._watch(job["id"]):
                    continue
            except Unreached as error:
                if self._job is None and time.monotonic() >= self._reach_limit:
                    raise
                self._watcher.trouble(f"{error.message}; trying again")
                if self._job is not None and self._late():
                    return self._shown_whole(self._job)
            pause_s = FIRST_PAUSE_S if self._shown > shown else min(pause_s * 2, LONGEST_PAUSE_S)
            limit = self._reach_limit if self._job is None else self._deadline
            time.sleep(max(0.0, min(pause_s, limit - time.monotonic())))

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _fetched(self) -> Json:
        """Return the job as it is now; the first answer, or a stream's last event, has it already."""
        is_new, self._is_new = self._is_new, False
        if self._job is None or (status_of(self._job) is Status.RUNNING and not is_new):
            job: Json = self._client.get(self._path)
            self._job = job
        return self._job

    def _watch(self, job_id: str) -> bool:
        """Show the events of one stream until it ends or the time is up. Tell whether it ended with the job."""
        for event in self._client.events(job_id, after=self._shown, limit_s=self._deadline - time.monotonic()):
            match event.kind:
                case "step":
                    self._watcher.step(event.data)
                    self._shown = event.id or self._shown + 1
                case "waiting":
                    self._watcher.waiting(str(event.data["waiting_for"]))
                case "progress":
                    self._watcher.waiting(progress(event.data))
                case "job":
                    self._job = event.data
                    return True
                case _:
                    pass  # of a newer server
            if self._late():
                break
        return False

    def _shown_whole(self, job: Json) -> Json:
        for entry in job["timeline"][self._shown :]:
            self._watcher.step(entry)
        return job
