"""Random steps on real images: after each, what is kept shows what a plain model says (tree_model.py).

`make matrix` takes 2,000 of them, the suite a few. A walk is its seed: `LIVESNAP_TREE_SEED=7` begins another one.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Final

import pytest

from common.errors import RequestRefused
from manager.deletions import DeleteRequest
from manager.flows.revert_states import Goal
from manager.reverts import Ask
from manager.views import JobView
from tests.integration.tree_model import PLACES, Disk, Model, Refused
from tests.integration.tree_world import NAME, PLACE_BYTES, World, world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.needs("guest", "qemu-img", "qemu-io"),
    pytest.mark.xdist_group("tree-model"),
]

SEED: Final = int(os.environ.get("LIVESNAP_TREE_SEED", "5"))
SHORT: Final = 20
PARTS: Final = 8
"""A walk of 2,000 steps is made in so many parts, each with a machine of its own: 250 steps last some minutes."""
MOST: Final = 6
"""Of so many snapshots the next step deletes some."""

WEIGHTS: Final = {
    "write": 8,
    "snapshot": 5,
    "delete": 5,
    "turn": 4,
    "preview": 4,
    "undo": 2,
    "commit": 2,
    "revert": 2,
}


class Walk:
    """Steps in the world and in its model, drawn from one seed. `taken` counts those that were done, by name."""

    def __init__(self, at: World, seed: str) -> None:
        self.at, self.rng = at, Random(seed)
        self.model = Model(disks={disk.target: Disk() for disk in at.vm.spec.disks})
        self.taken: Counter[str] = Counter()
        self.number = 0

    def step(self) -> None:
        """Take one step, and check: everything after what moves volumes, else the machine's own disks, mostly."""
        self.number += 1
        word = self._word()
        steps: dict[str, Callable[[], None]] = {
            "write": self.write,
            "snapshot": self.snapshot,
            "delete": self.delete,
            "turn": self.turn,
        }
        try:
            steps.get(word, lambda: self.go_back(word))()
            self.at.report()
            if word in ("write", "turn") and self.number % 10:
                self.at.check_leaves(self.model)
            else:
                self.at.check(self.model)
        except AssertionError as wrong:
            raise AssertionError(f"step {self.number} ({word}): {wrong}") from wrong

    def _word(self) -> str:
        if len(self.model.points) >= MOST and not self.model.previewed:
            return "delete"
        if self.model.previewed and self.rng.random() < 0.3:
            return "undo" if self.rng.random() < 0.5 else "commit"
        return self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]

    # ---- steps --------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write here and there."""
        for _ in range(self.rng.randint(1, 3)):
            target = self.rng.choice(list(self.model.disks))
            place = self.rng.randrange(PLACES)
            count, byte = self.rng.randint(1, min(8, PLACES - place)), self.rng.randint(0, 255)
            self.at.write(target, place, count, byte)
            self.model.write(target, place, count, byte)
        self.taken["write"] += 1

    def turn(self) -> None:
        """Start what is off, stop what runs."""
        (self.at.stop if self.model.running else self.at.start)()
        self.model.running = not self.model.running
        self.taken["start" if self.model.running else "stop"] += 1

    def snapshot(self) -> None:
        """Take one of all disks."""
        name = f"s{self.number}"
        job = self._both("snapshot", lambda: self.model.snapshot(name), lambda: self.at.fleet.create(NAME, name=name))
        assert job is None or job.state == "completed", job

    def go_back(self, word: str) -> None:
        """Preview, revert, undo or commit."""
        goal: Goal = word  # type: ignore[assignment]
        start = self.at.fleet.service.reverts.start
        if goal in ("undo", "commit"):
            act = self.model.undo if goal == "undo" else self.model.commit
            job = self._both(goal, act, lambda: start(Ask(goal=goal, reference=NAME)))
        elif names := [*self.model.points]:
            name = self.rng.choice(names)
            some = goal == "preview" and self.rng.random() < 0.3
            targets = (self.rng.choice(list(self.model.disks)),) if some else ()
            ask = Ask(goal=goal, reference=f"{NAME}/{name}", disks=targets)
            there = (
                (lambda: self.model.preview(name, targets)) if goal == "preview" else lambda: self.model.revert(name)
            )
            job = self._both(goal, there, lambda: start(ask))
        else:
            return
        assert job is None or job.state == "completed", job

    def delete(self) -> None:
        """Delete snapshots; once in a while the machine is started or stopped in the middle, or it is cancelled."""
        names = [*self.model.points]
        if not names:
            return
        chosen = self.rng.sample(names, min(len(names), self.rng.choice((1, 1, 1, 2, 3))))
        request = DeleteRequest(snapshots=tuple(f"{NAME}/{name}" for name in chosen))
        fate, before = self.rng.random(), deepcopy(self.model)
        delete = self.at.fleet.service.deletions.delete
        job = self._both(
            "delete",
            lambda: self.model.delete(chosen),
            lambda: delete(request),
            then=self.turn if fate < 0.2 else None,
            cancel=fate > 0.8 and len(chosen) == 1,
        )
        if job is None or job.state == "completed":
            return
        assert job.state == "rolled_back", job
        assert job.error is not None
        assert (fate > 0.8, job.error.code) == (True, "job_cancelled"), job
        self.taken["cancelled"] += 1
        before.running = self.model.running
        if self.at.fleet.service.show_snapshot(f"{NAME}/{chosen[0]}").state == "half_merged":
            before.halves.add(chosen[0])
        self.model = before

    def _both(
        self,
        word: str,
        in_model: Callable[[], None],
        ask: Callable[[], JobView],
        *,
        then: Callable[[], None] | None = None,
        cancel: bool = False,
    ) -> JobView | None:
        """Do it in the model and ask for it; return the job at its end, None if both refuse with the same code.

        `then` happens in the middle of the job, or it is cancelled there.
        """
        refusal = refused(in_model)
        if refusal:
            with pytest.raises(RequestRefused) as said:
                ask()
            assert said.value.code == refusal
            self.taken[f"{word} refused"] += 1
            return None
        job, at_turn = ask(), self.rng.randint(1, 8)

        def meanwhile(turn: int) -> None:
            if turn == at_turn and cancel:
                self.at.cancel(job)
            elif turn == at_turn and then is not None:
                then()

        self.taken[word] += 1
        return self.at.ends(job, meanwhile=meanwhile, twice=self.rng.choice((0, 0, 0.5)))


def refused(act: Callable[[], None]) -> str:
    """Do it in the model; return the code that it is refused with, '' if it is done."""
    try:
        act()
    except Refused as why:
        return str(why)
    return ""


@pytest.fixture(scope="module")
def at() -> Iterator[World]:
    """A machine that is off, with two blank disks."""
    with world() as made:
        yield made


def walk(at: World, seed: str, steps: int) -> Walk:
    """Take so many steps."""
    walking = Walk(at, seed)
    for _ in range(steps):
        walking.step()
    at.check(walking.model)
    return walking


def test_a_short_walk_and_a_flipped_bit(at: World) -> None:
    """Every kept snapshot shows what it should; that this is seen at all, is seen by one bit that is turned round."""
    walking = walk(at, f"{SEED}-short", SHORT)
    assert walking.taken["snapshot"] >= 2
    assert walking.taken["delete"] >= 2
    if walking.model.running:
        walking.turn()
    at.write("vda", 3, 1, 0x5A)
    walking.model.write("vda", 3, 1, 0x5A)
    leaf = Path(at.vm.sources(persistent=True)["vda"])
    at.check(walking.model)
    with flipped(leaf, bytes([0x5A]) * PLACE_BYTES), pytest.raises(AssertionError, match=r"the leaf, vda: .* at byte"):
        at.check(walking.model)
    at.check(walking.model)


@contextmanager
def flipped(path: Path, where: bytes) -> Iterator[None]:
    """Turn one bit of an image round, in the middle of the data `where`, while the block runs."""
    at = path.read_bytes().index(where) + len(where) // 2
    with path.open("r+b", buffering=0) as image:

        def turn() -> None:
            (byte,) = os.pread(image.fileno(), 1, at)
            os.pwrite(image.fileno(), bytes([byte ^ 1]), at)

        turn()
        yield
        turn()


@pytest.mark.matrix
@pytest.mark.parametrize("part", range(PARTS))
def test_two_thousand_steps(part: int) -> None:
    began = time.monotonic()
    with world() as at:
        walking = walk(at, f"{SEED}-{part}", 2000 // PARTS)
        taken = ", ".join(f"{number} {word}" for word, number in sorted(walking.taken.items()))
        sys.stdout.write(f"seed {SEED}-{part}, {walking.number} steps, {time.monotonic() - began:.0f} s: {taken}\n")
        assert {"write", "snapshot", "delete", "start", "stop", "preview", "undo", "commit", "revert"} <= set(
            walking.taken
        ), walking.taken
