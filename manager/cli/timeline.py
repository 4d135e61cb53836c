"""One job's timeline while it runs, on standard error: live on a terminal, else line by line."""

import sys
from types import TracebackType
from typing import Protocol, Self

from manager.cli.client import Json
from manager.cli.screen import entry_row, is_terminal
from manager.cli.text import safe
from manager.cli.waiting import Watcher


class Timeline(Watcher, Protocol):
    """What is shown of a job while the `with` lasts.

    >>> with timeline_of("snapshot of web1") as timeline:
    ...     follow(client, job_id, timeout_s=600, watcher=timeline)
    """

    def __enter__(self) -> Self:
        """Begin to show it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what was shown."""
        ...


def timeline_of(title: str) -> Timeline:
    """Return the timeline of a job that is known as `title`, for what standard error is."""
    if not is_terminal(sys.stderr):
        return Lines()
    from manager.cli.live_timeline import LiveTimeline

    return LiveTimeline(title)


class Lines:
    """A line for every entry, and for what a job has begun to wait for."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._waiting = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was changed that would have to be put back."""

    def step(self, entry: Json) -> None:
        """Show one new entry of the timeline."""
        self._waiting = ""
        self._write(" ".join(part for part in entry_row(entry) if part))

    def waiting(self, what: str) -> None:
        """Show what the job waits for, once."""
        self._unless_shown(f"waiting for {safe(what)}" if what else "")

    def trouble(self, what: str) -> None:
        """Show that the server is out of reach, once."""
        self._unless_shown(safe(what))

    def _unless_shown(self, line: str) -> None:
        if line and line != self._waiting:
            self._write(line)
        self._waiting = line

    @staticmethod
    def _write(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
