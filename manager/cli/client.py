"""The HTTP API as the command line uses it: requests, refusals and the event stream.

Nothing here retries by itself: `retried` says what may be repeated, and for how long. The standard library's client is
enough and is loaded in a tenth of the time of the usual ones, which a command line's users feel at every call.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from common.error_codes import CATALOGUE
from manager.cli.failures import CommandFailed, Unreached
from manager.cli.session import Server, segment

Json = dict[str, Any]
T = TypeVar("T")

CONNECT_LIMIT_S = 3.0
ANSWER_LIMIT_S = 15.0
"""Longer than any request takes, and than the pause between two signs of life of an event stream."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One server-sent event of a job: `step` (with its id), `waiting` or `job` (the last)."""

    kind: str
    id: int | None
    data: Json


class Client:
    """The API of one server. Holds no connection: commands ask once or twice."""

    def __init__(self, server: Server) -> None:
        """Prepare to speak to `server`. Raises CommandFailed if its address is none."""
        parts = urlsplit(server.url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise CommandFailed("request_malformed", f"not an address: {server.url!r}: {error}") from error
        if not host:
            raise CommandFailed("request_malformed", f"an address without a host: {server.url!r}", "Correct --url.")
        self._secure, self._host, self._port, self._prefix = parts.scheme == "https", host, port, parts.path
        self._headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
        self._url = server.url

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON answer. Raises Unreached, or CommandFailed with the server's refusal."""
        return self._answer("GET", f"{path}?{urlencode(query)}" if query else path)

    def get_slow(self, path: str, *, limit_s: float) -> Any:
        """Return an answer that takes the server up to `limit_s`. Raises as `get` does."""
        return self._answer("GET", path, limit_s=limit_s)

    def post(self, path: str, body: Json | None = None, *, key: str = "", limit_s: float = ANSWER_LIMIT_S) -> Any:
        """Send `body` with the idempotency key and return the JSON answer. Raises as `get` does."""
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        return self._answer("POST", path, json.dumps(body or {}).encode(), headers, limit_s=limit_s)

    def delete(self, path: str, **query: str) -> Any:
        """Delete what stands at `path` and return the JSON answer. Raises as `get` does."""
        return self._answer("DELETE", f"{path}?{urlencode(query)}" if query else path)

    def events(self, job_id: str, *, after: int, limit_s: float) -> Iterator[Event]:
        """Yield a job's events that follow timeline entry `after`, until the stream ends or is silent for `limit_s`.

        Raises Unreached when the stream breaks, CommandFailed when the server refuses it.
        """
        path, headers = f"/v1/jobs/{segment(job_id)}/events", {"Last-Event-ID": str(after)}
        limit_s = min(ANSWER_LIMIT_S, max(limit_s, 0.05))
        with self._response("GET", path, headers=headers, limit_s=limit_s) as response:
            if response.status != 200:
                raise _failure(path, response.status, response.read())
            yield from parsed_events(raw.decode("utf-8", "replace").rstrip("\r\n") for raw in response)

    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        limit_s: float = ANSWER_LIMIT_S,
    ) -> Any:
        with self._response(method, path, body=body, headers=headers or {}, limit_s=limit_s) as response:
            content = response.read()
        if response.status >= 300:
            raise _failure(path, response.status, content)
        try:
            return json.loads(content)
        except ValueError as error:
            raise Unreached(f"{method} {self._url}{path} was answered with something that is not JSON") from error

    @contextmanager
    def _response(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        body: bytes | None = None,
        limit_s: float = ANSWER_LIMIT_S,
    ) -> Iterator[HTTPResponse]:
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_LIMIT_S)
        try:
            connection.connect()
            connection.sock.settimeout(limit_s)
            connection.request(method, self._prefix + path, body=body, headers={**self._headers, **headers})
            yield connection.getresponse()
        except (OSError, HTTPException) as error:
            raise Unreached(f"no answer from {self._url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()


def parsed_events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a `text/event-stream`; one that was cut off or is not ours is left out."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line == "":
            if "data" in fields:
                number = fields.get("id", "")
                data = json.loads(fields["data"])
                yield Event(kind=fields.get("event", ""), id=int(number) if number.isdecimal() else None, data=data)
            fields = {}
        elif name:
            fields[name] = value.removeprefix(" ")


def retried(call: Callable[[], T], *, limit_s: float, note: Callable[[str], None]) -> T:
    """Return what `call` returns, repeating it while the server is out of reach, for at most `limit_s` seconds.

    Only for calls that are safe to repeat. Raises the last Unreached.
    """
    deadline = time.monotonic() + limit_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Unreached as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            note(f"{error.message}; trying again")
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _failure(path: str, status: int, content: bytes) -> CommandFailed:
    """Return what an answer other than success means: a refusal, or a server that cannot answer now."""
    try:
        problem = json.loads(content)
        code, detail, hint = str(problem["code"]), str(problem["detail"]), str(problem.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        if status >= 500:
            return Unreached(f"{path} was answered with status {status}")
        message = f"{path} was answered with status {status} and no reason"
        return CommandFailed("not_found", message, "Is --url the address of a livesnap API?")
    if code in CATALOGUE and CATALOGUE[code].phase == "process":
        return Unreached(detail, code, hint)
    return CommandFailed(code, detail, hint)
