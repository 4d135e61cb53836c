"""Who may ask for what: bearer tokens by their hashes, the least role of each request, and the log of who asked.

Tokens stand in a file, for the first admin and for a standalone instance, or in the database, with names and roles.
"""

import hashlib
import hmac
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import logs
from common.errors import LivesnapError, RequestRefused
from manager.access import Access
from manager.api.problems import problem_of
from manager.roles import FILE, LOOKING, Caller, Role, least_role

PROTECTED = "/v1"
_HASHED = "sha256:"

_log = logs.get()


class Tokens:
    """The tokens of one file. Safe to share between threads; a changed file counts from the next request on.

    One token a line, as it is or as `sha256:` and its hash in hex, so that a server need not know what it accepts.
    Empty lines and those that begin with `#` are skipped.
    """

    def __init__(self, path: Path) -> None:
        """Accept the tokens in `path`. Raises LivesnapError(settings_invalid) if it cannot be read or has none."""
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        self._refresh()
        if not self._digests:
            raise LivesnapError("settings_invalid", f"the token file {path} holds no token")

    def knows(self, token: str) -> bool:
        """Tell whether the file has this token. Raises LivesnapError(settings_invalid) if it cannot be read."""
        given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        self._refresh()
        # Every token is compared, whole: how long it takes says nothing about which one came close.
        return any([hmac.compare_digest(given, digest) for digest in self._digests])

    def _refresh(self) -> None:
        try:
            now = self._path.stat()
            seen = (now.st_mtime_ns, now.st_size, now.st_ino)
            if seen != self._seen:
                self._digests = _digests(self._path.read_text(encoding="utf-8"))
                self._seen = seen
        except (OSError, ValueError) as error:
            raise LivesnapError("settings_invalid", f"reading the token file {self._path}: {error}") from error


def _digests(text: str) -> tuple[bytes, ...]:
    lines = [line.strip() for line in text.splitlines()]
    return tuple(_digest(line) for line in lines if line and not line.startswith("#"))


def _digest(line: str) -> bytes:
    if line.startswith(_HASHED):
        return bytes.fromhex(line.removeprefix(_HASHED))
    return hashlib.sha256(line.encode()).digest()


class Gate:
    """Refuses requests below `/v1` without a known token of sufficient role, before anything of them is read.

    Whatever is to change something, and whatever is refused for its role, is written into the audit log first. A token
    that nobody knows leaves a line in this process's own log only: strangers shall not fill the database.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, access: Access) -> None:
        """Stand before `app`."""
        self._app = app
        self._tokens = tokens
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller, or answer 401, 403 or 503."""
        if scope["type"] != "http" or not scope["path"].startswith(PROTECTED):
            await self._app(scope, receive, send)
            return
        try:
            caller = await run_in_threadpool(self._caller, Headers(scope=scope).get("authorization"))
            allowed = caller.role.covers(least_role(scope["method"], scope["path"]))
            line = await self._noted(caller, scope, allowed)
            if not allowed:
                least = least_role(scope["method"], scope["path"])
                raise RequestRefused("role_insufficient", f"this takes a token of role {least}, not {caller.role}")
        except LivesnapError as error:
            await problem_of(error)(scope, receive, send)
            return
        scope["livesnap.caller"] = caller
        await self._app(scope, receive, send if line is None else self._noting(line, send))

    def _caller(self, authorization: str | None) -> Caller:
        """Return whose token an `Authorization` header carries. Raises RequestRefused(token_wrong)."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            if self._tokens.knows(token.strip()):
                return Caller(name=FILE, role=Role.ADMIN)
            if found := self._access.caller(token.strip()):
                return found
        _log.warning("token.refused", given=bool(token))
        raise RequestRefused("token_wrong", "the request carries no bearer token that this server knows")

    async def _noted(self, caller: Caller, scope: Scope, allowed: bool) -> str | None:
        """Return the audit log's line for a request that gets one."""
        method, path = scope["method"], scope["path"]
        if allowed and method in LOOKING:
            return None
        line = await run_in_threadpool(self._access.note, caller, method[:16], path)
        if not allowed:
            await run_in_threadpool(lambda: self._access.note_answer(line, status=403, location=""))
        return line

    def _noting(self, line: str, send: Send) -> Send:
        """Return a `send` that writes the answer's status into the line, before the answer goes out."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                location = Headers(raw=message["headers"]).get("location", "")
                try:
                    answer = {"status": message["status"], "location": location}
                    await run_in_threadpool(lambda: self._access.note_answer(line, **answer))
                except LivesnapError as error:
                    # It is done: the answer is worth more than its line, which stays without one.
                    _log.warning("audit.answer_not_noted", line=line, reason=error.message)
            await send(message)

        return noting
