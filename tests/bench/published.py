"""The figures as they stand on the page (tests/BENCHMARKS.md), made of what is kept in previous.json. Pure."""

from collections.abc import Mapping
from typing import Any, Final

BEGIN: Final = "<!-- figures: written by `make bench SAVE=1` -->"
END: Final = "<!-- end of figures -->"
HEAD: Final = "| row | pairs | ours: median, p95 | floor | ratio [95 %] | more | targets | measured, load |"


def published(figures: Mapping[str, Any]) -> str:
    """Return the table, and below it where the time of each row went."""
    lines = [HEAD, "|" + "---|" * HEAD.count(" |")]
    lines += [_line(key, row) for key, row in sorted(figures.items())]
    told = [_remark(key, row) for key, row in sorted(figures.items()) if row["steps"] or row["notes"]]
    return "\n".join([*lines, "", "Where the time goes (medians), and what else is to be said:", "", *told])


def with_block(page: str, block: str) -> str:
    """Return the page with this block between its marks. Raises ValueError if it does not have both marks once."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must have {BEGIN} and {END} once each")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.partition(END)[2]}"


def _line(key: str, row: Mapping[str, Any]) -> str:
    name = f"`{key}`" + (" (simulated)" if row["simulated"] else "")
    unit, figure = row["unit"], row["figure"]
    ratio = f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]" if row["is_ratio"] else "–"
    floor, more = ("–", "–") if row["floor"] is None else (f"{row['floor']:g} {unit}", f"{row['more']:+g} {unit}")
    targets = "; ".join(f"{target}: {verdict}" for target, verdict in row["targets"].items()) or "reported"
    when = f"{row['at']}, {row['load'][0]} to {row['load'][1]}"
    ours = f"{row['median']:g}, {row['p95']:g} {unit}"
    return f"| {name} | {row['runs']} | {ours} | {floor} | {ratio} | {more} | {targets} | {when} |"


def _remark(key: str, row: Mapping[str, Any]) -> str:
    steps = ", ".join(f"{name} {took:g}" for name, took in row["steps"].items())
    return f"- `{key}`: " + "; ".join(each for each in (steps, *row["notes"]) if each) + "."
