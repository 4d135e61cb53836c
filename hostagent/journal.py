"""The host's durable record: the highest attempt of every vm, the answers given, and the guests that may be frozen.

One SQLite file, shared by all agent processes of the host, in write-ahead mode with synchronous=FULL: when a method
returns, its record survives a crash and a power cut. Attempts are never deleted, since they are what refuses late
messages for ever (P6); answers are kept for the newest job of each vm.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from common.clock import Clock
from common.errors import NotReady, StaleAttempt, StorageError
from common.ids import JobId, StepId, VmId
from common.messaging.messages import LeavesObserved, Outcome
from hostagent import stored_answers
from hostagent.ports import Attempt

BUSY_TIMEOUT_S = 5
_SCHEMA = """
create table if not exists attempt(
    vm text primary key, attempt integer not null, job text not null, step text not null, started_at text not null,
    call_issued_boot_ms integer, libvirtd_instance text not null, boot_id text not null, answer text
) strict;
create table if not exists answer(
    vm text not null, job text not null, attempt integer not null, has_receipt integer not null, answer text not null,
    primary key (vm, attempt)
) strict;
create table if not exists frozen(
    vm text not null, token text not null, runtime_id text not null, since text not null, primary key (vm, token)
) strict;
create table if not exists committing(vm text primary key, job text not null) strict;
create table if not exists pivoting(
    vm text not null, target text not null, job text not null, primary key (vm, target)
) strict;
create table if not exists clean_shutdown(
    vm text primary key, runtime_id text not null, boot_id text not null, at text not null, images text not null
) strict;
"""


class SqliteJournal:
    """The real `Journal` of hostagent/ports.py. Safe for the threads of a process and for several processes."""

    def __init__(self, path: Path, *, boot_id: str, clock: Clock) -> None:
        """Open the journal, creating it. Raises NotReady when the file cannot be used."""
        self._lock = threading.Lock()
        self._boot_id = boot_id
        self._clock = clock
        self._path = path
        try:
            self._sql = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._sql.executescript(f"pragma journal_mode=wal; pragma synchronous=full; {_SCHEMA}")
        except sqlite3.Error as error:
            raise NotReady("not_ready", f"the journal {path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    # ---- attempts -----------------------------------------------------------------------------------------------

    def begin(self, vm: VmId, attempt: int, job: JobId, step: StepId) -> Attempt | None:
        """Record that `attempt` begins and return None; return its row if it has begun before.

        Raises StaleAttempt if a higher one has, NotReady if the record cannot be written. The last call that was
        issued stays on the row, whichever attempt issued it: it is the barrier's matter until an answer settles it.
        """
        try:
            with self._writing("begin") as sql:
                row = self._row(sql, vm)
                if row is not None and row.attempt > attempt:
                    message = f"attempt {attempt} of vm {vm} is refused: {row.attempt} is on record"
                    raise StaleAttempt("attempt_stale", message, highest=row.attempt)
                if row is not None and row.attempt == attempt:
                    return row
                self._write_attempt(sql, vm, attempt, (job, step))
        except StorageError as error:
            raise NotReady("not_ready", error.message) from error
        return None

    def _write_attempt(self, sql: sqlite3.Connection, vm: VmId, attempt: int, ids: tuple[JobId, StepId]) -> None:
        sql.execute(
            "insert into attempt values (?, ?, ?, ?, ?, null, '', ?, null) on conflict (vm) do update set"
            " attempt = excluded.attempt, job = excluded.job, step = excluded.step, started_at = excluded.started_at,"
            " boot_id = iif(call_issued_boot_ms is null, excluded.boot_id, boot_id), answer = null",
            (vm, attempt, *ids, self._now(), self._boot_id),
        )
        # What an older job left can be asked for no more: its messages are stale from here on.
        sql.execute("delete from answer where vm = ? and job <> ?", (vm, ids[0]))

    def current(self, vm: VmId) -> Attempt | None:
        """Return the vm's row, None if it has none."""
        with self._using("read") as sql:
            return self._row(sql, vm)

    def attempts(self) -> dict[VmId, tuple[int, bool]]:
        """Return per vm the highest attempt, and whether it has been answered."""
        with self._using("read") as sql:
            rows = sql.execute("select vm, attempt, answer is not null from attempt").fetchall()
        return {VmId(vm): (attempt, bool(answered)) for vm, attempt, answered in rows}

    def previous_answer(self, vm: VmId, job: JobId) -> LeavesObserved | None:
        """Return the newest answer to a Pivot of that job that carries a receipt (only pivots earn one)."""
        with self._using("read") as sql:
            found = sql.execute(
                "select answer from answer where vm = ? and job = ? and has_receipt order by attempt desc limit 1",
                (vm, job),
            ).fetchone()
        return stored_answers.load(found[0]) if found else None

    def call_issued(self, vm: VmId, attempt: int, boot_ms: int, libvirtd_instance: str) -> None:
        """Record, before the call, that a libvirt call which can move leaves goes out now."""
        with self._writing("call_issued") as sql:
            changed = sql.execute(
                "update attempt set call_issued_boot_ms = ?, libvirtd_instance = ?, boot_id = ?"
                " where vm = ? and attempt = ?",
                (boot_ms, libvirtd_instance, self._boot_id, vm, attempt),
            ).rowcount
            self._require_current(sql, vm, attempt, changed)

    def done(self, vm: VmId, attempt: int, answer: LeavesObserved) -> None:
        """Store the answer durably, before it is published. Any answer but UNKNOWN says that no call is in flight."""
        text = stored_answers.dump(answer)
        settled = answer.outcome is not Outcome.UNKNOWN
        with self._writing("done") as sql:
            changed = sql.execute(
                "update attempt set answer = ?, call_issued_boot_ms = iif(?, null, call_issued_boot_ms)"
                " where vm = ? and attempt = ?",
                (text, settled, vm, attempt),
            ).rowcount
            self._require_current(sql, vm, attempt, changed)
            sql.execute(
                "insert or replace into answer select vm, job, attempt, ?, ? from attempt where vm = ?",
                (answer.receipt is not None, text, vm),
            )

    def commit_begun(self, vm: VmId, job: JobId) -> None:
        """Record, before an active commit, that from now on the old leaves may hold newer data. Safe to repeat."""
        with self._writing("commit_begun") as sql:
            sql.execute("insert or replace into committing values (?, ?)", (vm, job))

    def commit_was_begun(self, vm: VmId, job: JobId) -> bool:
        """Tell whether that job has ever begun to commit; only the vm's newest job matters, and only it is kept."""
        with self._using("read") as sql:
            found = sql.execute("select 1 from committing where vm = ? and job = ?", (vm, job)).fetchone()
        return found is not None

    def pivot_begun(self, vm: VmId, job: JobId, target: str) -> None:
        """Record, before a merge's pivot, that from now on the upper volume may be the older one. Safe to repeat."""
        with self._writing("pivot_begun") as sql:
            sql.execute("insert or replace into pivoting values (?, ?, ?)", (vm, target, job))

    def pivot_was_begun(self, vm: VmId, job: JobId, target: str) -> bool:
        """Tell whether that is on record for that job's disk."""
        with self._using("read") as sql:
            found = sql.execute(
                "select 1 from pivoting where vm = ? and target = ? and job = ?", (vm, target, job)
            ).fetchone()
        return found is not None

    def pivot_settled(self, vm: VmId, target: str) -> None:
        """Clear that record: it was seen which volume the vm writes to."""
        with self._writing("pivot_settled") as sql:
            sql.execute("delete from pivoting where vm = ? and target = ?", (vm, target))

    # ---- guests that may be frozen --------------------------------------------------------------------------------

    def maybe_frozen(self, vm: VmId, token: str, runtime_id: str) -> None:
        """Record, before the freeze, that the guest may be frozen by us."""
        with self._writing("maybe_frozen") as sql:
            sql.execute("insert or replace into frozen values (?, ?, ?, ?)", (vm, token, runtime_id, self._now()))

    def thawed(self, vm: VmId, token: str) -> None:
        """Clear that record; only after a confirmed thaw."""
        with self._writing("thawed") as sql:
            sql.execute("delete from frozen where vm = ? and token = ?", (vm, token))

    def frozen_records(self) -> tuple[tuple[VmId, str, str], ...]:
        """Return every (vm, token, runtime id) that may be frozen by us."""
        with self._using("read") as sql:
            rows = sql.execute("select vm, token, runtime_id from frozen order by since").fetchall()
        return tuple((VmId(vm), token, runtime_id) for vm, token, runtime_id in rows)

    # ---- clean shutdowns --------------------------------------------------------------------------------------------

    def runs_seen(self, runs: Mapping[VmId, str]) -> None:
        """Void the record of each of these vms, unless it is of this very run ('': whichever it is of)."""
        with self._writing("runs_seen") as sql:
            sql.executemany("delete from clean_shutdown where vm = ? and runtime_id <> ?", list(runs.items()))

    def shut_down(self, vm: VmId, runtime_id: str, images: Mapping[str, str]) -> None:
        """Record that this run ended by a clean shutdown, and in what state it left each image, by path."""
        row = (vm, runtime_id, self._boot_id, self._now(), json.dumps(dict(images)))
        with self._writing("shut_down") as sql:
            sql.execute("insert or replace into clean_shutdown values (?, ?, ?, ?, ?)", row)

    def images_left(self, vm: VmId) -> dict[str, str]:
        """Return the images as the last clean shutdown in this boot left them; empty if there is none on record."""
        with self._using("read") as sql:
            found = sql.execute(
                "select images from clean_shutdown where vm = ? and boot_id = ?", (vm, self._boot_id)
            ).fetchone()
        images: dict[str, str] = json.loads(found[0]) if found else {}
        return images

    def images_added(self, vm: VmId, images: Mapping[str, str]) -> None:
        """Add images to the record of the last clean shutdown in this boot, if there is one."""
        with self._writing("images_added") as sql:
            sql.execute(
                "update clean_shutdown set images = json_patch(images, ?) where vm = ? and boot_id = ?",
                (json.dumps(dict(images)), vm, self._boot_id),
            )

    # ---- helpers ------------------------------------------------------------------------------------------------

    @contextmanager
    def _using(self, action: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._sql
            except sqlite3.Error as error:
                raise StorageError("storage_io_error", f"{action} in the journal {self._path}: {error}") from error

    @contextmanager
    def _writing(self, action: str) -> Iterator[sqlite3.Connection]:
        with self._using(action) as sql:
            sql.execute("begin immediate")
            try:
                yield sql
                sql.execute("commit")
            except BaseException:
                if sql.in_transaction:
                    sql.execute("rollback")
                raise

    def _row(self, sql: sqlite3.Connection, vm: VmId) -> Attempt | None:
        found = sql.execute(
            "select attempt, job, step, started_at, call_issued_boot_ms, libvirtd_instance, boot_id, answer"
            " from attempt where vm = ?",
            (vm,),
        ).fetchone()
        if found is None:
            return None
        attempt, job, step, started_at, boot_ms, instance, boot_id, answer = found
        return Attempt(
            vm_id=vm,
            attempt=attempt,
            job_id=JobId(job),
            step_id=StepId(step),
            started_at=datetime.fromisoformat(started_at),
            call_issued_boot_ms=boot_ms,
            libvirtd_instance=instance,
            boot_id=boot_id,
            answer=stored_answers.load(answer) if answer else None,
        )

    @staticmethod
    def _require_current(sql: sqlite3.Connection, vm: VmId, attempt: int, changed: int) -> None:
        """Refuse to write on a row that a higher attempt has taken over meanwhile."""
        if changed:
            return
        found = sql.execute("select attempt from attempt where vm = ?", (vm,)).fetchone()
        highest = found[0] if found else 0
        raise StaleAttempt("attempt_stale", f"attempt {attempt} of vm {vm} was overtaken by {highest}", highest=highest)

    def _now(self) -> str:
        return self._clock.now().isoformat()
