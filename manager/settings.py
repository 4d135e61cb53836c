"""The Manager's settings, for its workers and its API alike. Each option: default, unit, why, when to change it.

Values come from the environment (`LIVESNAP_…`) over the TOML file that `LIVESNAP_CONFIG` names.
"""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from common.settings import SharedSettings


class ManagerSettings(SharedSettings):
    """Database, HTTP, and the times of the engine."""

    state_dir: Path = Field(default=Path("/var/lib/livesnap"))
    """Folder of the embedded database. Put it on a local disk: SQLite's write-ahead log does not work on NFS."""

    database_url: str = Field(default="")
    """SQLAlchemy URL; empty means SQLite in `state_dir`. PostgreSQL (`postgresql+psycopg://…`) for a fleet, or for
    Managers on more than one machine. It may hold a password: keep the settings file at mode 0600."""

    http_host: str = Field(default="127.0.0.1")
    """Address that the API listens on. Loopback, because the token travels in clear text: put TLS in front first."""

    http_port: int = Field(default=8470, ge=0, le=65535)
    """TCP port of the API; 0 takes any free one."""

    token_file: Path = Field(default=Path("/etc/livesnap/token"))
    """File (mode 0600) with the bearer tokens that the API accepts, one a line. Change a token by editing it."""

    freeze_limit_s: float = Field(default=60.0, gt=0, le=600)
    """Seconds that a guest's agent may take to freeze; its hooks (a database's flush) run in that time. Raise it for
    guests with slow hooks; the guest's writers are not held yet while they run."""

    held_limit_s: float = Field(default=10.0, gt=0, le=60)
    """Seconds that a guest may stay frozen; then it is thawed and the snapshot is crash-consistent. A switch takes some
    10 ms; raise it for machines with many disks on slow storage, lower it where writers time out."""

    resend_first_s: float = Field(default=2.0, gt=0)
    """Seconds until a command without an answer is sent again, doubling each time: a message can be lost for ever
    between broker and consumer. Lower makes recovery quicker and duplicates (harmless) more frequent."""

    resend_max_s: float = Field(default=60.0, gt=0)
    """Upper bound of that time, in seconds."""

    host_silent_after_s: float = Field(default=90.0, gt=0)
    """Seconds without a report until a host is shown as silent: three reports at the agents' default interval."""

    database_pool_size: int = Field(default=8, ge=2, le=100)
    """Database connections per process: the worker's threads, its relay and timers, with some room."""

    @property
    def url(self) -> str:
        """Return the database's URL, the embedded one if none is set."""
        return self.database_url or f"sqlite:///{self.state_dir}/livesnap.sqlite"

    @property
    def resend_first(self) -> timedelta:
        """Return the time until a first re-send."""
        return timedelta(seconds=self.resend_first_s)

    @property
    def resend_max(self) -> timedelta:
        """Return the longest time between two re-sends."""
        return timedelta(seconds=self.resend_max_s)

    @property
    def host_silent_after(self) -> timedelta:
        """Return the time without a report after which a host is silent."""
        return timedelta(seconds=self.host_silent_after_s)
