"""Tokens by their hashes, and the log of what was asked with them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, insert, select, update

from common.errors import RequestRefused
from common.ids import new_id
from manager.roles import Caller, Role
from manager.store.tables import audit, tokens
from manager.views import AuditView, TokenView

AUDIT_LIMIT: Final = 1000
"""Rows that one question returns at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token to be stored: never itself, only its digest (SHA-256, in hex)."""

    name: str
    role: Role
    digest: str
    created_by: str
    expires_at: datetime | None


def add(connection: Connection, new: NewToken, now: datetime) -> TokenView:
    """Store a token. Raises RequestRefused(token_exists) if there is, or was, one of that name."""
    if connection.execute(select(tokens.c.id).where(tokens.c.name == new.name)).first() is not None:
        raise RequestRefused("token_exists", f"there is, or was, a token named {new.name!a}")
    row = {
        "id": new_id(),
        "name": new.name,
        "role": new.role.value,
        "digest": new.digest,
        "created_by": new.created_by,
        "created_at": now,
        "expires_at": new.expires_at,
    }
    connection.execute(insert(tokens), row)
    return show(connection, new.name)


def caller(connection: Connection, digest: str, now: datetime) -> Caller | None:
    """Return whose token this is; None if it is unknown, revoked or expired."""
    row = connection.execute(select(tokens).where(tokens.c.digest == digest, tokens.c.revoked_at.is_(None))).first()
    if row is None or (row.expires_at is not None and row.expires_at <= now):
        return None
    return Caller(name=row.name, role=Role(row.role))


def show(connection: Connection, name: str) -> TokenView:
    """Return one token. Raises RequestRefused(token_not_found)."""
    found = [each for each in list_all(connection) if each.name == name]
    if not found:
        raise RequestRefused("token_not_found", f"there is no token named {name!a}")
    return found[0]


def list_all(connection: Connection) -> list[TokenView]:
    """Return every token that was ever made, newest first."""
    rows = connection.execute(select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.name))
    return [
        TokenView(
            id=row.id,
            name=row.name,
            role=row.role,
            created_at=row.created_at,
            created_by=row.created_by,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
        )
        for row in rows
    ]


def revoke(connection: Connection, name: str, now: datetime) -> TokenView:
    """End a token; one that has ended stays as it was. Raises RequestRefused(token_not_found)."""
    connection.execute(
        update(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
    )
    return show(connection, name)


# ---- the audit log -----------------------------------------------------------------------------------------------


def note(connection: Connection, who: Caller, *, method: str, path: str, at: datetime) -> str:
    """Write down that somebody asks for something, before it is done; return the line's id."""
    line = new_id()
    row = {"id": line, "at": at, "token": who.name, "role": who.role.value, "method": method, "path": path}
    connection.execute(insert(audit), row)
    return line


def note_answer(connection: Connection, line: str, *, status: int, location: str) -> None:
    """Write down what was answered, with the job that was made of it."""
    connection.execute(update(audit).where(audit.c.id == line).values(status=status, location=location))


def asked(connection: Connection, *, token: str | None) -> list[AuditView]:
    """Return what was asked, newest first, by one token or all."""
    wanted = select(audit) if token is None else select(audit).where(audit.c.token == token)
    rows = connection.execute(wanted.order_by(audit.c.at.desc(), audit.c.id).limit(AUDIT_LIMIT))
    return [
        AuditView(
            at=row.at,
            token=row.token,
            role=row.role,
            method=row.method,
            path=row.path,
            status=row.status,
            location=row.location,
        )
        for row in rows
    ]
