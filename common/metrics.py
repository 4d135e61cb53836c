"""A worker's own figures for Prometheus, as a file: no port is opened, and nothing is listened to.

`prometheus-node-exporter`, which most machines run anyway, reads every `*.prom` in its textfile folder; so several
worker processes of one machine need no ports to be told apart, and a hypervisor serves nothing over HTTP. The names
begin with `livesnap_`: node_exporter shows all files as one page, where `process_…` is its own.

This is the one module that knows prometheus_client. What the whole fleet does is counted by the API from the database
(manager/api/metrics.py); here stands only what no database knows: how one process got on with its messages.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TextIO

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from common import logs
from common.messaging import refusals

EVERY_S: Final = 10.0
MOST_WORKERS: Final = 64
"""Processes of one kind on one machine."""

_log = logs.get()
_own = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call]
_MESSAGES: Final = Counter(
    "livesnap_messages", "Authentic messages that were taken, by what came of them.", ("op", "outcome"), registry=_own
)
_SECONDS: Final = Histogram(
    "livesnap_message_seconds",
    "What the handlers of messages took.",
    ("op",),
    registry=_own,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def handled(op: str, outcome: str, seconds: float) -> None:
    """Count one message that a handler has had. Safe to call from any thread."""
    _MESSAGES.labels(op, outcome).inc()
    _SECONDS.labels(op).observe(seconds)


class _Refused(Collector):
    """Counts what was not let in (common/messaging/refusals.py)."""

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("livesnap_messages_refused", "Messages that were not let in.", labels=("where",))
        for where, count in refusals.counted().items():
            family.add_metric((where.value,), count)
        yield family


class _Named(Collector):
    """Everything of this process, under its name and number."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._began = time.time()
        self._refused = _Refused()

    def collect(self) -> Iterator[Metric]:
        began = GaugeMetricFamily("livesnap_worker_start_timestamp_seconds", "When it started.", value=self._began)
        written = GaugeMetricFamily("livesnap_worker_last_write_timestamp_seconds", "When this was.", value=time.time())
        for family in (began, written, *self._refused.collect(), *_own.collect()):
            family.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in family.samples]
            yield family


class MetricsFile:
    """Writes `livesnap-<process>-<number>.prom` every few seconds, until it is stopped.

    The number is the lowest that no living process of that name has (a locked file): so numbers, and with them series,
    do not grow with restarts. A process that is stopped takes its file away. After a kill it stays, as old as it then
    is, until the next process takes its number: `livesnap_worker_last_write_timestamp_seconds` tells.
    """

    def __init__(self, folder: Path | None, process: str) -> None:
        """Write into `folder`, which must be there; None: write nothing."""
        self._folder = folder
        self._process = process
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: TextIO | None = None
        self._failing = False

    def start(self) -> None:
        """Begin. A folder that cannot be written is no reason not to work: it is logged, and tried again."""
        if self._folder is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(self._folder,), name="metrics", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, and take the file away."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self, folder: Path) -> None:
        registry: CollectorRegistry | None = None
        path = folder
        while True:
            try:
                if registry is None:
                    number = self._take_number(folder)
                    path = folder / f"livesnap-{self._process}-{number}.prom"
                    registry = CollectorRegistry()
                    registry.register(_Named({"process": self._process, "worker": str(number)}))
                _replace(path, generate_latest(registry))
                self._failing = False
            except OSError as error:
                if not self._failing:
                    _log.warning("metrics.not_written", folder=str(folder), reason=str(error))
                self._failing = True
            if self._stop.wait(EVERY_S):
                break
        if registry is not None:
            path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _take_number(self, folder: Path) -> int:
        """Return the lowest number that is free, and hold it. Raises OSError."""
        for number in range(MOST_WORKERS):
            lock = (folder / f".livesnap-{self._process}-{number}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._lock = lock
            return number
        raise OSError(f"{MOST_WORKERS} processes of {self._process} write there already")


def _replace(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old one or the new one. Everybody may read it."""
    half = path.with_suffix(".half")
    half.write_bytes(content)
    half.chmod(0o644)
    os.replace(half, path)
