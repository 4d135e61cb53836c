"""The whole protocol, explored: nothing leads to a broken promise; and what is known to, still does."""

import os

import pytest

from tests.model.explore import Exploration, explore
from tests.model.layers import DEEP, LAYERS, RESIDUALS
from tests.model.model import Model
from tests.model.mutations import WEIGHTLESS, without
from tests.model.world import World

IS_DEEP = os.environ.get("LIVESNAP_MODEL") == "deep"
deep = [pytest.mark.skipif(not IS_DEEP, reason="minutes: `make model`"), pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    found = explore(Model(LAYERS[name]))
    assert found.violation is None, found.story()
    assert found.states > 100


@pytest.mark.parametrize("name", [pytest.param(name, marks=deep) for name in DEEP])
def test_deep_layer(name: str) -> None:
    found = explore(Model(DEEP[name]), most=3_000_000)
    assert found.violation is None, found.story()


@pytest.mark.parametrize("name", RESIDUALS)
def test_residual(name: str) -> None:
    """What is not closed is found: the docs that name it are true, and whoever closes it hears of it here."""
    config, kind = RESIDUALS[name]
    found = explore(Model(config))
    assert found.violation is not None, f"closed: {name}"
    assert found.violation.kind is kind, found.story()


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=deep) for rule in WEIGHTLESS])
def test_weightless_rule(rule: str) -> None:
    """A rule of which we say that it carries no weight alone carries none in any layer."""
    for name, config in LAYERS.items():
        found = explore(Model(config, without(rule)), most=3_000_000)
        assert found.violation is None, f"{name}: {found.story()}"


# ---- the model is not empty -----------------------------------------------------------------------------------------

COVERING = (
    "lost-connections",
    "messages-lost-and-refused",
    "failing-freeze",
    "frozen-by-others",
    "off",
    "no-guest-agent",
    "virsh-snapshot",
)


def covered() -> tuple[set[str], set[str], set[str]]:
    """Return the saga's states, the handlers' steps and the labels that a few layers reach."""
    sagas: set[str] = set()
    handlers: set[str] = set()
    labels: set[str] = set()
    for name in COVERING:
        model = Model(LAYERS[name])
        exploration = Exploration(model, most=100_000)
        exploration.run(lively=False, only=None)
        for world in exploration.worlds:
            sagas.update(model.sagas.labels[job.saga] for job in world.jobs)
            labels.update(job.label for job in world.jobs)
            handlers.update(_handlers(world))
    return sagas, handlers, labels


def _handlers(world: World) -> set[str]:
    return {host.handler.at for host in world.hosts if host.handler}


def test_everything_happens() -> None:
    sagas, handlers, labels = covered()
    assert sagas == {
        "creating_volumes", "pivoting", "probing", "awaiting_host", "repairing", "deleting_volumes",
        "completed", "rolled_back", "needs_operator",
    }  # fmt: skip
    assert handlers == {
        "orphans", "prepare", "redefine", "redefining", "define", "defining", "intent", "freeze", "freezing",
        "leave alone", "switch", "switching", "disarm", "thaw", "verify", "undo", "conclude", "repair", "answer",
        "commit", "done",
    }  # fmt: skip
    assert labels == {"", "filesystem", "crash"}


def test_exploration_gives_up_rather_than_to_go_on_for_ever() -> None:
    with pytest.raises(AssertionError, match="more than 50 states"):
        explore(Model(LAYERS["agent-twice"]), most=50)


def test_story_tells_who_did_what() -> None:
    config, kind = RESIDUALS["R2: thawed and frozen again by others within one window"]
    story = explore(Model(config)).story().splitlines()
    assert "Manager: is asked for a snapshot: N above O" in story[0]
    assert "host 1: journals a call, and has libvirt switch all disks" in "\n".join(story)
    assert [line for line in story if "somebody: thaws the guest by hand" in line]
    assert story[-1].strip().startswith(f"=> {kind}")
    assert [int(line.split(".")[0]) for line in story[:-1]] == list(range(1, len(story)))
