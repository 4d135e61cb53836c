"""The host's answers as JSON text for its journal. Pure.

Not the wire's format: a journal is read by the same livesnap, or a newer one, that wrote it, and never by others.
"""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from common.messaging.messages import DiskObserved, LeavesObserved, Outcome
from common.preflight import Level, PreflightLine
from common.receipt import Receipt


def dump(answer: LeavesObserved) -> str:
    """Return the answer as JSON text."""
    return json.dumps(asdict(answer), default=_plain, separators=(",", ":"))


def load(text: str) -> LeavesObserved:
    """Return the answer that `dump` made the text of. Raises ValueError, KeyError or TypeError for anything else."""
    fields: dict[str, Any] = json.loads(text)
    fields["outcome"] = Outcome(fields["outcome"])
    fields["disks"] = tuple(_disk(disk) for disk in fields["disks"])
    fields["receipt"] = _receipt(fields["receipt"]) if fields["receipt"] else None
    return LeavesObserved(**fields)


def _disk(fields: dict[str, Any]) -> DiskObserved:
    return DiskObserved(**{**fields, "live_chain": tuple(fields["live_chain"])})


def _receipt(fields: dict[str, Any]) -> Receipt:
    warnings = tuple(_line(line) for line in fields.get("warnings", ()))
    return Receipt(**{**fields, "switched_at": datetime.fromisoformat(fields["switched_at"]), "warnings": warnings})


def _line(fields: dict[str, Any]) -> PreflightLine:
    return PreflightLine(**{**fields, "level": Level(fields["level"])})


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"cannot be stored: {value!r}")
