"""When an instance is ready: its host's agent has reported in this run, and so has its SPM."""

import time
from datetime import UTC, datetime

from common import logs
from manager.cli.client import Client
from manager.cli.failures import CommandFailed
from manager.standalone.prepare import POOL

ASK_EVERY_S = 0.1
WARN_AFTER_S = 10.0
WARN_EVERY_S = 30.0

_log = logs.get()


class Readiness:
    """Asks the API until the first inventory of this run is in."""

    def __init__(self, client: Client, host: str) -> None:
        """Wait for a report of `host` that is newer than now."""
        self._client, self._host = client, host
        self._since = datetime.now(UTC)
        self._next_ask = 0.0
        self._next_warning = time.monotonic() + WARN_AFTER_S
        self._reached = False

    @property
    def is_over(self) -> bool:
        """Whether the instance has become ready: there is nothing more to ask."""
        return self._reached

    def reached(self) -> bool:
        """Return True once, when the instance has become ready. Waits for one answer of the API at most."""
        now = time.monotonic()
        if self._reached or now < self._next_ask:
            return False
        self._next_ask = now + ASK_EVERY_S
        missing = self._missing()
        self._reached = not missing
        if missing and now >= self._next_warning:
            self._next_warning = now + WARN_EVERY_S
            _log.warning("standalone.waiting", waiting_for=missing)
        return self._reached

    def _missing(self) -> str:
        """Return what is not there yet, '' if nothing."""
        try:
            pools, hosts = self._client.get("/healthz")["pools_seen_at"], self._client.get("/v1/hosts")
        except CommandFailed as error:
            return f"the API: {error.message}"
        host = next((host for host in hosts if host["id"] == self._host), None)
        if host is None or not self._is_fresh(host["seen_at"]):
            return f"the first report of host {self._host}"
        if host["state"] != "up":
            return f"libvirt on host {self._host}: {host['problem'] or host['state']}"
        if not self._is_fresh(pools.get(POOL)):
            return "the first report of the SPM"
        return ""

    def _is_fresh(self, seen_at: str | None) -> bool:
        """Whether a report came in this run: what a database of an earlier one says proves nothing."""
        return seen_at is not None and datetime.fromisoformat(seen_at) >= self._since
