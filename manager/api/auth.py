"""Who may ask: bearer tokens from a file, compared by their hashes."""

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import LivesnapError, RequestRefused
from manager.api.problems import problem_of

PROTECTED = "/v1"
_HASHED = "sha256:"


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

    def require(self, authorization: str | None) -> None:
        """Return if an `Authorization` header carries a known token; raise RequestRefused(token_wrong) otherwise."""
        scheme, _, token = (authorization or "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        self._refresh()
        # Every token is compared, whole: how long it takes says nothing about which one came close.
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise RequestRefused("token_wrong", "the request carries no bearer token that this server knows")

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


class RequireToken:
    """Refuses requests below `/v1` without a known token, before anything of them is read."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        """Stand before `app`."""
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED):
            try:
                self._tokens.require(Headers(scope=scope).get("authorization"))
            except LivesnapError as error:
                await problem_of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
