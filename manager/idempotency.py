"""One key, one job: what tells a repeated request from a new one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from common.errors import RequestRefused
from common.ids import JobId
from manager.store import jobs
from manager.store.session import one_at_a_time


def digest_of(asked: Mapping[str, Any]) -> str:
    """Return what tells whether two requests ask for the same."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def made_before(connection: Connection, key: str | None, digest: str) -> JobId | None:
    """Return the job that this very request has made already. Raises RequestRefused(idempotency_key_reused)."""
    if not key:
        return None
    one_at_a_time(connection, key)  # else a repetition beside the first would find the vm busy with its own job
    before = jobs.by_idempotency_key(connection, key)
    if before is not None and before[1] != digest:
        raise RequestRefused("idempotency_key_reused", f"the key {key} belongs to job {before[0]}")
    return before[0] if before else None
