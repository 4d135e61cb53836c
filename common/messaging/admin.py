# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""Accounts and queues at a running broker: made when a host joins, removed when it leaves.

Redis does it by its ACL commands, and its `aclfile` makes it last; RabbitMQ by its management plugin's HTTP API. A
password goes over the connection only, never into an argument of a process, and to RabbitMQ only as a salted hash.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from amqp.exceptions import AMQPError
from kombu.connection import Connection
from kombu.exceptions import KombuError

from common.errors import BrokerUnavailable
from common.messaging import access, accounts
from common.messaging.broker import declare_queues, remove_queue
from common.messaging.urls import is_redis, without_password

_LIMIT_S: Final = 5.0


class BrokerAdmin:
    """What the account `registrar` can do. Every method is safe to repeat, and raises BrokerUnavailable."""

    def __init__(self, url: str, management_url: str = "") -> None:
        """Use the broker at `url`; RabbitMQ's accounts are made at `management_url`, with the account of `url`."""
        self._url = url
        self._management_url = management_url.rstrip("/")

    def put_account(self, account: str, password: str) -> str:
        """Make an account, or give it a new password and the rights of today; return what is left to do, '' if nothing.

        A crash leaves an account without rights at most.
        """
        if is_redis(self._url):
            rules = access.redis_rules(account, database=accounts.redis_database(self._url))
            self._redis("ACL", "SETUSER", account, "reset", "on", access.redis_hash(password), *rules)
            return self._saved()
        vhost = quote(accounts.virtual_host(self._url), safe="")
        user = quote(account, safe="")
        self._manage("PUT", f"/api/users/{user}", accounts.rabbit_user(account, password))
        self._manage("PUT", f"/api/permissions/{vhost}/{user}", accounts.rabbit_permissions(account))
        return ""

    def drop_account(self, account: str) -> str:
        """Remove an account and end its connections; return what is left to do, '' if nothing."""
        if is_redis(self._url):
            self._redis("ACL", "DELUSER", account)  # ends its connections too
            return self._saved()
        self._manage("DELETE", f"/api/users/{quote(account, safe='')}")
        for each in self._manage("GET", "/api/connections") or ():
            if each.get("user") == account:
                self._manage("DELETE", f"/api/connections/{quote(str(each['name']), safe='')}")
        return ""

    def declare(self, consumer: str) -> None:
        """Make the queue of a consumer."""
        declare_queues(self._url, [consumer])

    def remove_queue(self, consumer: str) -> None:
        """Remove a consumer's queue with everything in it, delivered or not: the consumer never comes back."""
        remove_queue(self._url, consumer)

    def _saved(self) -> str:
        try:
            self._redis("ACL", "SAVE")
        except BrokerUnavailable as error:
            return f"Redis forgets its accounts at its next start: give it an aclfile. ({error.message})"
        return ""

    def _redis(self, *words: str) -> None:
        with self._channel(f"{words[0]} {words[1] if words[0] == 'ACL' else ''}".strip()) as channel:
            channel.client.execute_command(*words)

    @contextmanager
    def _channel(self, what: str) -> Iterator[Any]:
        """Yield a channel of an own connection, for a short act."""
        limits = {"socket_timeout": _LIMIT_S, "socket_connect_timeout": _LIMIT_S} if is_redis(self._url) else {}
        connection = Connection(self._url, connect_timeout=_LIMIT_S, transport_options=limits)
        errors = (KombuError, AMQPError, OSError, *connection.connection_errors, *connection.channel_errors)
        try:
            with connection:
                yield connection.channel()
        except errors as error:
            where = without_password(self._url)
            raise BrokerUnavailable("broker_unavailable", f"{what} at {where}: {error!r}") from error

    def _manage(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask RabbitMQ's management plugin; a thing that is not there to be deleted is as good as deleted."""
        where = urlsplit(self._management_url)
        login = urlsplit(self._url)
        secret = f"{unquote(login.username or '')}:{unquote(login.password or '')}"
        headers = {
            "Authorization": f"Basic {base64.b64encode(secret.encode()).decode('ascii')}",
            "Content-Type": "application/json",
        }
        kind = HTTPSConnection if where.scheme == "https" else HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=_LIMIT_S)
        try:
            connection.request(method, where.path + path, json.dumps(body or {}), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as error:
            message = f"{method} {path} at {without_password(self._management_url)}: {error!r}"
            raise BrokerUnavailable("broker_unavailable", message) from error
        finally:
            connection.close()
        if answer.status >= 300 and not (method == "DELETE" and answer.status == 404):
            said = content.decode(errors="replace")[:200]
            message = f"{method} {path} was answered with status {answer.status}: {said}"
            raise BrokerUnavailable("broker_unavailable", message)
        return json.loads(content) if method == "GET" else None
