"""The Manager's worker and its peers as processes, on a real broker, and a client that looks at the database."""

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from common.clock import SystemClock
from common.messaging.broker import Publisher, declare_queues, make_app
from common.messaging.keys import SigningKey, write_public
from common.messaging.urls import is_redis
from common.settings import SharedSettings
from manager.service import Service, SnapshotRequest
from manager.views import JobView
from tests.bed.process import CLEAN_ENV, Daemon
from tests.integration.manager_kit import Fleet, fleet_on
from tests.wait import eventually

PROJECT = Path(__file__).resolve().parents[2]
QUEUES = ("manager", "spm.default", "host.h1")


class Worker(Daemon):
    """One Celery worker process, as an operator would start it."""

    def __init__(self, module: str, name: str, folder: Path, **environment: str) -> None:
        self._module = module
        self._folder = folder
        self.environment = {**CLEAN_ENV, **environment}
        super().__init__(f"worker {name}", folder / f"{name}.log")

    def start(self, **environment: str) -> None:
        """Start, and wait until it says that it is ready (or, with a crash point, until it has ended)."""
        self.launch(**environment)
        eventually(self._ready, timeout_s=60, what=f"{self.what} to be ready: {self.log}")

    def launch(self, **environment: str) -> None:
        """Start, and do not wait."""
        self._before = self.said().count(" ready.")
        node = f"{uuid.uuid4().hex[:8]}@test"
        words = ["-A", self._module, "worker", "-P", "threads", "-c", "4", "-n", node, "-l", "info"]
        environment = {**self.environment, **environment}
        self._spawn([sys.executable, "-m", "celery", *words], env=environment, cwd=PROJECT)

    def said(self) -> str:
        """Return its log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def _ready(self) -> bool:
        self.require_alive()
        return self.said().count(" ready.") > self._before


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A Manager, an SPM and a host, not started yet; `service` looks at the Manager's database from outside."""

    folder: Path
    manager: Worker
    spm: Worker
    host: Worker
    fleet: Fleet
    publisher: Publisher
    settings: SharedSettings

    @property
    def service(self) -> Service:
        """Return the use cases, as the API would have them."""
        return self.fleet.service

    def another_manager(self) -> Worker:
        """Return a second worker of the same Manager, not started."""
        return Worker("manager.worker", "manager-2", self.folder, **self.manager.environment)

    def asked(self) -> list[str]:
        """Return what the peers were asked, one line each: who, what, step, attempt."""
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def await_inventory(self) -> None:
        """Wait until the host and the SPM have both reported: before that a snapshot is refused."""

        def is_in() -> bool:
            if not self.service.list_vms():
                return False
            lines = self.service.create_snapshot(SnapshotRequest(vm="web1"), dry_run=True)
            return not isinstance(lines, JobView) and all(line.level == "ok" for line in lines)

        eventually(is_in, timeout_s=60, what="the first reports of host and SPM")

    def await_state(self, *states: str, timeout_s: float = 60) -> str:
        """Wait until the newest job is in one of these states and return it."""

        def seen() -> str:
            jobs = self.service.list_jobs()
            return jobs[0].state if jobs and jobs[0].state in states else ""

        return eventually(seen, timeout_s=timeout_s, what=f"a job to be {' or '.join(states)}")

    def enqueue(self, task_id: str, **fields: object) -> None:
        """Ask for a snapshot as any Celery client does: without HTTP, without our settings, without a key."""
        url = self.settings.broker_url
        # A plain client would declare the queue that it names, and RabbitMQ's quorum queue is there already.
        there = {"exchange": "to.manager", "routing_key": "manager", "declare": []}
        where: dict[str, Any] = {"queue": "manager"} if is_redis(url) else there
        with Celery("client", broker=url, set_as_current=False) as app:
            app.send_task("manager.create_snapshot", kwargs=fields, task_id=task_id, **where)


@contextmanager
def scene(
    folder: Path, broker_url: str, database_url: str, *, url_of: Callable[[str], str] | None = None
) -> Iterator[Scene]:
    """Yield the processes, not started; all are ended afterwards. `url_of` gives each account its own way in."""
    url_of = url_of or (lambda _: broker_url)
    for sender in QUEUES:
        write_public(folder, SigningKey.generate(folder / f"{sender}.key", sender))
    declare_queues(broker_url, QUEUES)
    manager, spm, host = _processes(folder, database_url, url_of)
    settings = SharedSettings(broker_url=url_of("client"), task_events=False)
    as_manager = SharedSettings(broker_url=url_of("manager"), task_events=False)
    publisher = Publisher(make_app(as_manager, name="api", queue=None))
    with fleet_on(database_url, folder, SystemClock(), publish=publisher.publish) as fleet:
        try:
            yield Scene(
                folder=folder,
                manager=manager,
                spm=spm,
                host=host,
                fleet=fleet,
                publisher=publisher,
                settings=settings,
            )
        finally:
            for peer in (spm, host):
                if peer.alive:
                    peer.kill9()
            manager.close()
            publisher.close()


def _processes(folder: Path, database_url: str, url_of: Callable[[str], str]) -> tuple[Worker, Worker, Worker]:
    """Return Manager, SPM and host, not started."""

    def environment(me: str) -> dict[str, str]:
        return {"LIVESNAP_KEYS_DIR": str(folder), "LIVESNAP_BROKER_URL": url_of(me)}

    own = {
        "LIVESNAP_KEY_FILE": str(folder / "manager.key"),
        "LIVESNAP_DATABASE_URL": database_url,
        "LIVESNAP_STATE_DIR": str(folder),
    }
    peers = [
        Worker("tests.integration.manager_peer", me, folder, **environment(me), PEER_ME=me, PEER_DIR=str(folder))
        for me in ("spm.default", "host.h1")
    ]
    return Worker("manager.worker", "manager", folder, **environment("manager"), **own), peers[0], peers[1]
