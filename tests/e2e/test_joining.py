"""A second hypervisor joins a running livesnap by its commands alone, works, is drained, and leaves."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.preloaded import wrong_clock
from tests.bed.process import CLEAN_ENV
from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.integration.access_kit import guarded
from tests.integration.host_kit import AgentProcess, GuardProcess
from tests.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.own_backends,
    pytest.mark.needs("guest", "redis-server"),
]


def state_of(livesnap: Livesnap, host: str) -> tuple[str, str] | None:
    found = {each["id"]: (each["state"], each["duty"]) for each in livesnap.ask("/v1/hosts") or ()}
    return found.get(host)


def join(livesnap: Livesnap, host: IsolatedHost, folder: Path) -> dict[str, str]:
    """Do what an operator does; return the environment of the processes there: the file, and nothing else."""
    (folder / "state").mkdir(mode=0o700)
    file = folder / "host.toml"
    options = ("--libvirt-uri", host.uri, "--host-state-dir", str(folder / "state"), "--output", str(file))
    said = livesnap.run("host", "add", "h2", *options)
    assert said.status == 0, said.err
    assert state_of(livesnap, "h2") == ("expected", "in_service")
    # GuardProcess looks for its socket by this variable; the processes have the same from the file.
    return {**CLEAN_ENV, "LIVESNAP_CONFIG": str(file), "LIVESNAP_STATE_DIR": str(folder / "state")}


def check_clocks(livesnap: Livesnap, agent: AgentProcess) -> None:
    """A host whose clock is wrong is warned of, either way, and its snapshots go on; one that is right is not."""
    for seconds, word in ((20, "ahead of"), (-20, "behind")):
        agent.stop()
        agent.start(**wrong_clock(seconds))
        (line,) = on_clock(livesnap)
        assert (line["level"], line["code"]) == ("warning", "clock_skew")
        told = re.search(r"([0-9.]+) s (ahead of|behind) the Manager's", line["message"])
        assert told is not None, line
        assert (round(float(told[1]), -1), told[2], "NTP" in line["hint"]) == (20, word, True)
        job = livesnap.json("snapshot", "create", "web2")
        assert (job["state"], "clock_skew" in str(job["timeline"])) == ("completed", True), job
    agent.stop()
    agent.start()
    assert [line["level"] for line in on_clock(livesnap)] == ["ok"]


def on_clock(livesnap: Livesnap) -> list[dict[str, str]]:
    """Return what a dry run says of the clock of h2."""
    lines: list[dict[str, str]] = livesnap.json("snapshot", "create", "web2", "--dry-run")
    return [line for line in lines if line["subject"] == "h2" and "clock" in line["message"]]


def test_a_second_host_joins_works_and_leaves() -> None:
    with (
        short_dir() as servers,
        guarded("redis", servers) as broker,
        place() as here,
        short_dir() as folder,
        here.livesnap("--broker", broker.broker.url) as livesnap,
        IsolatedHost("h2", here.root) as host,
    ):
        environment = join(livesnap, host, folder)
        with GuardProcess(folder, environment), AgentProcess(folder, environment, "h2") as agent:
            eventually(lambda: state_of(livesnap, "h2") == ("up", "in_service"), timeout_s=30, what="h2's report")
            guest = Place(host=host, root=here.root, storage=here.storage).guest("web2")
            livesnap.shows(guest)
            check_clocks(livesnap, agent)
            job = livesnap.json("snapshot", "create", "web2", "--name", "one")
            assert job["state"] == "completed"
            assert "host.h2" in {each["to"] for each in job["attempts"]}
            assert livesnap.json("snapshot", "show", "web2/one")["consistency"] == "filesystem"
            writer_went_on(guest)

            assert livesnap.json("host", "drain", "h2")["duty"] == "drained"
            refused = livesnap.run("snapshot", "create", "web2", "--json")
            assert refused.error(status=2)["code"] == "host_drained"
            assert livesnap.json("host", "resume", "h2")["duty"] == "in_service"
            assert livesnap.json("snapshot", "create", "web2")["state"] == "completed"

            gone = livesnap.json("host", "remove", "h2")
            assert (gone["vms"], gone["to_do"]) == (["web2"], [])
            assert state_of(livesnap, "h2") is None
            eventually(lambda: "invalid username-password" in agent.said(), timeout_s=30, what="h2 to be shut out")
            assert state_of(livesnap, "h2") is None, "what it still says is not listened to"
            writer_went_on(guest)
        secrets = tomllib.loads((folder / "host.toml").read_text())
        password = secrets["broker_url"].partition("@")[0].rpartition(":")[2]
        logs = [path.read_text() for path in (livesnap.state_dir / "logs").glob("*.log")] + [agent.said()]
        assert not [text for text in logs if password in text or secrets["private_key"] in text]
