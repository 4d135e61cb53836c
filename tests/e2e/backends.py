"""What a livesnap under test stands on: its own Redis and SQLite, or RabbitMQ and PostgreSQL (`make test-production`).

With `LIVESNAP_E2E=production` in the environment every instance that names no broker of its own gets the production
path: the same tests, on the other parts.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from tests.bed.paths import short_dir
from tests.bed.servers import PostgresServer, RabbitServer

PRODUCTION = os.environ.get("LIVESNAP_E2E") == "production"


class Backends:
    """The servers of one test process, started when the first instance wants them and shared by all that follow.

    Every instance has a database of its own. The queues are shared, one instance after the other: what the one before
    left in them is signed with keys that the next one does not know, and is refused.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: tuple[RabbitServer, PostgresServer] | None = None

    def options(self) -> tuple[str, ...]:
        """Return the options of `livesnap standalone` for one more instance."""
        if not PRODUCTION:
            return ()
        rabbit, postgres = self.servers()
        return "--broker", rabbit.url, "--database", postgres.create_database(f"ls{uuid4().hex[:12]}")

    def servers(self) -> tuple[RabbitServer, PostgresServer]:
        """Return both servers, running."""
        if self._servers is None:
            root: Path = self._stack.enter_context(short_dir())
            rabbit = self._stack.enter_context(RabbitServer(root / "rabbit"))
            self._servers = rabbit, self._stack.enter_context(PostgresServer(root / "postgres"))
        return self._servers

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()
        self._servers = None


BACKENDS = Backends()
"""One per test process: a session's fixture closes it (conftest.py)."""
