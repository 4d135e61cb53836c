"""One row of the table: what was measured, against which target, and whether it is met. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any, Literal, assert_never

from tests.bench.stats import Estimate, estimate, paired_difference, paired_ratio, percentile

Measure = Literal["ratio", "more", "median", "p95"]


class Verdict(StrEnum):
    """What a row says about its targets."""

    MET = "met"
    MISSED = "missed"
    OPEN = "not decided"
    """A target lies inside the figure's spread: more runs are needed to tell."""
    REPORTED = "reported"
    """There is no target."""
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit of one measure: of the paired ratio, of ours minus the floor, of the median or the p95 of ours."""

    measure: Measure
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        """Say it as the issue does."""
        return f"{self.measure} {'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Samples of this project and of its floor (none: there is no floor), pair by pair, and the targets.

    `simulated`: no real guest or hypervisor. `steps` are medians of where the time went. `why_not`: the reason why
    nothing was measured; `failed`: because the bench broke, not because it cannot run here.
    `more_is_better`: a throughput.
    """

    key: str
    unit: str = "ms"
    ours: Sequence[float] = ()
    floor: Sequence[float] = ()
    targets: Sequence[Target] = ()
    simulated: bool = False
    more_is_better: bool = False
    why_not: str = ""
    failed: bool = False
    notes: Sequence[str] = ()
    steps: dict[str, float] = field(default_factory=dict)
    pace_ms: float = 0.0
    """What this machine took to start an interpreter, about when the row was measured; 0: nobody looked."""

    @property
    def figure(self) -> Estimate | None:
        """What is compared with earlier runs: the ratio, without a floor the median; None if nothing was measured."""
        if not self.ours:
            return None
        return paired_ratio(self.ours, self.floor) if self.floor else estimate(self.ours)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its targets."""
        if not self.ours:
            return Verdict.NOT_MEASURED
        found = [self.judge(target) for target in self.targets]
        for each in (Verdict.MISSED, Verdict.OPEN, Verdict.MET):
            if each in found:
                return each
        return Verdict.REPORTED

    def judge(self, target: Target) -> Verdict:
        """Tell whether a target is met: beyond doubt, or with the limit inside of the spread."""
        seen = self.measured(target.measure)
        if seen.low <= target.limit <= seen.high and seen.low < seen.high:
            return Verdict.OPEN
        met = seen.value >= target.limit if target.at_least else seen.value <= target.limit
        return Verdict.MET if met else Verdict.MISSED

    def measured(self, measure: Measure) -> Estimate:
        """Return what a target speaks of. Raises ValueError where it was not measured."""
        match measure:
            case "ratio":
                return paired_ratio(self.ours, self.floor)
            case "more":
                return paired_difference(self.ours, self.floor)
            case "median":
                return estimate(self.ours)
            case "p95":
                return estimate(self.ours, lambda values: percentile(values, 0.95))
            case _:
                assert_never(measure)

    def as_json(self) -> dict[str, Any]:
        """Return all that the row knows, with every sample."""
        figure = self.figure
        return {
            "key": self.key,
            "unit": self.unit,
            "simulated": self.simulated,
            "verdict": str(self.verdict),
            "targets": {str(target): str(self.judge(target)) for target in self.targets} if self.ours else {},
            "figure": None if figure is None else {"value": figure.value, "low": figure.low, "high": figure.high},
            "is_ratio": bool(self.floor),
            "more_is_better": self.more_is_better,
            "median": median(self.ours) if self.ours else None,
            "p95": percentile(self.ours, 0.95) if self.ours else None,
            "floor_median": median(self.floor) if self.floor else None,
            "floor_p95": percentile(self.floor, 0.95) if self.floor else None,
            "why_not": self.why_not,
            "failed": self.failed,
            "notes": list(self.notes),
            "steps": self.steps,
            "pace_ms": self.pace_ms,
            "ours": list(self.ours),
            "floor": list(self.floor),
        }
