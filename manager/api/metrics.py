"""The Manager's figures for Prometheus. Any number of API processes show the same: the database's.

Everything is counted at the scrape (manager/store/figures.py). Machines are not named; hosts, pools and storage domains
are.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from manager.store.figures import BOUNDS_MS, DEPTH_BOUNDS, Durations
from manager.watch import Figures, Watch

HOST_STATES = ("up", "libvirt_down", "silent")


class WatchCollector(Collector):
    """Turns figures into metrics."""

    def __init__(self, watch: Watch) -> None:
        """Count by `watch`."""
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Raises LivesnapError(database_unavailable)."""
        seen = self._watch.figures()
        yield from _jobs(seen)
        yield from _durations(seen)
        yield from _outbox(seen)
        yield from _hosts(seen)
        yield from _storage(seen)
        yield _chains(seen.standing.depths)


def outcome(*, state: str, code: str, is_over: bool) -> str:
    """Return what became of a job: done or failed, if it is over; else running, or needs_operator."""
    if is_over:
        return "failed" if code else "done"
    return "needs_operator" if state == "needs_operator" else "running"


def _jobs(seen: Figures) -> Iterator[Metric]:
    open_jobs = GaugeMetricFamily("livesnap_jobs", "Unfinished jobs.", labels=("kind", "state", "outcome"))
    for (kind, state), count in sorted(seen.standing.open_jobs.items()):
        open_jobs.add_metric((kind, state, outcome(state=state, code="", is_over=False)), count)
    yield open_jobs
    over = CounterMetricFamily(
        "livesnap_jobs_finished",
        "Jobs that have ended; code: why one failed.",
        labels=("kind", "state", "outcome", "code"),
    )
    for (kind, state, code), count in sorted(seen.ended.jobs.items()):
        over.add_metric((kind, state, outcome(state=state, code=code, is_over=True), code), count)
    yield over


def _durations(seen: Figures) -> Iterator[Metric]:
    families = {
        "step": ("livesnap_step_seconds", "Time that ended jobs spent in a step.", ("kind", "step")),
        "job": ("livesnap_job_seconds", "From the receipt of a request to its job's end.", ("kind", "outcome")),
        "freeze": ("livesnap_freeze_seconds", "What guests' agents took to freeze, their hooks included.", ()),
        "held": ("livesnap_held_seconds", "What guests stood still: from the freeze to the confirmed thaw.", ()),
    }
    by_key = seen.ended.durations()
    for metric, (name, documentation, labels) in families.items():
        family = HistogramMetricFamily(name, documentation, labels=labels)
        found = {key[1:]: durations for key, durations in by_key.items() if key[0] == metric}
        if not labels:
            found = {(): found.get(("", ""), Durations(counts=(0,) * (len(BOUNDS_MS) + 1), sum_ms=0.0))}  # type: ignore[dict-item]
        for values, durations in sorted(found.items()):
            family.add_metric(values, _buckets(durations), durations.sum_ms / 1000)
        yield family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    bounds = [*(str(bound / 1000) for bound in BOUNDS_MS), "+Inf"]
    return list(zip(bounds, accumulate(durations.counts), strict=True))


def _outbox(seen: Figures) -> Iterator[Metric]:
    standing, oldest = seen.standing, seen.standing.outbox_oldest
    age_s = (seen.now - oldest).total_seconds() if oldest else 0.0
    yield _gauge("livesnap_outbox_open", "Commands without an answer.", standing.outbox_open)
    yield _gauge("livesnap_outbox_unpublished", "Commands that the broker did not take.", standing.outbox_unpublished)
    yield _gauge("livesnap_outbox_oldest_seconds", "Age of the oldest command without an answer.", age_s)
    yield _gauge("livesnap_manager_workers", "Manager workers that live.", standing.workers)
    yield _gauge("livesnap_broker_up", "Whether the message broker answers.", seen.queues is not None)
    lengths = GaugeMetricFamily("livesnap_queue_messages", "Messages that nobody has taken yet.", labels=("queue",))
    for queue, length in (seen.queues or {}).items():
        lengths.add_metric((queue,), length)
    yield lengths


def _hosts(seen: Figures) -> Iterator[Metric]:
    states = dict.fromkeys(HOST_STATES, 0)
    last = GaugeMetricFamily("livesnap_host_last_seen_timestamp_seconds", "Last report of a host.", labels=("host",))
    frozen = GaugeMetricFamily("livesnap_guests_frozen", "Guests that are frozen now, by their host.", labels=("host",))
    for row in seen.standing.hosts:
        silent = row.seen_at < seen.silent_before
        states["silent" if silent else "up" if row.libvirt_up else "libvirt_down"] += 1
        last.add_metric((row.id,), row.seen_at.timestamp())
        frozen.add_metric((row.id,), seen.standing.frozen[row.id])
    by_state = GaugeMetricFamily("livesnap_hosts", "Hosts by state.", labels=("state",))
    for state, count in states.items():
        by_state.add_metric((state,), count)
    yield from (by_state, last, frozen)


def _storage(seen: Figures) -> Iterator[Metric]:
    last = GaugeMetricFamily("livesnap_spm_last_seen_timestamp_seconds", "Last report of an SPM.", labels=("pool",))
    epoch = GaugeMetricFamily("livesnap_spm_epoch", "How often the lease was taken.", labels=("pool",))
    for row in seen.standing.pools:
        last.add_metric((row.id,), row.seen_at.timestamp())
        epoch.add_metric((row.id,), row.epoch)
    labels = ("pool", "storage_domain", "id")  # a name can come back with another id
    free = GaugeMetricFamily("livesnap_storage_free_bytes", "Room on a storage domain.", labels=labels)
    total = GaugeMetricFamily("livesnap_storage_total_bytes", "Size of a storage domain.", labels=labels)
    problem = GaugeMetricFamily("livesnap_storage_problem", "Whether its SPM has a problem with it.", labels=labels)
    for row in seen.standing.storage_domains:
        free.add_metric((row.pool_id, row.name, row.id), row.free_bytes)
        total.add_metric((row.pool_id, row.name, row.id), row.total_bytes)
        problem.add_metric((row.pool_id, row.name, row.id), bool(row.problem))
    yield from (last, epoch, free, total, problem)


def _chains(depths: Mapping[int, int]) -> Metric:
    bounds = [
        (str(float(bound)), float(sum(n for depth, n in depths.items() if depth <= bound))) for bound in DEPTH_BOUNDS
    ]
    family = GaugeHistogramMetricFamily("livesnap_chain_depth", "Volumes in the disks' chains on record, by disk.")
    all_disks = float(sum(depths.values()))
    family.add_metric((), [*bounds, ("+Inf", all_disks)], float(sum(depth * n for depth, n in depths.items())))
    return family


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))
