"""What has changed since the figures that are committed. Pure.

Two runs on a shared machine never agree to the digit. A figure has changed when the two intervals do not even touch,
and by more than LEAST: of two or three samples that happen to agree the interval is nothing (idle/pss: 83.47 and 83.47
MiB in one run, 83.72 and 83.72 in the next).
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Final, Literal

from tests.bench.row import Row
from tests.bench.stats import percentile

LEAST: Final = 0.05
"""The smallest change that is one, as a part of the earlier figure."""

Change = Literal["better", "same", "worse", "new", "gone"]


def kept(rows: Iterable[Row], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is worth committing of measured rows: figures with their spread, when and under which load; no
    samples."""
    found = {}
    for row in rows:
        if (figure := row.figure) is not None:
            found[row.key] = {
                "figure": {"value": _short(figure.value), "low": _short(figure.low), "high": _short(figure.high)},
                "is_ratio": bool(row.floor),
                "runs": len(row.ours),
                "verdict": str(row.verdict),
                "median": _short(median(row.ours)),
                "p95": _short(percentile(row.ours, 0.95)),
                "floor": _short(median(row.floor)) if row.floor else None,
                "more": _short(row.measured("more").value) if row.floor else None,
                "unit": row.unit,
                "simulated": row.simulated,
                "targets": {str(target): str(row.judge(target)) for target in row.targets},
                "steps": {name: _short(took) for name, took in row.steps.items()},
                "notes": list(row.notes),
                "at": machine["at"],
                "load": [round(machine[when][0], 1) for when in ("load_at_start", "load_at_end")],
            }
    return found


def change(row: Row, previous: Mapping[str, Any]) -> Change:
    """Compare a row with what was kept of an earlier run; `gone`: measured then, and not now."""
    before, now = previous.get(row.key), row.figure
    if before is None or (now is not None and before["is_ratio"] != bool(row.floor)):
        return "new"
    if now is None:
        return "gone"
    was = before["figure"]
    higher, lower = now.low > was["high"], now.high < was["low"]
    if not (higher or lower) or abs(now.value - was["value"]) <= LEAST * was["value"]:
        return "same"
    return "better" if higher == row.more_is_better else "worse"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
