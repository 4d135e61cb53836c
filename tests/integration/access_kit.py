"""A broker on which only the generated accounts count, and somebody with a stolen one who tries things."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amqp
import redis
from redis.exceptions import NoPermissionError

from tests.bed.process import CLEAN_ENV
from tests.bed.servers import RabbitServer, RedisServer
from tests.integration.messaging_kit import ROOT, Broker, rabbit_control

ACCOUNTS = ("manager", "spm.default", "host.h1", "host.h2", "flower", "client", "registrar")


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A broker, and the folder of its accounts' files. `broker.url` is the test's own way in, which may do all."""

    broker: Broker
    accounts: Path

    def url_of(self, account: str) -> str:
        """Return the broker's URL for an account."""
        return (self.accounts / f"{account}.url").read_text().strip()

    def denials(self) -> list[Any]:
        """Return what Redis has refused so far ([] on RabbitMQ, whose clients see it)."""
        if isinstance(self.broker, RabbitServer):
            return []
        with redis.Redis.from_url(self.broker.url) as client:
            return [
                (entry["username"], entry["reason"], entry["object"], entry["context"]) for entry in client.acl_log()
            ]

    def forget_denials(self) -> None:
        """Empty that list."""
        if isinstance(self.broker, RedisServer):
            with redis.Redis.from_url(self.broker.url) as client:
                client.acl_log_reset()


def provision(url: str, folder: Path, *accounts: str) -> str:
    """Run the command that makes accounts, as an administrator does; return what it printed."""
    words = [sys.executable, "-m", "common.provision", "accounts", str(folder), *accounts]
    environment = {**CLEAN_ENV, "LIVESNAP_BROKER_URL": url}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@contextmanager
def guarded(kind: str, folder: Path, *, management: bool = False) -> Iterator[Guarded]:
    """Yield a broker with the accounts of a small fleet, made and loaded as deploy/README.md tells."""
    accounts = folder / "accounts"
    if kind == "redis":
        server = RedisServer(folder / "b", acl_file=accounts / "users.acl", login="test:test@")
        provision(server.url, accounts, *ACCOUNTS)
        with (accounts / "users.acl").open("a") as file:
            file.write("user test on >test ~* &* +@all\n")
        with server:
            yield Guarded(broker=server, accounts=accounts)
        return
    with RabbitServer(folder / "b", management=management) as rabbit:
        provision(rabbit.url, accounts, *ACCOUNTS)
        rabbit_control(rabbit, "import_definitions", text=(accounts / "definitions.json").read_text())
        yield Guarded(broker=rabbit, accounts=accounts)


Attempt = Callable[[], object]


class RedisThief:
    """Somebody with an account of Redis."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)

    def may(self, *words: object) -> bool:
        """Send one command; return False if Redis refuses it for want of a permission."""
        try:
            self.client.execute_command(*words)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            return False
        except redis.ResponseError:
            return True  # it was let in, and failed at something else
        return True


class RabbitThief:
    """Somebody with an account of RabbitMQ; every attempt has a connection of its own, for a refusal closes it."""

    def __init__(self, url: str) -> None:
        account, _, rest = url.removeprefix("amqp://").partition("@")
        user, _, password = account.partition(":")
        self._where = {"host": rest.partition("/")[0], "userid": user, "password": password, "virtual_host": "/"}

    def may(self, act: Callable[[Any], object]) -> bool:
        """Do something with a channel; return False if the broker refuses access, or refuses the sender's name."""
        with amqp.Connection(**self._where, confirm_publish=True) as connection:
            try:
                act(connection.channel())
            except (amqp.AccessRefused, amqp.PreconditionFailed):
                return False
            except amqp.NotFound:
                return True  # it was let in, and found nothing
            return True


def celery_message(task: str, **kwargs: Any) -> tuple[str, dict[str, Any]]:
    """Return body and headers of a task message, as any Celery client would write them."""
    headers = {"lang": "py", "task": task, "id": os.urandom(8).hex(), "argsrepr": "", "kwargsrepr": ""}
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return json.dumps([[], kwargs, embed]), headers
