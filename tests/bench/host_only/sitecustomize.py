"""Hides from a process the packages that BENCH_HIDDEN names.

Python imports this file at its start where its folder is in PYTHONPATH.
"""

import os
import sys


class _Hidden:
    """A finder before all others that finds these to be missing."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"{name} is not installed on hypervisors", name=name)


sys.meta_path.insert(0, _Hidden(frozenset(os.environ.get("BENCH_HIDDEN", "").split())))
