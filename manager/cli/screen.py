"""What a person sees: tables, one job's timeline while it runs, and errors. All of it text that is safe to print.

Results go to standard output, everything about the way there to standard error.
"""

import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from manager.cli.client import Json
from manager.cli.text import moment, safe

STYLES = {
    "completed": "green",
    "done": "green",
    "up": "green",
    "ok": "green",
    "safe": "green",
    "operator": "yellow",
    "running": "green",
    "filesystem": "green",
    "crash": "yellow",
    "warning": "yellow",
    "silent": "yellow",
    "rolled_back": "red",
    "needs_operator": "bold red",
    "refusal": "red",
    "libvirt_down": "red",
}
"""Words that stand out, in whatever column they stand."""


def cell(value: object) -> Text:
    """Return a value as safe text, coloured if it is one of the words that stand out."""
    text = safe("" if value is None else value)
    return Text(text, style=STYLES.get(text, ""))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a list on standard output, or the sentence `empty` on standard error if it has no rows."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    if table.row_count:
        _put(table)
    else:
        note(empty)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line, on standard output; empty ones are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value not in (None, "", ()):
            grid.add_row(Text(name, style="bold"), cell(value))
    _put(grid)


def heading(text: str) -> None:
    """Print a line above a table."""
    _put(Text(f"\n{safe(text)}", style="bold"))


def note(text: str) -> None:
    """Print a remark on standard error."""
    _console(stderr=True).print(Text(safe(text), style="dim"))


def failure(message: str, hint: str, code: str) -> None:
    """Print on standard error why a command failed, and what to do."""
    console = _console(stderr=True)
    console.print(Text.assemble(("Error ", "bold red"), (code, "red"), f": {safe(message)}"))
    if hint:
        console.print(Text(f"  {safe(hint)}"))


def _put(picture: RenderableType) -> None:
    """Print on standard output; where no terminal shows it, without the blanks that fill up each line."""
    console = _console(stderr=False)
    if console.is_terminal:
        console.print(picture)
        return
    with console.capture() as captured:
        console.print(picture)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        # A pipe has no width; cutting a line at 80 columns would lose what somebody wants to search for.
        console.width = 400
    return console


class Timeline:
    """Shows a job while it runs (manager.cli.waiting.Watcher): live on a terminal, else plain lines. On standard error.

    >>> with Timeline("snapshot of web1") as timeline:
    ...     follow(client, job_id, timeout_s=600, watcher=timeline)
    """

    def __init__(self, title: str) -> None:
        """Prepare to show the job that is known as `title`."""
        self._console = _console(stderr=True)
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


def entry_row(entry: Json) -> tuple[Text, Text, Text, Text]:
    """Return one entry of a timeline as cells: time, milliseconds since the one before, step, detail."""
    clock = moment(entry.get("at")).rpartition(" ")[2]
    return (
        Text(clock, style="dim"),
        Text(f"{entry.get('ms', 0):.1f} ms"),
        cell(entry["step"]),
        cell(entry.get("detail")),
    )
