"""What a terminal is shown, by Rich: the words that matter in colour, as wide as the window."""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from manager.cli.plain import as_text

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
    text = as_text(value)
    return Text(text, style=STYLES.get(text, ""))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a list."""
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    _put(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(Text(name, style="bold"), cell(value))
    _put(grid)


def print_heading(text: str) -> None:
    """Print a line above a table."""
    _put(Text(f"\n{text}", style="bold"))


def print_note(text: str) -> None:
    """Print a remark on standard error."""
    console(stderr=True).print(Text(text, style="dim"))


def print_failure(message: str, hint: str, code: str) -> None:
    """Print on standard error why a command failed, and what to do."""
    screen = console(stderr=True)
    screen.print(Text.assemble(("Error ", "bold red"), (code, "red"), f": {message}"))
    if hint:
        screen.print(Text(f"  {hint}"))


def _put(picture: RenderableType) -> None:
    console(stderr=False).print(picture)


def console(*, stderr: bool) -> Console:
    """Return standard output or standard error as Rich's console."""
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=False)
