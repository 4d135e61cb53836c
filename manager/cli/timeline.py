"""One job's timeline while it runs."""

from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from manager.cli.client import Json
from manager.cli.screen import console, entry_row
from manager.cli.text import safe


class Timeline:
    """Shows a job while it runs (manager.cli.waiting.Watcher): live on a terminal, else plain lines. On standard error.

    >>> with Timeline("snapshot of web1") as timeline:
    ...     follow(client, job_id, timeout_s=600, watcher=timeline)
    """

    def __init__(self, title: str) -> None:
        """Prepare to show the job that is known as `title`."""
        self._console = console(stderr=True)
        self._spinner = Spinner("dots", Text(safe(title), style="bold"))
        self._rows = Table.grid(padding=(0, 2))
        self._waiting = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Start the live display if there is a terminal."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._picture, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the timeline on the terminal and stop drawing."""
        self._waiting = ""
        if self._live is not None:
            self._spinner.update(text=Text(""))
            self._live.stop()

    def step(self, entry: Json) -> None:
        """Show one new entry of the timeline."""
        self._waiting = ""
        row = entry_row(entry)
        self._rows.add_row(*row)
        self._plain(" ".join(str(part) for part in row if str(part)))

    def waiting(self, what: str) -> None:
        """Show what the job waits for."""
        if what and what != self._waiting:
            self._plain(f"waiting for {safe(what)}")
        self._waiting = f"waiting for {safe(what)}" if what else ""

    def trouble(self, what: str) -> None:
        """Show that the server is out of reach."""
        if safe(what) != self._waiting:
            self._plain(safe(what))
        self._waiting = safe(what)

    def _plain(self, line: str) -> None:
        if self._live is None:
            self._console.print(Text(line))

    def _picture(self) -> RenderableType:
        last: list[RenderableType] = [Text(self._waiting, style="yellow")] if self._waiting else []
        spinner: list[RenderableType] = [self._spinner] if str(self._spinner.text) else []
        return Group(*spinner, self._rows, *last)
