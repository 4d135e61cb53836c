"""What a job is counted for: its host, its pool, its storage domains; and whose turn it is. Pure.

A limit says how many jobs may be at work at once on one host, storage domain or pool. A job that would exceed one
waits before its first step, and nothing is refused. Who waits keeps the place: a job starts once, in each of its
scopes, those at work and those that wait before it are fewer than the limit. So none is passed by in a scope of its
own, and none waits for ever because others need less.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from common.ids import JobId

Scope = Literal["host", "storage_domain", "pool"]
SCOPES: Final[tuple[Scope, ...]] = ("host", "storage_domain", "pool")
WORDS: Final[Mapping[str, str]] = {"host": "host", "storage_domain": "storage domain", "pool": "pool"}

Load = tuple[str, str]
"""Scope and name; a storage domain's name is its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """An unfinished job, in the order in which they were accepted."""

    job: JobId
    loads: tuple[Load, ...]
    is_waiting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that are set: by scope and name, and by scope and '' for all others. `names` are storage domains'."""

    set_for: Mapping[Load, int]
    names: Mapping[str, str]

    def of(self, load: Load) -> int | None:
        """Return the limit for one host, storage domain or pool, None if there is none."""
        owner = self.owner(load)
        return None if owner is None else self.set_for[owner]

    def owner(self, load: Load) -> Load | None:
        """Return which limit counts for one host, storage domain or pool: its own, else that of all others."""
        candidates = (load[0], self.shown(load)), load, (load[0], "")
        return next((each for each in candidates if each in self.set_for), None)

    def shown(self, load: Load) -> str:
        """Return the name that people know."""
        scope, name = load
        return self.names.get(name, name) if scope == "storage_domain" else name


def loads_of(state: Any) -> tuple[Load, ...]:
    """Return what a job in its first state is counted for."""
    at = getattr(state, "at", state)  # a deletion's plan has come so far in it
    plan = at.plan
    switches = [*getattr(plan, "disks", ()), *getattr(plan, "moves", ()), *getattr(plan, "drops", ())]
    merges = [merge for each in getattr(plan, "rounds", ()) for merge in each.disks]
    volumes = [*(switch.new for switch in switches), *(merge.base for merge in merges)]
    found = {("storage_domain", str(volume.storage_domain_id)) for volume in volumes}
    found.add(("pool", str(plan.pool)))
    host = getattr(at, "host", None)
    if host:
        found.add(("host", str(host)))
    return tuple(sorted(found))


def turns(counted: Iterable[Counted], limits: Limits) -> dict[JobId, str]:
    """Return why each waiting job still waits, in words; '' for those whose turn it is."""
    jobs = list(counted)
    before = Counter(load for each in jobs if not each.is_waiting for load in each.loads)
    found: dict[JobId, str] = {}
    for each in jobs:
        if each.is_waiting:
            found[each.job] = _why(each, before, limits)
            before.update(each.loads)
    return found


def _why(job: Counted, before: Mapping[Load, int], limits: Limits) -> str:
    for load in job.loads:
        limit = limits.of(load)
        if limit is not None and before[load] >= limit:
            what = f"{WORDS[load[0]]} {limits.shown(load)}"
            return f"its turn: {before[load]} job(s) of {what} come first, of which {limit} may be at work at once"
    return ""
