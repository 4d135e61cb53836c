"""A bench makes its runs, or as many as there is time for."""

from collections.abc import Callable

import pytest

from tests.bench.budget import runs_within


def clock(pace: float) -> Callable[[], float]:
    """Return a clock that moves by `pace` whenever it is asked."""
    seen = [0.0]

    def ask() -> float:
        seen.append(seen[-1] + pace)
        return seen[-1]

    return ask


@pytest.mark.parametrize(
    ("pace", "made"),
    [
        pytest.param(0.1, 8, id="all-of-them"),
        pytest.param(2.5, 5, id="while-there-is-time"),
        pytest.param(100, 2, id="the-least"),
    ],
)
def test_as_many_runs_as_there_is_time_for(pace: float, made: int) -> None:
    assert list(runs_within(10, 8, 2, clock=clock(pace))) == list(range(made))
