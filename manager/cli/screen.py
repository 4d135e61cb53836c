"""What a person sees: tables, facts, remarks and errors. All of it text that is safe to print.

Results go to standard output, everything about the way there to standard error. A terminal is shown them by Rich
(manager.cli.terminal), which is loaded only for one; a pipe or a file gets plain lines (manager.cli.plain).
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from manager.cli import plain
from manager.cli.client import Json
from manager.cli.text import moment, safe


def is_terminal(stream: TextIO) -> bool:
    """Tell whether what is printed there is for a terminal; FORCE_COLOR says so of anything."""
    return stream.isatty() or bool(os.environ.get("FORCE_COLOR"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a list on standard output, or the sentence `empty` on standard error if it has no rows."""
    found = list(rows)
    if not found:
        note(empty)
    elif is_terminal(sys.stdout):
        from manager.cli import terminal

        terminal.print_table(columns, found)
    else:
        _write(sys.stdout, *plain.table(columns, found))


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one a line, on standard output; empty ones are left out."""
    told = [(name, value) for name, value in facts if value not in (None, "", ())]
    if is_terminal(sys.stdout):
        from manager.cli import terminal

        terminal.print_facts(told)
    else:
        _write(sys.stdout, *plain.facts(told))


def heading(text: str) -> None:
    """Print a line above a table."""
    if is_terminal(sys.stdout):
        from manager.cli import terminal

        terminal.print_heading(safe(text))
    else:
        _write(sys.stdout, "", safe(text).rstrip())


def note(text: str) -> None:
    """Print a remark on standard error."""
    if is_terminal(sys.stderr):
        from manager.cli import terminal

        terminal.print_note(safe(text))
    else:
        _write(sys.stderr, safe(text))


def failure(message: str, hint: str, code: str) -> None:
    """Print on standard error why a command failed, and what to do."""
    if is_terminal(sys.stderr):
        from manager.cli import terminal

        terminal.print_failure(safe(message), safe(hint), code)
    else:
        _write(sys.stderr, f"Error {code}: {safe(message)}", *([f"  {safe(hint)}"] if hint else []))


def _write(stream: TextIO, *lines: str) -> None:
    stream.write("".join(f"{line}\n" for line in lines))


def entry_row(entry: Json) -> tuple[str, str, str, str]:
    """Return one entry of a timeline as cells: time, milliseconds since the one before, step, detail."""
    clock = moment(entry.get("at")).rpartition(" ")[2]
    return clock, f"{entry.get('ms', 0):.1f} ms", safe(entry["step"]), plain.as_text(entry.get("detail"))
