"""Tables, facts and remarks as lines of text, for whatever is no terminal. Pure.

A pipe gets the columns that a terminal shows, without colours and without a limit to their width. Rich would print the
same; loading it takes a fifth of a command's time, which scripts pay at every call.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from manager.cli.text import safe

GAP = "  "


def as_text(value: object) -> str:
    """Return a value as one line of safe text; '' for None."""
    return safe("" if value is None else value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a heading and a line for each row, in columns; only the heading if there is no row."""
    return list(_aligned([tuple(columns), *(tuple(map(as_text, row)) for row in rows)]))


def facts(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """Return a line for each name and its value."""
    return list(_aligned([(name, as_text(value)) for name, value in pairs]))


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (text + " " * (width - _width(text)) for text, width in zip(row, widths, strict=True))
        yield GAP.join(cells).rstrip(" ")


def _width(text: str) -> int:
    """Return how many columns of a terminal a safe text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
