"""One job's lines, found in the logs of many processes. Pure but for reading files.

A process writes one line for each event, as text (`at='…' event='…' job='…'`) or as JSON, with the ids of the message
that it works on. A line belongs to a job if it names it; or if the freeze guard, which knows no jobs, says it of the
job's machine while the job ran.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

GUARD = "guard"
GUARD_AFTERWARDS = timedelta(minutes=1)
"""The guard goes on thawing where its guest did not answer."""

_PAIR = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)")
Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The job whose lines are looked for: its machine, and when it ran (no end: it still runs)."""

    job: str
    vm: str
    began: datetime
    ended: datetime | None


def collected(sources: Iterable[Path], wanted: Wanted) -> list[Line]:
    """Return the job's lines of all sources, in the order of their times. Raises OSError.

    A source is a file, a folder of `*.log` (and what was put aside of them), or `-` for standard input.
    """
    found = [line for source in sources for text in _texts(source) if (line := _wanted(text, wanted))]
    return sorted(found, key=lambda line: str(line["at"]))


def _texts(source: Path) -> Iterator[str]:
    if source == Path("-"):
        yield from sys.stdin
        return
    files = sorted([*source.glob("*.log"), *source.glob("*.log.1")]) if source.is_dir() else [source]
    for file in files:
        with closing(file.open(encoding="utf-8", errors="replace")) as lines:
            yield from lines


def _wanted(text: str, wanted: Wanted) -> Line | None:
    if wanted.job not in text and wanted.vm not in text:
        return None  # most lines, and cheaper than reading them
    line = read(text)
    if line is None:
        return None
    return line if line.get("job") == wanted.job or _is_guards(line, wanted) else None


def _is_guards(line: Line, wanted: Wanted) -> bool:
    if GUARD not in str(line.get("process", "")) or line.get("vm") != wanted.vm:
        return False
    at = datetime.fromisoformat(str(line["at"]))
    return wanted.began <= at and (wanted.ended is None or at <= wanted.ended + GUARD_AFTERWARDS)


def read(text: str) -> Line | None:
    """Return one log line as its keys and values; None if it is none of ours."""
    text = text.strip()
    try:
        line = json.loads(text) if text.startswith("{") else {key: _value(raw) for key, raw in _PAIR.findall(text)}
        at = datetime.fromisoformat(str(line["at"]))
    except (ValueError, KeyError):
        return None
    return line if "event" in line and at.tzinfo is not None else None


def _value(raw: str) -> Any:
    if raw[0] not in "'\"":
        return raw
    try:
        return ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return raw
