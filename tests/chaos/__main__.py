"""`python -m tests.chaos --rounds 300 --seed 7`: play rounds and print a histogram; 1 if a promise was broken."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from shutil import copytree

from tests.chaos.rounds import Round, play
from tests.chaos.verdict import last_words
from tests.chaos.world import World, world

ROUNDS_PER_WORLD = 12
"""Then the guests' plugs are pulled and their disks read, and a new world begins: chains must not grow for ever."""


def main() -> int:
    """Play and report."""
    options = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    options.add_argument("--rounds", type=int, default=20, help="rounds that count: a job was unfinished at the fault")
    options.add_argument("--seed", default="1", help="the whole run's; a round's own seed is printed with it")
    options.add_argument("--production", action="store_true", help="on RabbitMQ and PostgreSQL")
    options.add_argument("--only", help="play only the round of this seed")
    options.add_argument("--minutes", type=float, default=600, help="begin no new round after so long")
    options.add_argument("--report", type=Path, help="append every round as a line of JSON to this file")
    chosen = options.parse_args()
    if chosen.only:
        seeds: Iterator[str] = iter([chosen.only])
    else:
        seeds = (f"{chosen.seed}-{number}" for number in count(1))
    give_up = time.monotonic() + chosen.minutes * 60
    run = Run(rounds=chosen.rounds, give_up=give_up, report=chosen.report, production=chosen.production)
    run.play(seeds)
    run.show()
    return 1 if run.broken else 0


class Run:
    """Rounds, one after the other, in one world after the other."""

    def __init__(self, *, rounds: int, give_up: float, report: Path | None = None, production: bool = False) -> None:
        """Play until so many rounds count, or until `give_up` (monotonic)."""
        self._rounds, self._give_up, self._report, self._production = rounds, give_up, report, production
        self.played: list[Round] = []
        self.broken: list[str] = []

    def play(self, seeds: Iterator[str]) -> None:
        """Play until there is enough; the guests' disks are read at the end of each world."""
        while not self._is_enough() and (seed := next(seeds, "")):
            with world(production=self._production) as made:
                for each in chain([seed], islice(seeds, ROUNDS_PER_WORLD - 1)):
                    played = play(made, each)
                    self._tell(played)
                    if played.problems:
                        self._keep_logs(made, each)
                    if played.problems or self._is_enough():
                        break
                self._note("the end of a world", last_words(made))

    def _keep_logs(self, made: World, seed: str) -> None:
        """Copy what the processes of a broken world have said; the next round gets a new one."""
        if self._report:
            copytree(made.livesnap.state_dir / "logs", self._report.with_suffix(f".{seed}.logs"), dirs_exist_ok=True)

    def _is_enough(self) -> bool:
        return sum(each.counts for each in self.played) >= self._rounds or time.monotonic() > self._give_up

    def _note(self, where: str, problems: Iterable[str]) -> None:
        for problem in problems:
            self.broken.append(f"{where}: {problem}")
            sys.stdout.write(f"  BROKEN: {problem}\n")

    def _tell(self, each: Round) -> None:
        """Print a round, and append it to the report."""
        self.played.append(each)
        met = f"hit {','.join(each.hit)}" if each.counts else "missed"
        outcomes = ",".join(each.outcomes)
        sys.stdout.write(f"{each.seed:>10} {each.fault!s:36} {met:40} -> {outcomes:36} {each.seconds:5.1f} s\n")
        self._note(each.seed, each.problems)
        sys.stdout.flush()
        if self._report:
            backends = "rabbitmq-postgresql" if self._production else "redis-sqlite"
            facts = {name: getattr(each, name) for name in ("seed", "counts", "hit", "outcomes", "problems", "seconds")}
            with self._report.open("a") as lines:
                lines.write(
                    json.dumps({"on": backends, "kind": each.fault.kind, "target": each.fault.target, **facts}) + "\n"
                )

    def show(self) -> None:
        """Print the histogram of faults by kind and target, and of the states that they hit."""
        counted = [each for each in self.played if each.counts]
        sys.stdout.write(f"\n{len(counted)} rounds count of {len(self.played)} played\n")
        for name, number in sorted(Counter(str(each.fault) for each in counted).items()):
            sys.stdout.write(f"  {name:40} {number:4}\n")
        states = Counter(state for each in counted if not each.fault.is_point for state in each.hit)
        sys.stdout.write(f"states hit by faults that are no points: {dict(states)}\n")
        sys.stdout.write(f"outcomes: {dict(Counter(outcome for each in counted for outcome in each.outcomes))}\n")
        sys.stdout.write(f"promises broken: {len(self.broken)}\n")


if __name__ == "__main__":
    sys.exit(main())
