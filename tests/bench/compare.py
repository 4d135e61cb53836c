"""What has changed since the figures that are committed. Pure.

Two runs on a shared machine never agree to the digit, and an interval speaks of its own run only: which core and which
cache whom gets is decided when the processes start (latency/1-disk, 28 pairs each: 2.29 [2.23, 2.40], 2.23 [2.14, 2.28]
and 2.06 [2.04, 2.12] in three runs of one code on one machine). So a figure has changed when the two intervals do not
touch although both are widened by DRIFT.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Final, Literal

from tests.bench.row import Row
from tests.bench.stats import Estimate, percentile

DRIFT: Final = 0.05
"""By how much a figure of the same code may lie beside its interval in another run, as a part of it."""

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
                "pace_ms": _short(row.pace_ms),
                "simulated": row.simulated,
                "targets": {str(target): str(row.judge(target)) for target in row.targets},
                "steps": {name: _short(took) for name, took in row.steps.items()},
                "notes": list(row.notes),
                "at": machine["at"],
                "load": [round(machine[when][0], 1) for when in ("load_at_start", "load_at_end")],
            }
    return found


def change(row: Row, previous: Mapping[str, Any]) -> Change:
    """Compare a row with what was kept of an earlier run; `gone`: measured then, and not now.

    A figure without a floor must have changed as it is, and measured by the machine's pace in both runs too: a machine
    that is slower by a third is no regression, and what waits for a fixed time is none on a faster one.
    """
    before, now = previous.get(row.key), row.figure
    if before is None or (now is not None and before["is_ratio"] != bool(row.floor)):
        return "new"
    if now is None:
        return "gone"
    plain = _compared(now, before["figure"], row.more_is_better)
    if row.floor or not (row.pace_ms and before.get("pace_ms")):
        return plain
    slower = row.pace_ms / before["pace_ms"]
    factor = slower if row.more_is_better else 1 / slower
    scaled = Estimate(value=now.value * factor, low=now.low * factor, high=now.high * factor)
    return plain if _compared(scaled, before["figure"], row.more_is_better) == plain else "same"


def _compared(now: Estimate, was: Mapping[str, float], more_is_better: bool) -> Change:
    wider = 1 + DRIFT
    higher, lower = now.low / wider > was["high"] * wider, now.high * wider < was["low"] / wider
    if not (higher or lower):
        return "same"
    return "better" if higher == more_is_better else "worse"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
