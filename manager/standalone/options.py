"""What `livesnap standalone` was asked to run; refused here if it cannot be."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.ids import require_name
from manager.cli.failures import CommandFailed

BROKERS = ("redis", "rediss", "redis+socket", "amqp", "amqps")
DATABASES = ("postgresql", "postgresql+psycopg", "sqlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRoot:
    """A storage domain to register: its name and the folder where it is mounted."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One standalone instance.

    `http_port` 0: the port of its last run, or any free one. `broker_url` '': its own Redis. `database_url` '': SQLite.
    `host_id` '': as in its last run, or this machine's host name.
    """

    state_dir: Path
    libvirt_uri: str
    storage: tuple[StorageRoot, ...]
    http_host: str = "127.0.0.1"
    http_port: int = 0
    broker_url: str = ""
    database_url: str = ""
    host_id: str = ""
    flower: bool = False


def parsed(
    *,
    state_dir: Path,
    libvirt_uri: str,
    storage_domains: Sequence[str],
    http: str | None,
    broker_url: str | None,
    database_url: str | None,
    host_id: str | None,
    flower: bool = False,
) -> Options:
    """Return the options. Raises CommandFailed (exit status 2) that names the wrong one; creates nothing."""
    if not storage_domains:
        raise _wrong("--storage-domain is missing", "Give at least one, as NAME=PATH.")
    storage = tuple(_storage_root(text) for text in storage_domains)
    if len({root.name for root in storage}) < len(storage) or len({root.path for root in storage}) < len(storage):
        raise _wrong("--storage-domain: two of the same name or path", "Give each storage domain once.")
    host, port = ("127.0.0.1", 0) if http is None else _address(http)
    if host_id is not None:
        _named("--host-id", host_id)
    _of_kind("--broker", broker_url, BROKERS)
    _of_kind("--database", database_url, DATABASES)
    return Options(
        state_dir=_printable("--state-dir", state_dir.absolute()),
        libvirt_uri=libvirt_uri,
        storage=storage,
        http_host=host,
        http_port=port,
        broker_url=broker_url or "",
        database_url=database_url or "",
        host_id=host_id or "",
        flower=flower,
    )


def default_host_id() -> str:
    """Return a host name that can be part of a queue's name: this machine's, or `localhost` if it has no such name."""
    name = socket.gethostname().split(".")[0].lower().replace("_", "-")
    try:
        require_name(name)
    except ValueError:
        return "localhost"
    return name


def _storage_root(text: str) -> StorageRoot:
    name, equals, given = text.partition("=")
    if not equals or not given:
        raise _wrong(f"--storage-domain {text!r} is not NAME=PATH", "For example images=/var/lib/libvirt/images.")
    _named("--storage-domain", name)
    path = _printable("--storage-domain", Path(given).absolute())
    if not path.is_dir():
        hint = "Make or mount the folder first; livesnap never makes the root of a storage domain."
        raise CommandFailed("storage_unavailable", f"storage domain {name}: no folder at {path}", hint)
    if path.resolve() == Path("/"):
        raise _wrong(
            f"storage domain {name}: / is no storage domain", "Name the folder or mount that holds the images."
        )
    return StorageRoot(name=name, path=path.resolve())


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise _wrong(f"--http {text!r} is not HOST:PORT", "For example 127.0.0.1:8470; port 0 takes any free one.")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _of_kind(option: str, url: str | None, kinds: tuple[str, ...]) -> None:
    """Raise unless a URL is of one of these kinds. The URL stays out of the message: it may hold a password."""
    if url and url.partition("://")[0] not in kinds:
        raise _wrong(f"{option} is not a URL of {', '.join(kinds)}")


def _named(option: str, name: str) -> None:
    try:
        require_name(name)
    except ValueError as error:
        raise _wrong(f"{option}: {error}") from error


def _printable(option: str, path: Path) -> Path:
    """Return a path that settings files can hold."""
    if not str(path).isprintable():
        raise _wrong(f"{option}: a path with characters that cannot be printed: {str(path)!r}")
    return path


def _wrong(message: str, hint: str = "") -> CommandFailed:
    return CommandFailed("settings_invalid", message, hint)
