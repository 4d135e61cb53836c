"""What a person sees: tables, facts, remarks and errors. All of it text that is safe to print.

Results go to standard output, everything about the way there to standard error.
"""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
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
    console(stderr=True).print(Text(safe(text), style="dim"))


def failure(message: str, hint: str, code: str) -> None:
    """Print on standard error why a command failed, and what to do."""
    screen = console(stderr=True)
    screen.print(Text.assemble(("Error ", "bold red"), (code, "red"), f": {safe(message)}"))
    if hint:
        screen.print(Text(f"  {safe(hint)}"))


def _put(picture: RenderableType) -> None:
    """Print on standard output; where no terminal shows it, without the blanks that fill up each line."""
    screen = console(stderr=False)
    if screen.is_terminal:
        screen.print(picture)
        return
    with screen.capture() as captured:
        screen.print(picture)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def console(*, stderr: bool) -> Console:
    """Return standard output or standard error as Rich's console; as wide as any line where it is no terminal."""
    made = Console(stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=False)
    if not made.is_terminal:
        # A pipe has no width; cutting a line at 80 columns would lose what somebody wants to search for.
        made.width = 400
    return made


def entry_row(entry: Json) -> tuple[Text, Text, Text, Text]:
    """Return one entry of a timeline as cells: time, milliseconds since the one before, step, detail."""
    clock = moment(entry.get("at")).rpartition(" ")[2]
    return (
        Text(clock, style="dim"),
        Text(f"{entry.get('ms', 0):.1f} ms"),
        cell(entry["step"]),
        cell(entry.get("detail")),
    )
