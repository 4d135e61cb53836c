"""What a hypervisor does not have: packages of this environment that livesnap's extra `host` does not bring along.

It matters: structlog imports Rich where it finds it, Celery's command imports Flower, kombu imports PyYAML.
"""

import re
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

_FOLDER: Final = Path(__file__).with_name("host_only")


def as_on_a_hypervisor() -> dict[str, str]:
    """Return the environment of a process that shall find no other packages than there."""
    needed = _closure("livesnap", "host")
    others = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not needed & {_name(owner) for owner in owners}
    }
    return {"PYTHONPATH": str(_FOLDER), "BENCH_HIDDEN": " ".join(sorted(others - {"tests"}))}


def _closure(distribution: str, extra: str = "") -> set[str]:
    """Return everything that one distribution needs, with itself."""
    found = {(_name(distribution), extra)}
    waiting = list(found)
    while waiting:
        name, wanted = waiting.pop()
        for requirement in map(Requirement, metadata.requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                more = {(_name(requirement.name), each) for each in {"", *requirement.extras}} - found
                found |= more
                waiting += more
    return {name for name, _ in found}


def _name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
