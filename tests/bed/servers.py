"""Private servers for tests: Redis, RabbitMQ, PostgreSQL, each with its own folder and port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from pathlib import Path

from tests.bed.guest_image import file_lock
from tests.bed.need import postgres_bin, tool
from tests.bed.paths import Owner, cache_dir, free_port, new_dir
from tests.bed.process import CLEAN_ENV, Daemon, as_user, kill_and_wait, outcome, run
from tests.wait import eventually

LOOPBACK = "127.0.0.1"


def owner_of(user: str) -> Owner:
    """Return the (uid, gid) under which a server of this user runs: the user's if we are root, else our own."""
    if os.geteuid() != 0:
        return os.getuid(), os.getgid()
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def listens(port: int) -> bool:
    """Say whether something accepts connections on a local port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


class RedisServer(Daemon):
    """Redis with an append-only file that is synced at every write: what it has answered survives `kill9`."""

    def __init__(self, dir: Path, *, acl_file: Path | None = None, login: str = "") -> None:
        """Describe a server; with an `acl_file` only its accounts count, and `login` (`user:password@`) is our own."""
        self.dir = new_dir(dir, (os.getuid(), os.getgid()))
        self.port = free_port()
        self.acl_file = acl_file
        self.login = login
        self.socket = self.dir / "redis.sock"
        super().__init__("redis-server", self.dir / "redis.log")

    @property
    def url(self) -> str:
        """The URL over TCP."""
        return f"redis://{self.login}{LOOPBACK}:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """The URL over the Unix socket, as redis-py spells it."""
        return f"unix://{self.socket}?db=0"

    def start(self) -> None:
        """Start and wait until PING is answered, that is: until the append-only file is loaded."""
        options = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "unixsocket": str(self.socket),
            "dir": str(self.dir),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "daemonize": "no",
            **({"aclfile": str(self.acl_file)} if self.acl_file else {}),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._spawn([tool("redis-server"), *words], env=CLEAN_ENV, cwd=self.dir)
        eventually(self._answers, timeout_s=20, what=f"{self.what} on port {self.port}")

    def _answers(self) -> bool:
        self.require_alive()
        # By our own socket: on the port, another server could answer for one that found it taken.
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            if connection.connect_ex(str(self.socket)) != 0:
                return False
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


class PostgresServer(Daemon):
    """PostgreSQL with one database `livesnap`, no password, on a local port and a socket in its folder."""

    def __init__(self, dir: Path) -> None:
        self.owner = owner_of("postgres")
        self.dir = new_dir(dir, self.owner)
        self.port = free_port()
        super().__init__("postgres", self.dir / "postgres.log")

    @property
    def url(self) -> str:
        """The URL for SQLAlchemy with psycopg."""
        return f"postgresql+psycopg://postgres@{LOOPBACK}:{self.port}/livesnap"

    @property
    def dsn(self) -> str:
        """The plain URL, for libpq."""
        return self.url.replace("+psycopg", "")

    def start(self) -> None:
        """Start (initialised from a cached empty cluster) and wait until the database accepts connections."""
        data = self.dir / "data"
        if not data.exists():
            run(["cp", "-a", "--reflink=auto", self._empty_cluster(), data])
        options = {
            "port": str(self.port),
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": str(self.dir),
            "fsync": "off",  # only the process is ever killed here, never the machine
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._spawn([*as_user("postgres"), _postgres("postgres"), "-D", data, *words], env=CLEAN_ENV, cwd=self.dir)
        eventually(self._answers, timeout_s=30, what=f"{self.what} on port {self.port}")

    def sql(self, statement: str, *, database: str = "livesnap") -> str:
        """Run one statement and return psql's bare answer. Raises ToolFailed with the server's complaint."""
        where = ["-h", str(self.dir), "-p", str(self.port), "-U", "postgres", "-d", database]
        return run([_postgres("psql"), *where, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement]).strip()

    def create_database(self, name: str) -> str:
        """Make a further empty database and return its SQLAlchemy URL (cheaper than a server per test)."""
        self.sql(f'CREATE DATABASE "{name}"')
        return self.url.rpartition("/")[0] + f"/{name}"

    def kill9(self) -> None:
        """Kill the postmaster; its children notice and end, and only then may a new one start."""
        children = [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        super().kill9()
        for pid in children:
            kill_and_wait(pid)

    def _answers(self) -> bool:
        self.require_alive()
        where = ["-h", str(self.dir), "-p", str(self.port), "-U", "postgres", "-d", "livesnap"]
        return outcome([_postgres("pg_isready"), "-q", *where], ok=range(4))[0] == 0

    def _empty_cluster(self) -> Path:
        """Return a cluster with the empty database, made once (initdb takes about a second)."""
        version = run([_postgres("postgres"), "--version"]).split()[2]
        cluster = cache_dir() / f"postgres-{version}-{self.owner[0]}"
        with file_lock(cache_dir() / "postgres.lock"):
            if not cluster.exists():
                half = cluster.with_name(cluster.name + ".half")
                shutil.rmtree(half, ignore_errors=True)
                new_dir(half, self.owner, 0o700)
                user = as_user("postgres")
                run([*user, _postgres("initdb"), "-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D", half])
                single = f"echo 'CREATE DATABASE livesnap' | {_postgres('postgres')} --single -D {half} postgres"
                run([*user, "sh", "-c", single])
                half.rename(cluster)
        return cluster


class RabbitServer(Daemon):
    """RabbitMQ as one node with its own name, data, cookie and port mapper; user `guest`, password `guest`."""

    def __init__(self, dir: Path, *, management: bool = False) -> None:
        """Describe a node; with `management` its plugin listens too (`management_url`)."""
        self.owner = owner_of("rabbitmq")
        self.dir = new_dir(dir, self.owner)
        self.port, self._distribution_port = free_port(), free_port()
        self._management_port = free_port() if management else 0
        self._epmd = _Epmd(self.dir)
        self.node = f"ls{self.port}@localhost"
        self._log_before = 0
        super().__init__("rabbitmq-server", self.dir / "rabbitmq.log")

    @property
    def url(self) -> str:
        """The AMQP URL of the default virtual host."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    @property
    def management_url(self) -> str:
        """Where the management plugin listens."""
        return f"http://{LOOPBACK}:{self._management_port}"

    def start(self) -> None:
        """Start and wait until AMQP is spoken (some seconds)."""
        if not self._epmd.alive:
            self._epmd.start()
        self._log_before = len(self.log.read_text(errors="replace")) if self.log.exists() else 0
        conf = f"listeners.tcp.default = {LOOPBACK}:{self.port}\nlog.console = true\nlog.file = false\n"
        if self._management_port:
            conf += f"management.tcp.ip = {LOOPBACK}\nmanagement.tcp.port = {self._management_port}\n"
            (self.dir / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.dir / "rabbitmq.conf").write_text(conf)
        # not Debian's wrapper on the PATH, which insists on its own change of user
        program = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        command = program if program.exists() else tool("rabbitmq-server")
        self._spawn([*as_user("rabbitmq"), command], env=self._environment(), cwd=self.dir)
        eventually(self._answers, timeout_s=90, what=f"{self.what} on port {self.port}", interval_s=0.1)

    def close(self) -> None:
        """Stop the node and its port mapper."""
        super().close()
        self._epmd.close()

    def _answers(self) -> bool:
        self.require_alive()
        # Its own word, in this life: a port that listens may be another server's.
        return "Server startup complete" in self.log.read_text(errors="replace")[self._log_before :]

    def _environment(self) -> dict[str, str]:
        return {
            **CLEAN_ENV,
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server, instead of a shell that waits for it
            "HOME": str(self.dir),  # where Erlang keeps its cookie
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONFIG_FILE": str(self.dir / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.dir / "no-such-file"),
            "RABBITMQ_MNESIA_BASE": str(self.dir / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.dir / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.dir / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.dir / "rabbitmq.pid"),
        }


class _Epmd(Daemon):
    """Erlang's port mapper in the foreground, so that it is ours to stop (RabbitMQ would leave one behind)."""

    def __init__(self, dir: Path) -> None:
        self.port = free_port()
        self._dir = dir
        super().__init__("epmd", dir / "epmd.log")

    def start(self) -> None:
        """Start and wait until it listens."""
        words = ["-port", str(self.port), "-address", LOOPBACK]
        self._spawn([*as_user("rabbitmq"), tool("epmd"), *words], env=CLEAN_ENV, cwd=self._dir)
        eventually(lambda: listens(self.port), timeout_s=10, what=f"{self.what} on port {self.port}")


def _postgres(program: str) -> Path:
    folder = postgres_bin()
    if folder is None:
        raise FileNotFoundError("the test bed needs PostgreSQL's server programs, which are not installed")
    return folder / program
