"""The API on a real port above a Manager whose fleet is the test, and the command line as its user runs it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn

from common.clock import SystemClock
from common.errors import BrokerUnavailable
from manager.access import Access
from manager.api.app import create_app
from manager.api.auth import Tokens
from manager.store.job_changes import JobChanges
from manager.store.session import Database
from manager.watch import Watch
from tests.bed.paths import free_port
from tests.integration.manager_kit import Fleet
from tests.wait import eventually

TOKEN = "a-token-of-the-test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return standard output, which must be exactly one JSON document."""
        return json.loads(self.out)


class QueuesOf:
    """What the API asks the broker, answered by the fleet of the test, whose queues hold what was sent."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def look(self, queues: Sequence[str]) -> dict[str, int]:
        """Return the lengths of the queues."""
        if not self._fleet.broker_is_up:
            raise BrokerUnavailable("broker_unavailable", "no broker")
        return {queue: sum(to == queue for to, _ in self._fleet.sent) for queue in queues}


class Front:
    """A served API: `fleet` is what stands behind it."""

    def __init__(self, fleet: Fleet, port: int, token_file: Path) -> None:
        self.fleet = fleet
        self.port = port
        self.token_file = token_file
        self.broker = QueuesOf(fleet)
        self.access = Access(fleet.database, fleet.clock)
        self._server: uvicorn.Server | None = None
        self._stopping: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve; returns when it answers."""
        watch = Watch(self.fleet.database, self.broker, self.fleet.clock, settings=self.fleet.settings)
        changes = JobChanges(self.fleet.database)
        app = create_app(self.fleet.service, watch, Tokens(self.token_file), self.access, changes)
        self._stopping = changes.stopping
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error", timeout_graceful_shutdown=1)
        server = self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run)
        self._thread.start()
        eventually(lambda: server.started, timeout_s=10, what="the API")

    def stop(self) -> None:
        """Stop serving; open streams end."""
        if self._server is not None and self._thread is not None and self._stopping is not None:
            self._stopping.set()
            self._server.should_exit = True
            self._thread.join()
            self._server = None

    def ask(
        self, method: str, path: str, body: object = None, *, token: str | None = TOKEN, **headers: str
    ) -> Answered:
        """Send one request. A body of bytes goes as it is, any other as JSON. Header names use `_` for `-`."""
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if raw is not None:
            sent.setdefault("Content-Type", "application/json")
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body=raw, headers=sent)
            response = connection.getresponse()
            return Answered(status=response.status, headers=dict(response.getheaders()), content=response.read())
        finally:
            connection.close()

    def livesnap(self, *words: str, **environment: str) -> Ran:
        """Run the command line to its end."""
        process = self.start_livesnap(*words, **environment)
        out, err = process.communicate(timeout=60)
        return Ran(status=process.returncode, out=out, err=err)

    def start_livesnap(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command line against this server."""
        return livesnap(*words, LIVESNAP_URL=self.url, LIVESNAP_TOKEN=TOKEN, **environment)


def livesnap(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command line; nothing of the caller's own LIVESNAP_ variables reaches it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LIVESNAP_")}
    return subprocess.Popen(
        [sys.executable, "-m", "manager.cli", *words],
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def front(folder: Path, **settings: Any) -> Iterator[Front]:
    """Yield a served API on a fresh SQLite database, with nothing reported yet; `settings` are the Manager's."""
    database = Database(f"sqlite:///{folder}/livesnap.sqlite")
    database.upgrade()
    token_file = folder / "tokens"
    token_file.write_text(f"# who may ask\n{TOKEN}\n")
    served = Front(Fleet(database, folder, SystemClock(), **settings), free_port(), token_file)
    served.start()
    try:
        yield served
    finally:
        served.stop()
        database.close()
