"""`python -m tests.matrix`: play the whole matrix, or `--only PART`, and print it; 1 if a cell went wrong."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path

from tests.matrix.cells import VICTIMS, Cell, cells
from tests.matrix.play import CELLS_PER_SCENE, Played, play, scene_of


def main() -> int:
    """Play and report."""
    options = argparse.ArgumentParser(prog="tests.matrix", description=__doc__)
    options.add_argument("--only", default="", help="only cells whose name (story/point/victim) has this in it")
    options.add_argument("--report", type=Path, help="append every cell as a line of JSON to this file")
    options.add_argument("--again", action="store_true", help="leave out the cells that --report has as played well")
    chosen = options.parse_args()
    wanted = [cell for cell in cells() if chosen.only in str(cell)]
    if chosen.again:
        wanted = [cell for cell in wanted if str(cell) not in _well(chosen.report)]
    played = [_told(each, chosen.report) for each in play_all(wanted)]
    show(played)
    return 1 if any(each.problem for each in played) else 0


def play_all(wanted: Sequence[Cell]) -> Iterable[Played]:
    """Play cells story by story, in a new scene every so often and after one that went wrong."""
    for story, group in groupby(wanted, key=lambda cell: cell.story):
        waiting = list(group)
        while waiting:
            with scene_of(story) as scene:
                for cell in islice(tuple(waiting), CELLS_PER_SCENE):
                    waiting.remove(cell)
                    played = play(scene, cell)
                    yield played
                    if played.problem:
                        break


def show(played: Sequence[Played]) -> None:
    """Print a table for each story: points down, victims across, how the job ended."""
    for story, group in groupby(played, key=lambda each: each.cell.story):
        rows: dict[str, dict[str, str]] = {}
        for each in group:
            rows.setdefault(each.cell.point, {})[each.cell.victim] = "BROKEN" if each.problem else each.state
        sys.stdout.write(f"\n{story}\n  {'':28}" + "".join(f"{victim:>13}" for victim in VICTIMS) + "\n")
        for point, states in rows.items():
            row = "".join(f"{states.get(victim, ''):>13}" for victim in VICTIMS)
            sys.stdout.write(f"  {point:28}{row}\n")
    bad = [each for each in played if each.problem]
    seconds = sum(each.seconds for each in played)
    sys.stdout.write(f"\n{len(played)} cells, {len(bad)} of them broken, {seconds:.0f} s\n")


def _told(each: Played, report: Path | None) -> Played:
    sys.stdout.write(f"{each.cell!s:60} {each.state:14}{each.seconds:6.1f} s  {each.problem}\n")
    sys.stdout.flush()
    if report:
        with report.open("a") as lines:
            facts = {"cell": str(each.cell), "state": each.state, "problem": each.problem, "seconds": each.seconds}
            lines.write(json.dumps(facts) + "\n")
    return each


def _well(report: Path) -> set[str]:
    lines = report.read_text().splitlines() if report.exists() else []
    return {fact["cell"] for fact in map(json.loads, lines) if not fact["problem"]}


if __name__ == "__main__":
    sys.exit(main())
