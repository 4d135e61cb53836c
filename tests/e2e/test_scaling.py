"""Several workers on one host's queue, added and taken away while jobs flow: nothing is lost, or has effect twice."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bed.paths import short_dir
from tests.bed.process import CLEAN_ENV, kill_and_wait
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.integration.host_kit import AgentProcess
from tests.wait import eventually

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.needs("guest", "redis-server")]

NAMES = ("web1", "web2")


def siblings(livesnap: Livesnap, folder: Path) -> tuple[AgentProcess, AgentProcess]:
    """Return two more workers of the instance's own host, with its settings, not started."""
    environment = {**CLEAN_ENV, "LIVESNAP_CONFIG": str(livesnap.state_dir / "settings/host.toml")}
    return AgentProcess(folder, environment, "second", threads=8), AgentProcess(folder, environment, "third", threads=1)


@pytest.mark.matrix
def test_workers_come_and_go_while_jobs_flow() -> None:
    quick = {"LIVESNAP_RESEND_FIRST_S": "1", "LIVESNAP_REPORT_INTERVAL_S": "5"}
    with place() as here, short_dir() as folder, here.livesnap(environment=quick) as livesnap:
        with ThreadPoolExecutor(len(NAMES)) as pool:
            guests = list(pool.map(here.guest, NAMES))
        for guest in guests:
            livesnap.shows(guest)
        second, third = siblings(livesnap, folder)
        try:
            jobs = flow(livesnap, guests, second, third)
        finally:
            for agent in (second, third):
                agent.close()
        # Whichever worker began it: the job has ended by itself, and each completed one has made one layer, no more.
        assert {job["state"] for job in jobs} <= {"completed", "rolled_back"}, jobs
        done = [job for job in jobs if job["state"] == "completed"]
        assert len(done) >= len(jobs) - 2 * len(guests), "only what two killed workers had in hand may be undone"
        assert len(here.volumes()) == len(done)
        for guest in guests:
            assert_layers(here, livesnap, guest, [job for job in done if job["vm"] == guest.uuid])
        assert "host.pivot" in second.said()
        assert "host.pivot" in third.said()


def flow(livesnap: Livesnap, guests: Sequence[BedVm], second: AgentProcess, third: AgentProcess) -> list[Any]:
    """Take snapshots of all guests at once, again and again; while they are under way, workers come and go."""

    def kill_the_first() -> None:
        kill_and_wait(livesnap.pid_of("host@h1"))  # its supervisor starts it again

    meanwhile: tuple[Callable[[], object], ...] = (
        *(second.start, third.start, kill_the_first, second.kill9, second.start),
        third.stop,  # which ends what it has first
    )
    jobs: list[Any] = []
    for act in meanwhile:
        begun = [livesnap.submit(guest) for guest in guests]
        act()
        jobs += [livesnap.wait_for_end(job["id"]) for job in begun]
    return jobs


def assert_layers(here: Place, livesnap: Livesnap, guest: BedVm, done: Sequence[Any]) -> None:
    """The machine writes to the newest of as many layers as jobs were completed, is not frozen, has lost nothing."""
    snapshots = livesnap.snapshots(guest)
    assert {snapshot["id"] for snapshot in snapshots} == {job["snapshot_id"] for job in done}
    machine = livesnap.shows(guest)
    (disk,) = machine["disks"]
    assert len(disk["chain"]) == len(done) + 1, disk
    assert str(here.storage / disk["chain"][-1]["path"]) == guest.sources()["vda"]
    eventually(lambda: guest.freeze_status() == "thawed", timeout_s=10, what=f"{guest.name} to be thawed")
    writer_went_on(guest)
