"""A bench makes its runs, or as many as there is time for."""

from collections.abc import Callable

import pytest

from tests.bench.budget import of_this_machine, runs_within


def clock(pace: float) -> Callable[[], float]:
    """Return a clock that moves by `pace` whenever it is asked."""
    seen = [0.0]

    def ask() -> float:
        seen.append(seen[-1] + pace)
        return seen[-1]

    return ask


@pytest.mark.parametrize(
    ("pace", "share", "made"),
    [
        pytest.param(0.1, 1.0, 8, id="all-of-them"),
        pytest.param(2.5, 1.0, 5, id="while-there-is-time"),
        pytest.param(2.5, 0.5, 3, id="half-the-time-on-a-slow-machine"),
        pytest.param(100, 1.0, 2, id="the-least"),
    ],
)
def test_as_many_runs_as_there_is_time_for(pace: float, share: float, made: int) -> None:
    assert list(runs_within(10, 8, 2, clock=clock(pace), share=lambda: share)) == list(range(made))


def test_no_machine_gets_more_time_than_all() -> None:
    assert 0 < of_this_machine() <= 1
