"""Remove from the trash, for good, what has been there long enough: with the same tests again as at its deletion.

What that frees goes first to the room that is set aside for deletions.
"""

from datetime import datetime, timedelta

from common import logs
from common.clock import Clock
from common.errors import LivesnapError
from spm.backends.base import Backend, HeldVolume, Holds, Trashed
from spm.pool import Pool

_log = logs.get()
# Longer than any creation takes: what is younger may belong to one that runs.
_LITTER_AGE = timedelta(hours=1)


def purge(pool: Pool, clock: Clock, grace: timedelta, *, min_free_bytes: int = 0) -> int:
    """Remove every volume that was deleted longer than `grace` ago and that provably nobody uses; return how many.

    Where less than `min_free_bytes` are free, volumes that were never written do not wait: room is what is missing.
    Never raises for one storage domain or one volume: it is logged and left for the next time. A crash leaves volumes
    in the trash.
    """
    now, removed = clock.now(), 0
    for backend in pool.usable():
        removed += _purge_one(backend, now, grace, min_free_bytes)
        _keep_reserve(backend)
    return removed


def _purge_one(backend: Backend, now: datetime, grace: timedelta, min_free_bytes: int) -> int:
    removed = 0
    name = backend.identity.name
    try:
        swept = backend.sweep(now - max(grace, _LITTER_AGE))
        if swept:
            _log.info("litter.swept", storage_domain=name, files=swept)
        is_short = backend.usage().free_bytes < min_free_bytes
        due = [
            trashed
            for trashed in backend.trash()
            if trashed.deleted_at <= now - grace or (is_short and trashed.holds is Holds.NOTHING)
        ]
        if due and not backend.locking_is_proven():
            _log.warning("purge.skipped", storage_domain=name, reason="locking_unproven", volumes=len(due))
            return 0
        for trashed in due:
            removed += remove(backend, trashed)
    except LivesnapError as error:
        _log.warning("purge.failed", storage_domain=name, reason=str(error))
    return removed


def _keep_reserve(backend: Backend) -> None:
    try:
        backend.keep_reserve()
    except LivesnapError as error:
        _log.warning("reserve.missing", storage_domain=backend.identity.name, reason=str(error))


def remove(backend: Backend, trashed: Trashed) -> bool:
    """Remove one volume from the trash now, with the tests of its deletion again; tell whether it is gone.

    Never raises LivesnapError: what is kept, and why, is in the log, and the next purge tries again.
    """
    try:
        with backend.hold_trashed(trashed) as held:
            why = _why_kept(held, trashed)
            if held is not None and not why:
                held.remove()
    except LivesnapError as error:
        why = str(error)
    if why:
        _log.warning("purge.kept", volume=trashed.name, why=why)
        return False
    _log.info("volume.purged", volume=trashed.name)
    return True


def _why_kept(held: HeldVolume | None, trashed: Trashed) -> str:
    if held is None:
        return "in_use"
    # What was empty when it was deleted and is not now was written to in the trash: somebody uses it.
    return "" if trashed.holds is not Holds.NOTHING or held.is_empty() else "not_empty"
