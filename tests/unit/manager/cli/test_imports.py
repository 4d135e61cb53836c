"""What a command imports is what its users wait for at every call: loading all at once cost 0.7 s.

The time itself is measured by a benchmark, not here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[4]
RUN = """
import sys
from manager.cli import main
sys.argv = ["livesnap", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
    print(*sys.modules, file=sys.stderr)
"""
VM = {
    **{"id": "8c1d9e3e-0000-4000-8000-000000000001", "name": "web1", "host": "h1", "host_state": "up"},
    **{"state": "running", "agent": "connected", "problem": "", "busy_with": None, "lock": None, "preview": None},
}
JOB: dict[str, object] = {
    **{"id": "5c1d9e3e-0000-4000-8000-000000000002", "kind": "snapshot", "vm": VM["id"], "vm_name": "web1"},
    **{"state": "pending", "waiting_for": "", "snapshot_id": None, "snapshot_name": None, "progress": None},
    **{"error": None, "created_at": "2026-01-01T00:00:00Z", "finished_at": None, "attempts": [], "timeline": []},
}
SERVER_SIDE = {
    *("alembic", "asyncio", "celery", "cryptography", "fastapi", "kombu", "prometheus_client", "sqlalchemy"),
    *("structlog", "uvicorn", "manager.standalone", "manager.views"),
    *("common.messaging.messages", "common.messaging.reports"),
}
CLIENTS = {"httpx", "pydantic", "pydantic_core", "pydantic_settings", "requests", "urllib3", "importlib.metadata"}
RICH = {"rich", "rich.console", "rich.table", "rich.live", "manager.cli.terminal", "manager.cli.live_timeline"}
"""For a terminal only; here standard output is a pipe."""
PICTURES = {"manager.cli.pictures", "manager.cli.screen"} | RICH
LIVE = {"manager.cli.timeline", "manager.cli.waiting"} | RICH
OTHERS = {
    f"manager.cli.{name}"
    for name in ("access", "dead_letters", "doctor", "hosts", "jobs", "joining", "limits", "log_lines", "pools")
}


class Api(BaseHTTPRequestHandler):
    """Answers a list of machines, and any request for a snapshot with a job."""

    def do_GET(self) -> None:
        self.answer(200, [VM])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(202, JOB)

    def answer(self, status: int, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "printed", "absent"),
    [
        pytest.param("--help", "dead-letter", SERVER_SIDE | CLIENTS | PICTURES | LIVE, id="help"),
        pytest.param("vm list --json", VM["id"], SERVER_SIDE | CLIENTS | PICTURES | LIVE | OTHERS, id="vm list --json"),
        pytest.param("vm list", VM["id"], SERVER_SIDE | CLIENTS | LIVE | OTHERS, id="vm list"),
        pytest.param(
            "snapshot create web1 --no-wait --json",
            JOB["id"],
            SERVER_SIDE | CLIENTS | PICTURES | {"manager.cli.timeline"} | OTHERS,
            id="snapshot create --no-wait --json",
        ),
        pytest.param(
            "snapshot create web1 --no-wait",
            JOB["id"],
            SERVER_SIDE | CLIENTS | RICH | {"manager.cli.timeline"} | OTHERS,
            id="snapshot create --no-wait",
        ),
    ],
)
def test_a_command_imports_what_it_needs_and_no_more(url: str, words: str, printed: str, absent: set[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LIVESNAP_URL": url}
    command = [sys.executable, "-c", RUN, *words.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert printed in done.stdout
    assert "typer" in loaded
    assert sorted(loaded & absent) == []
