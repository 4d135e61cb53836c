"""Every rule that carries weight is missed: without it, the exploration finds what breaks."""

import pytest

from tests.model.explore import explore
from tests.model.model import Model
from tests.model.mutations import ALONE, TOGETHER, Mutation, without


def model(mutation: Mutation) -> Model:
    return Model(mutation.layer, mutation.rules, advance=mutation.advance, judge=mutation.judge)


@pytest.mark.parametrize("name", ALONE)
def test_rule_carries_weight(name: str) -> None:
    mutation = ALONE[name]
    found = explore(model(mutation), only=mutation.kind if mutation.only else None)
    assert found.violation is not None, f"nothing is found without: {name}"
    assert found.violation.kind is mutation.kind, found.story()


@pytest.mark.parametrize("name", ALONE)
def test_the_layer_is_clean_with_all_rules(name: str) -> None:
    """Else the test above would prove nothing."""
    found = explore(Model(ALONE[name].layer))
    assert found.violation is None, found.story()


@pytest.mark.parametrize("name", TOGETHER)
def test_rules_cover_for_each_other(name: str) -> None:
    both, singles = TOGETHER[name]
    found = explore(model(both), only=both.kind if both.only else None)
    assert found.violation is not None, f"nothing is found: {name}"
    assert found.violation.kind is both.kind, found.story()
    for off in singles:
        alone = explore(Model(both.layer, without(*off)), only=both.kind)
        assert alone.violation is None, f"{off} alone: {alone.story()}"
