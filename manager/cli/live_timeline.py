"""One job's timeline on a terminal, drawn anew as the job goes on."""

from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from manager.cli.client import Json
from manager.cli.screen import entry_row
from manager.cli.terminal import cell, console
from manager.cli.text import safe


class LiveTimeline:
    """A spinner, the entries so far, and what the job waits for."""

    def __init__(self, title: str) -> None:
        """Prepare to show the job that is known as `title`."""
        self._spinner = Spinner("dots", Text(safe(title), style="bold"))
        self._rows = Table.grid(padding=(0, 2))
        self._waiting = ""
        self._live = Live(console=console(stderr=True), get_renderable=self._picture, refresh_per_second=10)

    def __enter__(self) -> Self:
        """Start to draw."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the timeline on the terminal and stop drawing."""
        self._waiting = ""
        self._spinner.update(text=Text(""))
        self._live.stop()

    def step(self, entry: Json) -> None:
        """Show one new entry of the timeline."""
        self._waiting = ""
        clock, *others = entry_row(entry)
        self._rows.add_row(Text(clock, style="dim"), *map(cell, others))

    def waiting(self, what: str) -> None:
        """Show what the job waits for."""
        self._waiting = f"waiting for {safe(what)}" if what else ""

    def trouble(self, what: str) -> None:
        """Show that the server is out of reach."""
        self._waiting = safe(what)

    def _picture(self) -> RenderableType:
        last: list[RenderableType] = [Text(self._waiting, style="yellow")] if self._waiting else []
        spinner: list[RenderableType] = [self._spinner] if str(self._spinner.text) else []
        return Group(*spinner, self._rows, *last)
