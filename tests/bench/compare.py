"""What has changed since the figures that are committed. Pure.

Two runs on a shared machine never agree to the digit. A figure has changed when the two intervals do not even touch.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Literal

from tests.bench.row import Row
from tests.bench.stats import percentile

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
    if not higher and not lower:
        return "same"
    return "better" if higher == row.more_is_better else "worse"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
