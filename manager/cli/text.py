"""Text that is safe to print. Pure.

Names and messages come from guests, hosts and other users: a control character in one could move the cursor, recolour
or rewrite what the terminal shows, and a direction mark could show `a` as `b`.
"""

import json
import unicodedata
from datetime import datetime
from typing import Any

from manager.cli.failures import CommandFailed

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def safe(value: object) -> str:
    """Return `value` as one line of text in which everything invisible or unassigned is written as an escape.

    >>> safe("web\\x1b[2J")
    'web\\\\x1b[2J'
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def document(value: object) -> str:
    """Return the JSON text of `value` in plain ASCII: no byte of it can be taken for a terminal's command."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def moment(value: object) -> str:
    """Return an RFC 3339 time as people read it, in UTC to the second; '' for None, and as it is if it is no time."""
    if value is None:
        return ""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return safe(value)


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """Return the seconds of `90`, `90s`, `15m`, `2h` or `1d`. Raises CommandFailed for anything else."""
    number, unit = (duration[:-1], duration[-1]) if duration[-1:] in _SECONDS else (duration, "s")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise CommandFailed("request_malformed", f"not a duration: {duration!r}", "Give it as 90s, 15m, 2h or 1d.")
    return int(number) * _SECONDS[unit]


def size(value: object) -> str:
    """Return a number of bytes in the largest binary unit that keeps it above one; '' for None."""
    if not isinstance(value, int):
        return ""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} TiB"


def progress(told: Any) -> str:
    """Return how far a copy is, as people read it; '' for None."""
    if not told:
        return ""
    done, total = told["done_bytes"], told["total_bytes"]
    left = told["seconds_left"]
    estimate = "" if left is None else f", about {left} s left"
    return f"the copy: {size(done)} of {size(total)}, {size(told['bytes_per_s'])}/s{estimate}"
