"""What there is to count, by a few grouped queries, however many jobs, hosts and machines there are.

What has ended does not change any more, so `History` reads each ended job once in the life of its process.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, case, func, literal, literal_column, select

from manager.store import workers
from manager.store.tables import disks, hosts, jobs, outbox, pools, snapshots, storage_domains, timeline, volumes

BOUNDS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000, 1_800_000)
"""Upper bounds of the buckets of every duration: a freeze lasts some 10 ms, a job whose host is away half an hour."""
DEPTH_BOUNDS: Final = (1, 2, 5, 10, 20, 40, 100)
ACCEPTED: Final = "accepted"
"""The step before a job's first entry: from the receipt of the request."""

_BEYOND: Final = len(BOUNDS_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Durations of one kind: how many fell into each bucket (the last: beyond all bounds), and their sum (ms)."""

    counts: tuple[int, ...]
    sum_ms: float


@dataclass(slots=True, kw_only=True, frozen=True)
class Ended:
    """What has ended, in a span of time. Keys: jobs (kind, state, error code), durations (metric, label, label)."""

    jobs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    counts: Counter[tuple[str, str, str, int]] = field(default_factory=Counter)
    sums_ms: defaultdict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Ended") -> None:
        """Count `other` in."""
        self.jobs.update(other.jobs)
        self.counts.update(other.counts)
        for key, ms in other.sums_ms.items():
            self.sums_ms[key] += ms

    def durations(self) -> dict[tuple[str, str, str], Durations]:
        """Return the durations, by their key."""
        return {
            key: Durations(counts=tuple(self.counts[*key, bucket] for bucket in range(_BEYOND + 1)), sum_ms=sum_ms)
            for key, sum_ms in self.sums_ms.items()
        }


def ended(connection: Connection, after: datetime, until: datetime) -> Ended:
    """Return what has ended after one moment and until another: five queries.

    Durations: `step` by (kind, step) is the time spent in a step, `job` by (kind, outcome) from the receipt of the
    request to the end, `freeze` and `held` of the snapshots whose guest was frozen (common/receipt.py).
    """
    found, window = Ended(), (jobs.c.finished_at > after) & (jobs.c.finished_at <= until)
    by = (jobs.c.kind, jobs.c.state, jobs.c.error_code)
    for row in connection.execute(select(*by, func.count().label("n")).where(window).group_by(*by)):
        found.jobs[row.kind, row.state, row.error_code] += row.n
    before = func.lag(timeline.c.step).over(partition_by=timeline.c.job_id, order_by=timeline.c.version)
    steps = select(jobs.c.kind.label("a"), func.coalesce(before, ACCEPTED).label("b"), timeline.c.ms.label("ms"))
    _count(connection, found, "step", steps.join(jobs, jobs.c.id == timeline.c.job_id).where(window))
    outcome = case((jobs.c.error_code == "", "done"), else_="failed")
    # By itself for each job: as a join with GROUP BY, SQLite reads the whole timeline.
    lasted = select(func.sum(timeline.c.ms)).where(timeline.c.job_id == jobs.c.id).scalar_subquery()
    whole = select(jobs.c.kind.label("a"), outcome.label("b"), func.coalesce(lasted, 0.0).label("ms"))
    _count(connection, found, "job", whole.where(window))
    for metric, column in (("freeze", snapshots.c.freeze_ms), ("held", snapshots.c.held_ms)):
        taken = select(literal("").label("a"), literal("").label("b"), column.label("ms"))
        taken = taken.join(jobs, jobs.c.snapshot_id == snapshots.c.id).where(jobs.c.kind == "snapshot", window)
        _count(connection, found, metric, taken.where(column.is_not(None)))
    return found


def _count(connection: Connection, found: Ended, metric: str, durations: Any) -> None:
    """Count the rows (a, b, ms) of a query by bucket."""
    each = durations.subquery()
    bucket = _bucket(each.c.ms)
    groups = select(
        each.c.a, each.c.b, bucket.label("bucket"), func.count().label("n"), func.sum(each.c.ms).label("ms")
    )
    for row in connection.execute(groups.group_by(each.c.a, each.c.b, literal_column("bucket"))):
        found.counts[metric, row.a, row.b, row.bucket] += row.n
        found.sums_ms[metric, row.a, row.b] += row.ms


def _bucket(ms: ColumnElement[float]) -> ColumnElement[int]:
    """Return the number of the bucket that a duration falls into."""
    bounds: list[tuple[ColumnElement[bool], ColumnElement[int]]]
    bounds = [(ms <= bound, literal_column(str(number))) for number, bound in enumerate(BOUNDS_MS)]
    return case(*bounds, else_=literal_column(str(_BEYOND)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How things stand at one moment. Ages are moments; sizes are bytes; `open_jobs` by (kind, state)."""

    open_jobs: Mapping[tuple[str, str], int]
    outbox_open: int
    outbox_unpublished: int
    outbox_oldest: datetime | None
    hosts: Sequence[Row[Any]]
    frozen: Mapping[str, int]
    pools: Sequence[Row[Any]]
    storage_domains: Sequence[Row[Any]]
    workers: int
    depths: Mapping[int, int]


def standing(connection: Connection, *, alive_since: datetime) -> Standing:
    """Return how things stand now: seven queries. A Manager worker lives that was seen at `alive_since` or later."""
    by = (jobs.c.kind, jobs.c.state)
    counted = connection.execute(select(*by, func.count().label("n")).where(jobs.c.finished_at.is_(None)).group_by(*by))
    unpublished = func.coalesce(func.sum(case((outbox.c.publish_error != "", 1), else_=0)), 0)
    waiting = select(func.count().label("n"), unpublished.label("bad"), func.min(outbox.c.created_at).label("oldest"))
    unanswered = connection.execute(waiting.where(outbox.c.closed_at.is_(None))).one()
    seen = connection.execute(select(hosts).order_by(hosts.c.id)).all()
    return Standing(
        open_jobs={(row.kind, row.state): row.n for row in counted},
        outbox_open=unanswered.n,
        outbox_unpublished=unanswered.bad,
        outbox_oldest=unanswered.oldest,
        hosts=seen,
        frozen={row.id: len(json.loads(row.frozen_json)) for row in seen},
        pools=connection.execute(select(pools).order_by(pools.c.id)).all(),
        storage_domains=connection.execute(select(storage_domains).order_by(storage_domains.c.id)).all(),
        workers=workers.alive(connection, alive_since),
        depths=_depths(connection),
    )


def _depths(connection: Connection) -> dict[int, int]:
    """Return how many disks have a chain of each depth on record. Bounded, should the record hold a loop."""
    leaf = select(disks.c.id.label("disk"), volumes.c.parent_id, literal_column("1").label("depth"))
    chain = leaf.join(volumes, volumes.c.id == disks.c.leaf_volume_id).cte("chain", recursive=True)
    below = select(chain.c.disk, volumes.c.parent_id, chain.c.depth + 1)
    chain = chain.union_all(below.join(volumes, volumes.c.id == chain.c.parent_id).where(chain.c.depth < 1000))
    deepest = select(func.max(chain.c.depth).label("depth")).group_by(chain.c.disk).subquery()
    rows = connection.execute(select(deepest.c.depth, func.count().label("n")).group_by(deepest.c.depth))
    return {row.depth: row.n for row in rows}
