"""A Manager, simulated hosts and a simulated SPM on a real broker and database, and beside them the floor's couriers.

Only hypervisors and storage are simulated: every message is signed and checked, every step is a transaction. All
processes share this machine's processors, so that a saga's cost here is Manager, SPM and agent together.
"""

import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any, Literal

from celery import Celery
from sqlalchemy import func, select

from common.messaging.broker import declare_queues, make_app
from common.messaging.queues import MANAGER
from common.messaging.urls import is_redis
from common.settings import SharedSettings
from manager.store.session import Database
from manager.store.tables import jobs, outbox, vms
from tests.bed.paths import new_dir, short_dir
from tests.bed.process import CLEAN_ENV, Daemon
from tests.bed.servers import PostgresServer, RabbitServer, RedisServer
from tests.bench import courier
from tests.bench.cost import cpu_s
from tests.bench.simulated.fleet import Size, make_keys
from tests.wait import eventually

PROJECT = Path(__file__).resolve().parents[2]
Kind = Literal["sqlite", "postgres"]
BrokerKind = Literal["redis", "rabbitmq"]
Broker = RedisServer | RabbitServer


class Worker(Daemon):
    """One Celery worker, started as `livesnap standalone` and the units do, or, `bare`, by Celery's command line."""

    def __init__(
        self,
        app: str,
        name: str,
        folder: Path,
        threads: int,
        environment: Mapping[str, str],
        *,
        says: str = "",
        bare: bool = False,
    ) -> None:
        """Describe it: it consumes once its log `says` so, or the file `<name>.ready` is in `folder`."""
        self._app, self._threads, self.name, self._folder, self._says = app, threads, name, folder, says
        self._bare = bare
        self._environment = {**CLEAN_ENV, **environment}
        super().__init__(f"worker {name}", folder / f"{name}.log")

    def start(self) -> None:
        """Start, and wait until it consumes."""
        self.launch()
        eventually(self._ready, timeout_s=120, what=f"{self.what}: {self.log}", interval_s=0.05)

    def launch(self) -> None:
        """Start, and do not wait."""
        node, threads = f"{uuid.uuid4().hex[:8]}@bench", str(self._threads)
        lean = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")
        by_celery = ("celery", "-A", self._app, "worker", "-P", "threads", "-c", threads, "-n", node, *lean)
        by_ours = ("common.messaging.start_worker", self._app, node, threads)
        self._spawn([sys.executable, "-m", *(by_celery if self._bare else by_ours)], env=self._environment, cwd=PROJECT)

    def _ready(self) -> bool:
        self.require_alive()
        said = self.log.read_text() if self.log.exists() else ""
        return self._says in said if self._says else (self._folder / f"{self.name}.ready").exists()


@dataclass(slots=True, kw_only=True)
class Fleet:
    """A running Manager with its simulated fleet. `done` counts the jobs that have ended before this round."""

    size: Size
    folder: Path
    database: Database
    client: Celery
    manager: Worker
    peers: tuple[Worker, ...]
    done: int = 0
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """Of the last round, per saga, by process."""

    def resent(self) -> float:
        """Return how often commands were sent again, as a share of all: an answer was not in after 2 s."""
        again = select(func.sum(outbox.c.deliveries - 1) * 1.0 / func.count())
        with self.database.read() as connection:
            return float(connection.execute(again).scalar_one())

    def round(self, sagas: int = 0) -> float:
        """Ask at once for a snapshot of so many machines (0: of all); return the completed sagas per second."""
        names = self.size.names()[: sagas or self.size.vms]
        before = {each: cpu_s([each.pid]) for each in (self.manager, *self.peers)}
        begun = time.time()
        for name in names:
            self._ask(name)
        goal = self.done + len(names)
        eventually(lambda: self._ended() >= goal, timeout_s=300, what=f"{goal} jobs to end", interval_s=0.25)
        self.cpu_ms = {each.name: (cpu_s([each.pid]) - was) * 1000 / len(names) for each, was in before.items()}
        with self.database.read() as connection:
            last = connection.execute(select(func.max(jobs.c.finished_at))).scalar_one()
            states = set(connection.execute(select(jobs.c.state)).scalars())
        assert states == {"completed"}, states
        self.done = goal
        took_s: float = last.replace(tzinfo=UTC).timestamp() - begun
        return len(names) / took_s

    def _ask(self, vm: str) -> None:
        url = str(self.client.conf.broker_url)
        there = {"exchange": "to.manager", "routing_key": MANAGER, "declare": []}
        where: dict[str, Any] = {"queue": MANAGER} if is_redis(url) else there
        self.client.send_task("manager.create_snapshot", kwargs={"vm": vm}, **where)

    def _ended(self) -> int:
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).where(jobs.c.finished_at.is_not(None))).scalar_one())


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The couriers."""

    folder: Path
    client: Celery

    def round(self, count: int) -> float:
        """Send so many on their way at once; return how many came through per second."""
        file = self.folder / "arrivals"
        goal = file.stat().st_size + count
        begun = time.time()
        for number in range(count):
            courier.send(self.client, "manager", "asked", number)
        eventually(lambda: file.stat().st_size >= goal, timeout_s=120, what=f"{goal} arrivals", interval_s=0.05)
        return count / (file.stat().st_mtime - begun)


@contextmanager
def broker(kind: BrokerKind) -> Iterator[tuple[Path, Broker]]:
    """Yield a folder and a running broker."""
    with short_dir() as root:
        server = RedisServer(root / "broker") if kind == "redis" else RabbitServer(root / "broker")
        with server:
            yield root, server


@contextmanager
def floor(root: Path, url: str) -> Iterator[Floor]:
    """Yield the couriers, ready."""
    folder = new_dir(root / "floor", (os.getuid(), os.getgid()))
    declare_queues(url, courier.QUEUES.values())
    with ExitStack() as stack:
        for role, threads in (("manager", 4), ("spm", 2), ("host", 4)):
            environment = {"COURIER_ME": role, "SIM_DIR": str(folder), "LIVESNAP_BROKER_URL": url}
            worker = Worker("tests.bench.courier", f"floor-{role}", folder, threads, environment, bare=True)
            stack.callback(worker.close)
            worker.launch()
        every = [folder / f"floor-{role}.ready" for role in courier.QUEUES]
        eventually(lambda: all(each.exists() for each in every), timeout_s=120, what="the couriers", interval_s=0.05)
        yield Floor(folder=folder, client=_client(url))


@contextmanager
def fleet(root: Path, url: str, kind: Kind, size: Size) -> Iterator[Fleet]:
    """Yield a Manager that knows all machines of its simulated hosts, which report all of them once and then changes.

    No host ever counts as silent.
    """
    with ExitStack() as stack:
        folder = new_dir(root / f"{kind}-{size.hosts}", (os.getuid(), os.getgid()))
        make_keys(folder, size)
        declare_queues(url, size.senders)
        where = f"sqlite:///{folder}/livesnap.sqlite"
        if kind == "postgres":
            where = stack.enter_context(PostgresServer(folder / "pg")).url
        shared = {"LIVESNAP_BROKER_URL": url, "LIVESNAP_KEYS_DIR": str(folder), "LIVESNAP_TASK_EVENTS": "false"}
        own = {"LIVESNAP_KEY_FILE": f"{folder}/manager.key", "LIVESNAP_DATABASE_URL": where}
        own |= {"LIVESNAP_STATE_DIR": str(folder), "LIVESNAP_HOST_SILENT_AFTER_S": "100000"}
        threads = 2 if kind == "sqlite" else 4  # as `livesnap standalone` and the unit start it
        manager = Worker("manager.worker", "manager", folder, threads, {**shared, **own}, says="manager.ready")
        simulated = {**shared, "SIM_DIR": str(folder), "SIM_HOSTS": str(size.hosts), "SIM_VMS": str(size.vms)}
        peers = [
            Worker("tests.bench.simulated.worker", role, folder, 40, {**simulated, "SIM_ROLE": role})
            for role in ("spm", "hosts")
        ]
        for worker in (manager, *peers):
            stack.enter_context(worker)
        database = Database(where)
        stack.callback(database.close)
        await_inventory(database, size)
        client = stack.enter_context(Celery("client", broker=url, set_as_current=False))  # as anybody's who may publish
        yield Fleet(size=size, folder=folder, database=database, client=client, manager=manager, peers=tuple(peers))


def await_inventory(database: Database, size: Size) -> None:
    """Wait until the Manager knows every machine."""

    def known() -> int:
        with database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(vms)).scalar_one())

    eventually(lambda: known() == size.vms, timeout_s=180, what=f"{size.vms} machines in the inventory", interval_s=0.2)


def _client(url: str) -> Celery:
    return make_app(SharedSettings(broker_url=url, task_events=False), name="bench", queue=None)
