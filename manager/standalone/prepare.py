"""What must stand in the state directory before anything starts: keys, token, settings. Safe to repeat.

Keys, token and host name are made once and stay. Settings are written anew from the options, at each start.
"""

import json
import os
import secrets
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.ids import HostId, PoolId
from common.messaging.keys import SigningKey, write_public
from common.messaging.queues import MANAGER, host_queue, spm_queue
from common.messaging.urls import is_redis
from common.toml import Settings, toml
from manager.cli.failures import CommandFailed
from manager.standalone.layout import LONGEST_SOCKET_PATH, StateDir, kept, write
from manager.standalone.options import Options, default_host_id

POOL = PoolId("default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was settled for this run. `redis_conf` is None with a broker of the user's own, `flower_port` 0 without
    Flower."""

    host: HostId
    broker_url: str
    redis_conf: Path | None
    http_host: str
    http_port: int
    url: str
    token: str
    flower_port: int = 0

    @property
    def queues(self) -> tuple[str, ...]:
        """Return the queues that this instance consumes."""
        return MANAGER, spm_queue(POOL), host_queue(self.host)


def prepare(options: Options, state: StateDir) -> Prepared:
    """Fill the state directory. Raises CommandFailed, LivesnapError for a key that others can read, OSError."""
    host = HostId(options.host_id or kept(state.host_id, default_host_id()))
    write(state.host_id, host + "\n")
    token = kept(state.token, secrets.token_urlsafe(32))
    _keys(state, (MANAGER, spm_queue(POOL), host_queue(host)))
    broker_url, redis_conf = (options.broker_url, None) if options.broker_url else _own_redis(state)
    port = _listening_port(options.http_host, options.http_port, last=_last_port(state.url))
    url = f"http://{_reachable(options.http_host)}:{port}"
    prepared = Prepared(
        host=host,
        broker_url=broker_url,
        redis_conf=redis_conf,
        http_host=options.http_host,
        http_port=port,
        url=url,
        token=token,
        flower_port=_flower_port(state) if options.flower else 0,
    )
    for name, settings in _settings(options, state, prepared).items():
        write(state.settings / f"{name}.toml", toml(settings))
    write(state.url, url + "\n")
    return prepared


def _settings(options: Options, state: StateDir, prepared: Prepared) -> dict[str, Settings]:
    """Return the settings of each process, by its name."""
    storage = {root.name: str(root.path) for root in options.storage}
    shared = {"broker_url": prepared.broker_url, "keys_dir": str(state.public_keys)}

    def own_key(sender: str) -> str:
        return str(state.own_keys / f"{sender}.key")

    return {
        "manager": {
            **shared,
            "key_file": own_key(MANAGER),
            "state_dir": str(state.manager),
            "database_url": options.database_url,
            "http_host": prepared.http_host,
            "http_port": prepared.http_port,
            "token_file": str(state.token),
            "broker_admin_url": prepared.broker_url if is_redis(prepared.broker_url) else "",
        },
        **({"flower": {"broker_url": prepared.broker_url}} if prepared.flower_port else {}),
        "spm": {**shared, "key_file": own_key(spm_queue(POOL)), "pool": POOL, "storage_domains": storage},
        "host": {
            **shared,
            "key_file": own_key(host_queue(prepared.host)),
            "host_id": prepared.host,
            "libvirt_uri": options.libvirt_uri,
            "state_dir": str(_short(state.host, state)),
            "storage_domains": storage,
        },
    }


def _short(folder: Path, state: StateDir) -> Path:
    """Return a folder in which sockets will lie: relative to the state directory, in which every process works, where
    its whole path is too long for a socket."""
    longest = folder / "guard.sock"
    return folder if len(os.fsencode(longest)) <= LONGEST_SOCKET_PATH else folder.relative_to(state.root)


def _keys(state: StateDir, senders: tuple[str, ...]) -> None:
    """Make the key of every sender that has none yet, and publish its public half."""
    for sender in senders:
        path = state.own_keys / f"{sender}.key"
        key = SigningKey.load(path, sender) if path.exists() else SigningKey.generate(path, sender)
        write_public(state.public_keys, key)


def _own_redis(state: StateDir) -> tuple[str, Path]:
    """Write the configuration of a private Redis; return its URL and that file.

    It listens on a socket in the state directory, which nobody else may enter; where the path is too long for a socket,
    on a loopback port with a password. Its append-only file is synced every second: what a crash of the machine takes
    is sent again by the outbox.
    """
    if shutil.which("redis-server") is None:
        hint = "Install redis-server, or name a broker of yours with --broker."
        raise CommandFailed("settings_invalid", "redis-server is not installed", hint)
    socket_path = str(state.redis_socket)
    if len(os.fsencode(socket_path)) <= LONGEST_SOCKET_PATH:
        place = [("port", "0"), ("unixsocket", socket_path), ("unixsocketperm", "700")]
        url = f"redis+socket://{socket_path}"
    else:
        password, port = secrets.token_hex(24), _free_port("127.0.0.1")
        place = [("bind", "127.0.0.1"), ("port", str(port)), ("requirepass", password)]
        url = f"redis://:{password}@127.0.0.1:{port}/0"
    durable = [("dir", str(state.redis)), ("appendonly", "yes"), ("appendfsync", "everysec"), ("save", "")]
    bounded = [("daemonize", "no"), ("databases", "1"), ("maxmemory-policy", "noeviction")]
    conf = state.settings / "redis.conf"
    write(
        conf, "".join(f"{name} {json.dumps(value, ensure_ascii=False)}\n" for name, value in place + durable + bounded)
    )
    return url, conf


def _flower_port(state: StateDir) -> int:
    """Return the port that Flower is to listen on, and write down where that is, with a password that stays."""
    kept(state.flower_password, secrets.token_urlsafe(24))
    port = _listening_port("127.0.0.1", 0, last=_last_port(state.flower_url))
    write(state.flower_url, f"http://127.0.0.1:{port}\n")
    return port


def _last_port(address: Path) -> int:
    """Return the port of the last run, so that an address somebody noted stays right; 0 if there was none."""
    try:
        port = address.read_text(encoding="utf-8").strip().rpartition(":")[2]
    except FileNotFoundError:
        return 0
    return int(port) if port.isdecimal() else 0


def _listening_port(host: str, asked: int, *, last: int) -> int:
    """Return the port to listen on: the one asked for, else that of the last run, else any free one.

    Raises CommandFailed where that cannot be.
    """
    if not asked and last:
        with suppress(OSError):  # taken meanwhile: then any other will do
            return _free_port(host, last)
    try:
        return _free_port(host, asked)
    except OSError as error:
        raise CommandFailed("settings_invalid", f"--http: cannot listen on {host}:{asked}: {error}") from error


def _free_port(host: str, port: int = 0) -> int:
    """Return `port`, or any if it is 0, once nobody listens on it. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """Return the address by which this machine reaches a server that listens on `host`."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{local}]" if ":" in local else local
