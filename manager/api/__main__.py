"""`python -m manager.api`: one API process. Any number may run on one database.

Settings: the file that LIVESNAP_CONFIG names (manager/settings.py). SIGTERM ends it; open event streams are cut, and
their readers come back to another process.
"""

import sys
from types import FrameType

import uvicorn

from common import logs
from common.errors import LivesnapError
from common.messaging.broker import Publisher, make_app
from common.messaging.queue_lengths import QueueLengths
from manager.access import Access
from manager.api.app import create_app
from manager.api.auth import Tokens
from manager.assembly import assemble
from manager.settings import ManagerSettings
from manager.store.job_changes import JobChanges
from manager.watch import Watch

REQUESTS_END_S = 5
"""Seconds that requests get at the end of the process: one waits for the broker for less."""


class Server(uvicorn.Server):
    """uvicorn, which at the end of the process ends the event streams too."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take SIGTERM or SIGINT."""
        self.config.app.state.changes.stopping.set()  # type: ignore[union-attr]  # it is the FastAPI app of _configured
        super().handle_exit(sig, frame)


def main() -> int:
    """Serve until told to stop; return the exit status: 2 for settings that cannot work."""
    try:
        settings = ManagerSettings()
        logs.configure(log_format=settings.log_format, process="api")
        config = _configured(settings)
    except (LivesnapError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    server = Server(config)
    server.run()
    return 0 if server.started else 1


def _configured(settings: ManagerSettings) -> uvicorn.Config:
    """Put the process together."""
    app = make_app(settings, name="manager.api", queue=None)
    parts = assemble(settings, Publisher(app).publish)
    parts.database.upgrade()
    watch = Watch(parts.database, QueueLengths(app), parts.clock, settings=settings)
    access, changes = Access(parts.database, parts.clock), JobChanges(parts.database)
    return uvicorn.Config(
        create_app(parts.service, watch, Tokens(settings.token_file), access, changes),
        host=settings.http_host,
        port=settings.http_port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=REQUESTS_END_S,
        server_header=False,
    )


if __name__ == "__main__":
    sys.exit(main())
