"""The brokers that a test plays on, and those of them that every run of the suite takes."""

from collections.abc import Sequence

import pytest
from _pytest.mark.structures import ParameterSet

BROKERS = [
    pytest.param("redis", id="redis", marks=[pytest.mark.needs("redis-server"), pytest.mark.xdist_group("redis")]),
    pytest.param(
        "rabbitmq",
        id="rabbitmq",
        marks=[pytest.mark.rabbit, pytest.mark.needs("rabbitmq"), pytest.mark.xdist_group("rabbitmq")],
    ),
]


def always_on(name: str, argument: str = "broker", among: Sequence[ParameterSet] = BROKERS) -> pytest.MarkDecorator:
    """Have every run play a test on that broker only; `make matrix` plays it on the other too.

    For what is ours and the same on both. Where the broker itself matters, both are played in every run.
    """
    params = [
        each if each.id == name else pytest.param(*each.values, id=each.id, marks=[*each.marks, pytest.mark.matrix])
        for each in among
    ]
    return pytest.mark.parametrize(argument, params, indirect=True)
