"""One round: jobs flow, a fault strikes while one is unfinished, everything comes to rest, the verdict is read."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from tests.bed.vm import BedVm
from tests.chaos import trees
from tests.chaos.faults import Fault, choose, last
from tests.chaos.trees import Wish
from tests.chaos.verdict import Ended, Submitted, acked, problems, resume_paused
from tests.chaos.world import World
from tests.wait import eventually

QUIESCE = ("auto", "auto", "auto", "require", "best-effort", "never")
DELETIONS, SHELF_IS_USED = 0.35, 0.6
"""How often a running guest's job deletes a snapshot of it instead of taking one, and the shelf gets a job too."""
END_LIMIT_S = 240
"""A job may wait out libvirt's 30 s job lock more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What happened. `counts`: a job was unfinished when the fault came. `hit` are the states of those jobs."""

    seed: str
    fault: Fault
    counts: bool
    hit: tuple[str, ...]
    outcomes: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float


def play(world: World, seed: str) -> Round:
    """Play the round of this seed. Where the fault meets the jobs is a matter of time; all else is the seed's."""
    rng, begun = Random(seed), time.monotonic()
    fault = choose(rng, production=world.rabbit is not None)
    world.settle()
    delay_s = rng.choice((rng.uniform(0, 0.1), rng.uniform(0, 1)))
    orders = drawn(world, rng)
    submitted: list[Submitted] = []

    def submit() -> None:
        for guest, mode, wish in orders:
            before = acked(guest)
            job = trees.ask(world, wish) if wish else world.livesnap.submit(guest, quiesce=mode)
            submitted.append(Submitted(job=job["id"], guest=guest, acked_before=before, wish=wish))

    if fault.is_point:
        with fault.strike(world):
            submit()
            ended = wait_for_ends(world, submitted)
            struck = (world.crashes / f"{fault.target}.hit").exists()
        hit = ("point",) if struck else ()
        (world.crashes / f"{fault.target}.hit").unlink(missing_ok=True)
    else:
        submit()
        last(delay_s)
        hit = tuple(job["state"] for job in world.jobs())
        with fault.strike(world):
            ended = wait_for_ends(world, submitted)
    found = tuple(unended(world, submitted, ended)) or tuple(verdict(world, submitted, ended))
    return Round(
        seed=seed,
        fault=fault,
        counts=bool(hit),
        hit=hit,
        outcomes=tuple(each.job["state"] for each in ended.values()),
        problems=found,
        seconds=time.monotonic() - begun,
    )


def drawn(world: World, rng: Random) -> list[tuple[BedVm, str, Wish | None]]:
    """Return who is to be asked for what: a snapshot in a mode, or something else."""
    chosen = [guest for guest in world.guests if rng.random() < 0.6] or [rng.choice(world.guests)]
    orders: list[tuple[BedVm, str, Wish | None]] = []
    for guest in chosen:
        mode, deletes = rng.choice(QUIESCE), rng.random() < DELETIONS
        orders.append((guest, mode, trees.of_running(world, guest, rng) if deletes else None))
    if rng.random() < SHELF_IS_USED:
        orders.append((world.shelf, "", trees.of_shelf(world, rng)))
    return orders


def unended(world: World, submitted: list[Submitted], ended: dict[str, Ended]) -> Iterator[str]:
    """Yield the jobs that have not ended: whatever waits for them would wait for ever."""
    for one in submitted:
        if one.job not in ended:
            yield f"a job without an end: {world.livesnap.ask(f'/v1/jobs/{one.job}')}"


def verdict(world: World, submitted: list[Submitted], ended: dict[str, Ended]) -> Iterator[str]:
    """Let everything come to rest, and yield what is wrong then; that it does not is a finding too."""
    try:
        world.settle()
        yield from problems(world, submitted, ended)
    except AssertionError as failed:
        yield str(failed)


def wait_for_ends(world: World, submitted: list[Submitted]) -> dict[str, Ended]:
    """Wait for every job; do what an operator would: resume guests that met a full disk, and let jobs ask again.

    A job that does not end in time is not among those returned.
    """
    ended: dict[str, Ended] = {}
    resolved: dict[str, int] = {}

    def all_ended() -> bool:
        world.revive()
        for one in submitted:
            job = world.livesnap.ask(f"/v1/jobs/{one.job}")
            if job is None:
                continue
            if job["finished_at"]:
                ended[one.job] = Ended(job=job, acked_after=acked(one.guest))
            elif job["state"] == "needs_operator" and resolved.get(one.job, 0) < 3:
                resolved[one.job] = resolved.get(one.job, 0) + 1
                resume_paused(world)
                world.livesnap.ask(f"/v1/jobs/{one.job}/resolve", {})
        return len(ended) == len(submitted)

    with suppress(AssertionError):
        eventually(all_ended, timeout_s=END_LIMIT_S, what="every job's end", interval_s=0.1)
    resume_paused(world)
    return ended
