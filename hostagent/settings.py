"""The host agent's settings, beside those that every process shares. The freeze guard reads three of them itself."""

import socket
from datetime import timedelta
from pathlib import Path

from pydantic import Field

from common.ids import HostId
from common.settings import SharedSettings
from hostagent import places


class HostSettings(SharedSettings):
    """One hypervisor. Several agent processes may run with the same settings; they share the state folder."""

    host_id: str = Field(
        default_factory=lambda: socket.gethostname().partition(".")[0].lower(),
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
    )
    """This host's name; its queue is `host.<name>`. Default: the short host name. Set it where that is not unique."""

    libvirt_uri: str = places.DEFAULT_URI
    """Which libvirt to work with. Default: the system's daemon on this machine. A URI of another machine will not do:
    locks, paths and processes are looked at here."""

    storage_domains: dict[str, Path] = Field(default_factory=dict)
    """Name and mount point of every storage domain on this host, as the machines' definitions name it."""

    state_dir: Path = places.DEFAULT_STATE_DIR
    """Journal, locks and the guard's socket. It must survive a reboot, and be short: a socket's path ends at 107 bytes.
    The freeze guard must have the same."""

    report_interval_s: int = Field(default=30, ge=1)
    """How often everything is reported (seconds). Changes are reported at once; lower it if many are made behind
    libvirt's back."""

    verify_ms: int = Field(default=300, ge=0)
    """How long a guest's first write is waited for after a quiesced pivot (milliseconds). Raise it for slow storage."""

    switch_limit_ms: int = Field(default=4000, ge=1)
    """How long a guest stays frozen for the one call that moves it to its new volumes (milliseconds). The call takes 15
    to 50, in chains of a hundred volumes 300 to 700; it waits if a migration begins at that very moment. The guest is
    then thawed, and what still comes of the call is crash-consistent (`switch_late`). Raise it for slow storage; the
    Manager's `held_limit_s` bounds the frozen time in any case."""

    @property
    def host(self) -> HostId:
        """Return the host's name as an id."""
        return HostId(self.host_id)

    @property
    def report_interval(self) -> timedelta:
        """Return how often everything is reported."""
        return timedelta(seconds=self.report_interval_s)
