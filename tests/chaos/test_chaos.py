"""A few rounds of chaos in every run of the suite; `make chaos` plays many."""

import time

import pytest

from tests.chaos.__main__ import Run

ROUNDS = 1
SEEDS = tuple(f"suite-{number}" for number in range(1, 13))
"""Always the same rounds; how many of them count is a matter of time."""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.own_backends
@pytest.mark.timeout(600)
@pytest.mark.needs("guest", "redis-server", "loop", "mke2fs", "mount")
def test_a_few_rounds_break_no_promise() -> None:
    run = Run(rounds=ROUNDS, give_up=time.monotonic() + 240)
    run.play(iter(SEEDS))
    assert run.broken == []
    assert sum(each.counts for each in run.played) >= 1, "not one fault met a job"
