"""The same model under hypothesis: long random stories with many more mishaps than can be explored to the end.

`Transport` is duplicates, losses, delays and crashes round the saga; `Machine` is what users, guests and storage do
to the machine, judged by the real `judge`, decided by the real `settle` and labelled by the real `label`; `Fleet` is
two hosts and migrations. After each story, without any further mishap, every job must be able to end, and the guest
to be thawed.
"""

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.model.explore import Story
from tests.model.invariants import has_end_or_name, is_thawed, violation
from tests.model.model import Model
from tests.model.mutations import without
from tests.model.world import Budget, Config, Rules, World

MISHAP_BELOW = 40
"""Of 256: about every sixth step is a mishap, if one is possible."""
SETTINGS = settings(
    max_examples=60,
    stateful_step_count=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


class Walk(RuleBasedStateMachine):
    """One story: usually what has to happen goes on, in some order, and sometimes there is a mishap."""

    config: Config
    in_force = Rules()

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.config, self.in_force)
        self.story = Story(self.model)

    @rule(choices=st.lists(st.integers(0, 255), min_size=4, max_size=30))
    def live(self, choices: list[int]) -> None:
        for choice in choices:
            if choice < MISHAP_BELOW:
                self.story.suffer(choice)
            else:
                self.story.go_on(choice)
            self.promises_hold()

    @rule(choice=st.integers(0, 255))
    def suffer(self, choice: int) -> None:
        self.story.suffer(choice)

    @invariant()
    def promises_hold(self) -> None:
        found = violation(self.model, self.story.world)
        assert found is None, self.story.told(found)

    def teardown(self) -> None:
        goals: list[tuple[str, Callable[[World], bool]]] = [
            ("frozen for ever", is_thawed),
            ("never ends", lambda world: has_end_or_name(self.model, world)),
        ]
        for name, is_goal in goals:
            assert self.story.can_reach(is_goal), f"{name}\n{self.story.told(None)}"


class Transport(Walk):
    config = Config(
        jobs=2,
        budget=Budget(
            agent=3, libvirtd=2, connection=2, reboot=1, guard=1, spm=2, spm_stop=1,
            loss=4, timeout=6, refusal=4, cancel=1, word=3, freeze_late=2, overtaken=1,
        ),
        asks_operator=True,
    )  # fmt: skip


class Machine(Walk):
    config = Config(
        disks=2,
        budget=Budget(
            stop=3, save=2, pause=3, io_error=2, commit_fails=1, partial=1, virsh_thaw=2, virsh_snapshot=1,
            freeze_fails=1, freeze_late=1, slow=2, agent=2, timeout=2,
        ),
        asks_operator=True,
        mode="best-effort",
    )  # fmt: skip


class Fleet(Walk):
    config = Config(
        hosts=2,
        budget=Budget(migrate=4, agent=2, connection=1, timeout=4, slow=1, freeze_late=1, pause=1, cancel=1, word=1),
        asks_operator=True,
    )


TestTransport = Transport.TestCase
TestTransport.settings = SETTINGS
TestMachine = Machine.TestCase
TestMachine.settings = SETTINGS
TestFleet = Fleet.TestCase
TestFleet.settings = SETTINGS


@pytest.mark.parametrize(
    ("walk", "rule"),
    [
        (Transport, "fence"),
        (Transport, "definition_counts"),
        pytest.param(Fleet, "fence", marks=pytest.mark.matrix),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_walk_notices_a_missing_rule(walk: type[Walk], rule: str) -> None:
    """The same stories every time, so that this says something of the machine and nothing of luck."""
    broken = type(f"{walk.__name__}Without", (walk,), {"in_force": without(rule)})
    stories = settings(SETTINGS, max_examples=300, phases=(Phase.generate,), derandomize=True, database=None)
    with pytest.raises(AssertionError, match=r"=> |frozen for ever|never ends"):
        run_state_machine_as_test(broken, settings=stories)
