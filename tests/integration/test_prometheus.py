"""The real Prometheus and node_exporter on a real API and a worker's file: every rule and panel finds its figures."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import text

from common import metrics
from common.messaging.messages import Outcome
from common.metrics import MetricsFile
from manager.heartbeat import Heartbeat
from tests.bed.need import tool
from tests.bed.paths import free_port
from tests.bed.process import CLEAN_ENV, Daemon, run
from tests.bed.servers import listens
from tests.integration.front_kit import Front, front
from tests.integration.manager_kit import created, mount, observed, vm, vm_id
from tests.wait import eventually

pytestmark = [
    pytest.mark.needs("prometheus", "promtool", "prometheus-node-exporter"),
    pytest.mark.slow,
    pytest.mark.xdist_group("prometheus"),
]
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "livesnap-alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "livesnap.json").read_text())
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


class Server(Daemon):
    """One of Prometheus' programs on a loopback port."""

    def __init__(self, name: str, folder: Path, *words: str) -> None:
        self.port = free_port()
        self._name, self._folder, self._words = name, folder, words
        super().__init__(name, folder / f"{name}.log")

    def start(self) -> None:
        """Start, and wait until it listens."""
        listen = f"--web.listen-address=127.0.0.1:{self.port}"
        self._spawn([tool(self._name), listen, *self._words], env=CLEAN_ENV, cwd=self._folder)
        eventually(self._listens, timeout_s=20, what=f"{self._name}: {self.log}")

    def _listens(self) -> bool:
        self.require_alive()
        return listens(self.port)


@dataclass(frozen=True, slots=True)
class Watched:
    """A fleet that Prometheus watches."""

    api: Front
    port: int

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a page of Prometheus'."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, path: str, **query: str) -> Any:
        """Ask Prometheus' own API."""
        answer = json.loads(self.get(f"{path}?{urlencode(query)}")[1])
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def result(self, expression: str) -> list[Any]:
        """Return what an expression finds now."""
        found: list[Any] = self.ask("/api/v1/query", query=expression)["result"]
        return found

    def alerts(self) -> dict[str, str]:
        """Return the expressions of the alert rules, as Prometheus has read them."""
        groups = self.ask("/api/v1/rules")["groups"]
        return {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A healthy fleet that has taken a snapshot, scraped every second."""
    folder = tmp_path_factory.mktemp("prometheus")
    figures = MetricsFile(folder, "host.h1")
    with ExitStack() as stack:
        api = stack.enter_context(front(folder))
        work(api)
        stack.callback(figures.stop)
        figures.start()
        collector = ("--collector.disable-defaults", "--collector.textfile")
        exporter = Server("prometheus-node-exporter", folder, *collector, f"--collector.textfile.directory={folder}")
        stack.enter_context(exporter)
        (folder / "prometheus.yml").write_text(configuration(api.port, exporter.port))
        storage = f"--storage.tsdb.path={folder}/data"
        server = stack.enter_context(Server("prometheus", folder, f"--config.file={folder}/prometheus.yml", storage))
        seen = Watched(api, server.port)
        eventually(lambda: seen.get("/-/ready")[0] == 200, timeout_s=30, what="Prometheus", interval_s=0.2)
        eventually(lambda: len(seen.result("up == 1")) == 2, timeout_s=60, what="both scrapes", interval_s=0.2)
        yield seen


def configuration(*ports: int) -> str:
    targets = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    return f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{RULES}"]
scrape_configs: [{{job_name: livesnap, static_configs: [{{targets: [{targets}]}}]}}]
"""


def work(api: Front) -> None:
    """Give every figure a value: a Manager, hosts, a snapshot that was taken, one that was not, messages handled."""
    fleet = api.fleet
    Heartbeat(fleet.database, fleet.clock).beat()
    fleet.report_spm()
    fleet.report_host(vm("web1"), vm("db1"))
    fleet.complete(fleet.create("web1"))
    fleet.create("db1")
    metrics.handled("host.pivot", "done", 0.1)


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\blivesnap_\w+", expression))


def test_promtool_accepts_rules_and_scrape_settings(tmp_path: Path) -> None:
    assert "rules found" in run([tool("promtool"), "check", "rules", RULES])
    for file in RULES.parent.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    run([tool("promtool"), "check", "config", tmp_path / "scrape.yaml"])


def test_every_panel_shows_something(watched: Watched) -> None:
    assert len(PANELS) > 20
    for title, expression in PANELS:
        eventually(
            lambda expression=expression: watched.result(expression),  # type: ignore[misc]
            timeout_s=30,
            what=f"panel {title}: {expression}",
            interval_s=0.5,
        )


def test_every_name_and_label_in_a_rule_is_one_that_is_scraped(watched: Watched) -> None:
    alerts = watched.alerts()
    assert len(alerts) > 15
    for name, expression in alerts.items():
        assert names_in(expression), name
        for metric in names_in(expression):
            series = eventually(
                lambda metric=metric: watched.result(metric),  # type: ignore[misc]
                timeout_s=20,
                what=metric,
                interval_s=0.5,
            )
            labels = {label for each in series for label in each["metric"]}
            used = {label for part in re.findall(r"by \(([^)]*)\)|without \(([^)]*)\)", expression) for label in part}
            wanted = {word.strip() for text in used for word in text.split(",") if word.strip()}
            wanted |= set(re.findall(metric + r"\{(\w+)=", expression))
            assert wanted <= labels | {"le", "code"}, (name, metric, labels)


def test_no_alert_is_raised_by_a_healthy_fleet(watched: Watched) -> None:
    raised = {name: found for name, expression in watched.alerts().items() if (found := watched.result(expression))}
    assert raised == {}


BREACHES: dict[str, Callable[[Front], object]] = {
    "LivesnapBrokerAway": lambda api: setattr(api.fleet, "broker_is_up", False),
    "LivesnapGuestFrozen": lambda api: api.fleet.report_host(vm("web1"), vm("db1"), frozen=(vm_id("web1"),)),
    "LivesnapLibvirtDown": lambda api: api.fleet.report_host(libvirt_up=False, full=False, problem="away"),
    "LivesnapStorageLow": lambda api: api.fleet.report_spm(*low()),
    "LivesnapNeedsOperator": lambda api: give_up(api),
    "LivesnapNoManager": lambda api: forget_workers(api),
}


def low() -> list[Any]:
    return [mount(free_bytes=1, total_bytes=100)]


def give_up(api: Front) -> None:
    fleet = api.fleet
    fleet.answer(created(fleet.last()))
    for _ in range(30):
        if fleet.service.list_jobs(active=True)[0].state == "needs_operator":
            return
        fleet.answer(observed(Outcome.BAD, code="repair_failed"))


def forget_workers(api: Front) -> None:
    with api.fleet.database.write() as connection:
        connection.execute(text("DELETE FROM manager_workers"))


@pytest.mark.parametrize("alert", BREACHES)
def test_an_alert_is_raised_by_what_it_is_for(watched: Watched, alert: str) -> None:
    expression = watched.alerts()[alert]
    BREACHES[alert](watched.api)
    eventually(lambda: watched.result(expression), timeout_s=20, what=alert, interval_s=0.3)
    raised = eventually(
        lambda: [each for each in watched.ask("/api/v1/alerts")["alerts"] if each["labels"]["alertname"] == alert],
        timeout_s=20,
        what=f"{alert} among the alerts",
        interval_s=0.3,
    )
    assert raised[0]["annotations"]["summary"]
    assert raised[0]["annotations"]["do"]
    watched.api.fleet.broker_is_up = True


def test_an_api_that_is_gone_is_noticed(watched: Watched) -> None:
    watched.api.stop()
    try:
        expression = watched.alerts()["LivesnapUnseen"]
        eventually(lambda: watched.result(expression), timeout_s=30, what="LivesnapUnseen", interval_s=0.5)
    finally:
        watched.api.start()
