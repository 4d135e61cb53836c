"""Tokens and the audit log as use cases: who somebody is, what they asked, and who may ask."""

import hashlib
import secrets
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import IntegrityError

from common import logs
from common.clock import Clock
from common.errors import RequestRefused
from manager.preflight import is_printable_name
from manager.roles import Caller, Role
from manager.store import tokens
from manager.store.session import Database
from manager.store.tokens import NewToken
from manager.views import AuditView, NewTokenView, TokenView

LONGEST: Final = timedelta(days=3660)
LONGEST_PATH: Final = 2000
_log = logs.get()


def digest(token: str) -> str:
    """Return what is kept of a token. No salt and no slow hash: it has 256 random bits, which nobody guesses."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Access:
    """The tokens of one database. Safe to share between threads; raises LivesnapError(database_unavailable)."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep tokens and log in `database`."""
        self._database = database
        self._clock = clock

    def caller(self, token: str) -> Caller | None:
        """Return whose token this is, None if it is unknown, revoked or expired."""
        with self._database.read() as connection:
            return tokens.caller(connection, digest(token), self._clock.now())

    def create(self, name: str, role: Role, *, by: str, ttl: timedelta | None) -> NewTokenView:
        """Make a token and return it, this once. Refuses: token_exists, name_invalid, request_malformed."""
        if not is_printable_name(name):
            raise RequestRefused("name_invalid", "a token's name: 1 to 255 printable characters")
        if ttl is not None and not timedelta(0) < ttl <= LONGEST:
            raise RequestRefused("request_malformed", f"ttl: more than nothing and at most {LONGEST.days} days")
        secret, now = secrets.token_urlsafe(32), self._clock.now()
        until = None if ttl is None else now + ttl
        new = NewToken(name=name, role=role, digest=digest(secret), created_by=by, expires_at=until)
        try:
            with self._database.write() as connection:
                made = tokens.add(connection, new, now)
        except IntegrityError:  # somebody else was quicker between our look and our write
            raise RequestRefused("token_exists", f"there is, or was, a token named {name!a}") from None
        _log.info("token.created", name=name, role=role.value, by=by)
        return NewTokenView(token=secret, id=made.id, name=made.name, role=made.role, expires_at=made.expires_at)

    def list_tokens(self) -> list[TokenView]:
        """Return every token that was ever made, newest first; none of them can be read."""
        with self._database.read() as connection:
            return tokens.list_all(connection)

    def revoke(self, name: str, *, by: str) -> TokenView:
        """End a token; it is refused from the next request on. Refuses: token_not_found."""
        with self._database.write() as connection:
            ended = tokens.revoke(connection, name, self._clock.now())
        _log.info("token.revoked", name=name, by=by)
        return ended

    # ---- the audit log ------------------------------------------------------------------------------------------

    def note(self, who: Caller, method: str, path: str) -> str:
        """Write down that somebody asks for something. Before it is done: nothing is done that is not written down."""
        with self._database.write() as connection:
            return tokens.note(connection, who, method=method, path=path[:LONGEST_PATH], at=self._clock.now())

    def note_answer(self, line: str, *, status: int, location: str) -> None:
        """Write down the answer. A crash before it leaves a line without one: it is not known what was done."""
        with self._database.write() as connection:
            tokens.note_answer(connection, line, status=status, location=location)

    def asked(self, token: str | None) -> list[AuditView]:
        """Return the newest lines of the audit log, by one token or all."""
        with self._database.read() as connection:
            return tokens.asked(connection, token=token)
