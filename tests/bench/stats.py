"""Medians, percentiles and the spread of a ratio. Pure.

Runs alternate, so each of ours has a floor beside it that met the same load of the machine. The ratio is the median of
these pairs' ratios: a slow minute makes both slow and cancels out. Its spread is a bootstrap interval over the pairs;
of fewer than ten, of which a bootstrap says less than it claims (it cannot leave the samples' own span), Student's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from random import Random
from statistics import fmean, median, stdev

RESAMPLES = 2000
COVERAGE = 0.95
SEED = 7
"""Of the resampling alone: the same samples always get the same interval."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)
"""How many standard errors hold 95 %, for two to nine samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of them lie, between neighbours by a straight line.

    Raises ValueError for no values or for a share outside of 0 to 1.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def paired_ratio(ours: Sequence[float], floor: Sequence[float]) -> Estimate:
    """Return the median of ours[i] / floor[i] and its spread. Raises ValueError for unequal lengths, none, or a 0."""
    if len(ours) != len(floor) or not all(floor):
        raise ValueError(f"{len(ours)} runs cannot be paired with {len(floor)}, or one of these took no time")
    ratios = [one / other for one, other in zip(ours, floor, strict=True)]
    if not 1 < len(ratios) <= len(STUDENT) + 1 or min(ratios) <= 0:
        return estimate(ratios)
    # Half as much and twice as much are equally far from 1.
    found = estimate([log(ratio) for ratio in ratios])
    return Estimate(value=median(ratios), low=exp(found.low), high=exp(found.high))


def paired_difference(ours: Sequence[float], floor: Sequence[float]) -> Estimate:
    """Return the median of ours[i] - floor[i] and its spread. Raises ValueError for unequal lengths or none."""
    if len(ours) != len(floor):
        raise ValueError(f"{len(ours)} runs cannot be paired with {len(floor)}")
    return estimate([one - other for one, other in zip(ours, floor, strict=True)])


def estimate(values: Sequence[float], figure: Callable[[Sequence[float]], float] = median) -> Estimate:
    """Return a figure of the values (their median) and its interval. Raises ValueError for no values."""
    if not values:
        raise ValueError("nothing was measured")
    if figure is median and 1 < len(values) <= len(STUDENT) + 1:
        return _by_student(values)
    random = Random(SEED)
    again = [figure(random.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    edge = (1 - COVERAGE) / 2
    return Estimate(value=figure(values), low=percentile(again, edge), high=percentile(again, 1 - edge))


def _by_student(values: Sequence[float]) -> Estimate:
    """Return the median and the interval around the mean, which holds either if they are spread evenly."""
    half = STUDENT[len(values) - 2] * stdev(values) / sqrt(len(values))
    middle, centre = median(values), fmean(values)
    return Estimate(value=middle, low=min(middle, centre - half), high=max(middle, centre + half))


def medians(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of every step that all runs have."""
    return {name: median(one[name] for one in each) for name in each[0] if all(name in one for one in each)}
