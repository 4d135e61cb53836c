"""The Manager's settings, for its workers and its API alike. Each option: default, unit, why, when to change it.

Values come from the environment (`LIVESNAP_…`) over the TOML file that `LIVESNAP_CONFIG` names.
"""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from common.preflight import Limits
from common.settings import SharedSettings
from common.units import GIB


class ManagerSettings(SharedSettings):
    """Database, HTTP, and the times of the engine."""

    state_dir: Path = Field(default=Path("/var/lib/livesnap/manager"))
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

    broker_admin_url: str = Field(default="")
    """The broker's URL with the account `registrar`, for the API only: with it `livesnap host add` and `host remove`
    make and remove accounts and queues themselves. Without it they say what the broker's administrator has to do."""

    broker_management_url: str = Field(default="")
    """Where RabbitMQ's management plugin listens (`http://broker:15672`); accounts are made there. Redis has none."""

    broker_url_for_others: str = Field(default="")
    """The broker's address as hypervisors and SPMs reach it, without an account; empty means that of `broker_url`."""

    freeze_limit_s: float = Field(default=60.0, gt=0, le=600)
    """Seconds that a guest's agent may take to freeze; its hooks (a database's flush) run in that time. Raise it for
    guests with slow hooks; the guest's writers are not held yet while they run."""

    held_limit_s: float = Field(default=10.0, gt=0, le=60)
    """Seconds that a guest may stay frozen; then it is thawed and the snapshot is crash-consistent. A switch takes some
    10 ms; raise it for machines with many disks on slow storage, lower it where writers time out."""

    probe_patience_s: float = Field(default=45.0, gt=0, le=3600)
    """Seconds until a host that was asked what is true, and does not answer, is shown as silent (`awaiting_host`). It
    is asked on all the same. A healthy host may need 30: so long can libvirt hold a call back."""

    resend_first_s: float = Field(default=2.0, gt=0)
    """Seconds until a command without an answer is sent again, doubling each time: a message can be lost for ever
    between broker and consumer. Lower makes recovery quicker and duplicates (harmless) more frequent."""

    resend_max_s: float = Field(default=60.0, gt=0)
    """Upper bound of that time, in seconds."""

    host_silent_after_s: float = Field(default=90.0, gt=0)
    """Seconds without a report until a host is shown as silent: three reports at the agents' default interval."""

    deep_chain: int = Field(default=20, ge=1, le=200)
    """Volumes in a disk's chain from which on a snapshot warns. The switch inside the freeze takes 10 ms with ten
    volumes, 20 with thirty, 50 with fifty, 300 with a hundred (measured)."""

    max_chain: int = Field(default=40, ge=1, le=200)
    """Volumes in a disk's chain from which on snapshots are refused. Lower it where guests must not feel a freeze."""

    low_space_bytes: int = Field(default=GIB, ge=0)
    """Room on a storage domain below which a snapshot warns. Keep it well above the SPM's `min_free_bytes`, below which
    it makes no volume: between the two lies what machines write before somebody has read the warning."""

    check_wait_s: float = Field(default=5.0, ge=0, le=10)
    """Seconds that a request waits for a host or an SPM to look at something: a dry run then shows what the inventory
    says, an operator's word about a host is refused. A healthy one takes some 20 ms, a host whose guest's agent hangs
    nearly all of it."""

    clock_warning_s: float = Field(default=5.0, ge=0)
    """Seconds that a host's clock may differ from the Manager's before a snapshot warns. A host that is ahead takes
    commands for expired; a difference near 30 s makes pivots fail."""

    database_pool_size: int = Field(default=8, ge=2, le=100)
    """Database connections per process: the worker's threads, its relay and timers, with some room."""

    @property
    def url(self) -> str:
        """Return the database's URL, the embedded one if none is set."""
        return self.database_url or f"sqlite:///{self.state_dir}/livesnap.sqlite"

    @property
    def limits(self) -> Limits:
        """Return what a machine is held against before a snapshot."""
        return Limits(
            deep_chain=self.deep_chain,
            max_chain=self.max_chain,
            low_space_bytes=self.low_space_bytes,
            clock_warning_s=self.clock_warning_s,
        )

    @property
    def check_wait(self) -> timedelta:
        """Return how long a dry run waits for a host."""
        return timedelta(seconds=self.check_wait_s)

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
