"""The state directory of a standalone instance: what lies where."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

LONGEST_SOCKET_PATH = 107
"""Bytes of `sockaddr_un.sun_path` without its final NUL (unix(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDir:
    """One instance's folder, mode 0700: keys, token, settings, logs, database and broker are in it.

    flower-url, flower-password     where Flower listens, and what the user `livesnap` says there, if it was asked for
    url, token          what the command line needs to find the instance
    host-id             this machine's name, fixed at the first start: queues are named after it
    standalone.lock     held while the instance lives; standalone.json: its process session
    settings/*.toml     one file per process, written anew at each start
    keys/own, keys/public, logs, redis, manager, host
    """

    root: Path

    def make(self) -> None:
        """Make the folders that are missing. Raises OSError."""
        for folder in (
            self.root,
            self.settings,
            self.logs,
            self.own_keys,
            self.public_keys,
            self.redis,
            self.manager,
            self.host,
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)

    @property
    def settings(self) -> Path:
        """One TOML file per process."""
        return self.root / "settings"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"

    @property
    def own_keys(self) -> Path:
        """The processes' private keys."""
        return self.root / "keys" / "own"

    @property
    def public_keys(self) -> Path:
        """The public halves, which all processes trust."""
        return self.root / "keys" / "public"

    @property
    def redis(self) -> Path:
        """Redis' own folder."""
        return self.root / "redis"

    @property
    def redis_socket(self) -> Path:
        """Where its own Redis listens."""
        return self.root / "redis.sock"

    @property
    def manager(self) -> Path:
        """The embedded database."""
        return self.root / "manager"

    @property
    def host(self) -> Path:
        """The host agent's journal and locks, and the guard's socket."""
        return self.root / "host"

    @property
    def lock(self) -> Path:
        """Held while an instance runs."""
        return self.root / "standalone.lock"

    @property
    def record(self) -> Path:
        """The process session of the instance that runs, or of one that was killed."""
        return self.root / "standalone.json"

    @property
    def url(self) -> Path:
        """The API's address."""
        return self.root / "url"

    @property
    def token(self) -> Path:
        """The API's token."""
        return self.root / "token"

    @property
    def flower_url(self) -> Path:
        """Flower's address."""
        return self.root / "flower-url"

    @property
    def flower_password(self) -> Path:
        """Flower's password, of the user `livesnap`."""
        return self.root / "flower-password"

    @property
    def host_id(self) -> Path:
        """This machine's name."""
        return self.root / "host-id"


def write(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only; a crash leaves the old one or the new one."""
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)


def kept(path: Path, first: str) -> str:
    """Return what a small file holds; write `first` into it if it is not there yet."""
    if not path.exists():
        write(path, first + "\n")
    return path.read_text(encoding="utf-8").strip()
