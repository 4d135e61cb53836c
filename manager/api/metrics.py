"""The Manager's figures for Prometheus, counted at each scrape."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from manager.service import Service


class ServiceCollector(Collector):
    """Turns the service's figures into metrics. Any number of API processes show the same: the database's."""

    def __init__(self, service: Service) -> None:
        """Count by `service`."""
        self._service = service

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics. Raises LivesnapError(database_unavailable)."""
        figures = self._service.figures()
        yield _by_state("livesnap_jobs", "Jobs by state.", figures["jobs_by_state"])
        yield _by_state("livesnap_hosts", "Hosts by state.", figures["hosts_by_state"])
        open_steps, unpublished = figures["outbox_open"], figures["outbox_unpublished"]
        yield GaugeMetricFamily("livesnap_outbox_open", "Commands without an answer.", value=open_steps)
        yield GaugeMetricFamily(
            "livesnap_outbox_unpublished", "Commands that the broker did not take.", value=unpublished
        )
        yield GaugeMetricFamily("livesnap_guests_frozen", "Guests that are frozen now.", value=figures["guests_frozen"])


def _by_state(name: str, documentation: str, counts: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=("state",))
    for state, count in counts.items():
        family.add_metric((state,), count)
    return family
