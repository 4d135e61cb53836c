"""Percentiles, paired ratios and their spread."""

from random import Random

import pytest

from tests.bench.stats import estimate, paired_difference, paired_ratio, percentile


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([5], 0.95, 5, id="one"),
        pytest.param([1, 2], 0.5, 1.5, id="between"),
        pytest.param([3, 1, 2], 1, 3, id="last"),
        pytest.param([3, 1, 2], 0, 1, id="first"),
        pytest.param(list(range(101)), 0.95, 95, id="many"),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], 1.1), ([1], -0.1)])
def test_no_percentile(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_a_load_that_meets_both_cancels_out() -> None:
    floor = [10, 11, 50, 10, 90]
    found = paired_ratio([1.5 * each for each in floor], floor)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_a_spread_holds_its_figure_and_narrows_with_more_runs() -> None:
    few = paired_ratio([10, 12, 14, 16], [10, 10, 10, 10])
    many = paired_ratio([10, 12, 14, 16] * 20, [10] * 80)
    assert few.low < few.value < few.high
    assert few.high - few.low > many.high - many.low
    assert few == paired_ratio([10, 12, 14, 16], [10, 10, 10, 10]), "the same samples, the same interval"


@pytest.mark.parametrize("pairs", [2, 3, 5, 9])
def test_the_interval_of_another_run_holds_the_truth_as_often_as_it_says(pairs: int) -> None:
    """Three hundred benches of something that takes 1.5 times as long, give or take a tenth."""
    random = Random(pairs)
    held = 0
    for _ in range(300):
        found = paired_ratio([1.5 * random.lognormvariate(0, 0.1) for _ in range(pairs)], [1] * pairs)
        held += found.low <= 1.5 <= found.high
    assert 0.90 <= held / 300 <= 0.995


def test_a_difference_is_taken_pair_by_pair() -> None:
    assert paired_difference([11, 52, 13], [10, 50, 10]).value == 2


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratio([1, 2], [1])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratio([1], [0])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match="nothing was measured"):
        estimate([])
