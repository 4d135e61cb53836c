"""`python -m tests.model [--deep]`: run the exploration, print MODEL.md's tables; exit 1 if anything is amiss."""

import sys

from tests.model.explore import Explored, explore
from tests.model.layers import DEEP, LAYERS, RESIDUALS
from tests.model.model import Model
from tests.model.mutations import ALONE, TOGETHER, Mutation
from tests.model.world import Config


def main(arguments: list[str]) -> int:
    """Print a table per kind of run, and a story for each surprise."""
    surprises = 0
    layers = LAYERS | (DEEP if "--deep" in arguments else {})
    states, seconds = 0, 0.0
    print("| layer | states | s | |\n|--|--|--|--|")
    for name, config in layers.items():
        found = explore(Model(config), most=3_000_000)
        states, seconds = states + found.states, seconds + found.seconds
        surprises += _show(name, found, found.violation is None)
    print(f"| all | {states:,} | {seconds:.1f} | |\n")
    print("| residual | states | s | found |\n|--|--|--|--|")
    for name, (config, kind) in RESIDUALS.items():
        found = explore(Model(config))
        surprises += _show(name, found, found.violation is not None and found.violation.kind is kind)
    print("\n| without | states | s | breaks |\n|--|--|--|--|")
    for name, mutation in (ALONE | {name: both for name, (both, _) in TOGETHER.items()}).items():
        found = _without(mutation)
        surprises += _show(name, found, found.violation is not None and found.violation.kind is mutation.kind)
    return 1 if surprises else 0


def _without(mutation: Mutation) -> Explored:
    config: Config = mutation.layer
    model = Model(config, mutation.rules, advance=mutation.advance, judge=mutation.judge)
    return explore(model, only=mutation.kind if mutation.only else None)


def _show(name: str, found: Explored, expected: bool) -> int:
    told = found.violation.kind if found.violation else ""
    print(f"| {name} | {found.states:,} | {found.seconds:.1f} | {told} |", flush=True)
    if not expected:
        print(found.story() or "nothing was found", file=sys.stderr)
    return 0 if expected else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
