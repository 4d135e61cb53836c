"""The table that a person reads. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tests.bench.compare import change
from tests.bench.row import Row, Verdict
from tests.bench.stats import percentile

HEAD = ("bench", "runs", "median/p95", "floor median/p95", "ratio [95 %]", "more", "verdict", "before")


def table(rows: Sequence[Row], previous: Mapping[str, Any]) -> str:
    """Return one line for each row, and below it what is to be said about it."""
    lines = [HEAD, *(_cells(row, previous) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = []
    for number, line in enumerate(lines):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number:
            text += [f"    {remark}" for remark in _remarks(rows[number - 1])]
    return "\n".join(text) + "\n"


def _cells(row: Row, previous: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{row.key} (simulated)" if row.simulated else row.key
    if not row.ours:
        return name, "0", "-", "-", "-", "-", str(Verdict.NOT_MEASURED), _before(row, previous)
    ratio = more = "-"
    if row.floor:
        found = row.measured("ratio")
        ratio = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        more = f"{row.measured('more').value:+.1f} {row.unit}"
    return (
        name,
        str(len(row.ours)),
        _both(row.ours, row.unit),
        _both(row.floor, row.unit) if row.floor else "-",
        ratio,
        more,
        str(row.verdict),
        _before(row, previous),
    )


def _both(values: Sequence[float], unit: str) -> str:
    return f"{median(values):.4g}/{percentile(values, 0.95):.4g} {unit}"


def _before(row: Row, previous: Mapping[str, Any]) -> str:
    found = change(row, previous)
    return found if found == "new" else f"{previous[row.key]['figure']['value']:.2f}: {found}"


def _remarks(row: Row) -> list[str]:
    if not row.ours:
        return [f"why: {row.why_not}"]
    said = [f"{target}: {row.judge(target)} ({row.measured(target.measure).value:.3g})" for target in row.targets]
    if row.steps:
        said.append("steps, medians: " + ", ".join(f"{name} {took:.1f}" for name, took in row.steps.items()))
    return [*said, *row.notes]
