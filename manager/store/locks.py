"""Locks on machines, held by scripts that clone or back up: while one is held no job begins, and while a job runs none
can be taken.

Jobs and locks exclude each other because both are begun under the lock on the vm's row (`facts.hold`). A lock lives in
the database alone: it outlasts every process, and ends by being freed or by its time running out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, or_, select

from common.errors import RequestRefused
from common.ids import VmId, new_id
from manager.store.jobs import busy_with
from manager.store.session import upsert
from manager.store.tables import vm_locks
from manager.views import LockView

_UNEXPIRED: Final = or_(vm_locks.c.expires_at.is_(None), vm_locks.c.expires_at > bindparam("now"))
_ALL: Final = select(vm_locks).where(_UNEXPIRED)
_ONE: Final = _ALL.where(vm_locks.c.vm_id == bindparam("vm"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A lock as it is asked for; no `expires_at`: until it is freed."""

    reason: str
    expires_at: datetime | None
    idempotency_key: str | None


def all_held(connection: Connection, now: datetime) -> Mapping[str, LockView]:
    """Return every lock that is held, by vm."""
    return {row.vm_id: _view(row) for row in connection.execute(_ALL, {"now": now})}


def held(connection: Connection, vm: VmId, now: datetime) -> LockView | None:
    """Return the lock that holds a vm."""
    row = connection.execute(_ONE, {"vm": vm, "now": now}).first()
    return _view(row) if row else None


def take(connection: Connection, vm: Row[Any], wanted: Wanted, now: datetime) -> LockView:
    """Lock a vm, given its row from `facts.hold`; a repeated request (same idempotency key) returns the lock it made.

    Any other request is refused while the lock is held, be its reason the same: two runs of one script look alike.
    Raises RequestRefused(vm_busy, naming job or lock; idempotency_key_reused).
    """
    row = connection.execute(_ONE, {"vm": vm.id, "now": now}).first()
    if row is not None and wanted.idempotency_key is not None and row.idempotency_key == wanted.idempotency_key:
        if row.reason != wanted.reason:
            raise RequestRefused("idempotency_key_reused", f"the key {wanted.idempotency_key} belongs to lock {row.id}")
        return _view(row)
    if row is not None:
        raise RequestRefused("vm_busy", f"{vm.name} is {_view(row)}")
    if job := busy_with(connection, vm.id):
        raise RequestRefused("vm_busy", f"job {job} holds {vm.name}")
    lock = LockView(id=new_id(), reason=wanted.reason, since=now, until=wanted.expires_at)
    made = {
        "vm_id": vm.id,
        "id": lock.id,
        "reason": lock.reason,
        "idempotency_key": wanted.idempotency_key,
        "created_at": lock.since,
        "expires_at": lock.until,
    }
    upsert(connection, vm_locks, [made])
    return lock


def free(connection: Connection, vm: Row[Any], lock: str | None, now: datetime) -> LockView:
    """Free the lock of a vm, given its row from `facts.hold`, if it is `lock` (None: whichever it is); return it.

    Raises RequestRefused: vm_not_locked, or vm_busy when another lock holds the vm.
    """
    found = held(connection, vm.id, now)
    if found is None:
        raise RequestRefused(
            "vm_not_locked", f"{vm.name} is not locked: it never was, or its lock was freed or expired"
        )
    if lock is not None and lock != found.id:
        raise RequestRefused("vm_busy", f"nothing was freed: {vm.name} is {found}, not by {lock[:40]!a}")
    connection.execute(delete(vm_locks).where(vm_locks.c.vm_id == vm.id))
    return found


def _view(row: Row[Any]) -> LockView:
    return LockView(id=row.id, reason=row.reason, since=row.created_at, until=row.expires_at)
