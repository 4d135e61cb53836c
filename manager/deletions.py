"""Deleting snapshots: what is asked, what is checked before, and the job that does it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from common.clock import Clock
from common.errors import RequestRefused
from common.ids import JobId, PoolId, SnapshotId, VmId, new_id
from common.messaging.merging import Way
from common.messaging.reports import VmState
from common.preflight import Level, PreflightLine, refused
from manager import delete_plan, preflight
from manager.conductor import Conductor
from manager.flows import delete
from manager.flows.delete_states import Plan, Round
from manager.preflight import Facts
from manager.settings import ManagerSettings
from manager.store import facts as facts_store
from manager.store import jobs, merges, show_jobs, show_snapshots, snapshots
from manager.store.jobs import NewJob
from manager.store.outbox import Outgoing
from manager.store.session import Database, one_at_a_time
from manager.views import DeletionDiskView, DeletionView, JobView, SnapshotView

MAX_SNAPSHOTS: Final = 100
MAX_BYTES_PER_S: Final = 2**50
_DELETABLE: Final = (snapshots.OK, snapshots.HALF_MERGED)
_BY_ITSELF: Final = {
    VmState.PAUSED_IO_ERROR: "vm_paused_io_error",
    VmState.PAUSED_MIGRATION: "vm_migrating",
    VmState.SAVING: "vm_saving",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest:
    """What a user asks for: snapshots of one machine, each by id, VM/NAME or unique name. `bytes_per_s` 0: no limit."""

    snapshots: tuple[str, ...]
    bytes_per_s: int = 0
    idempotency_key: str | None = None


class Deletions:
    """Accepts deletions. Safe to share between threads; errors as of `manager.service.Service`."""

    def __init__(self, database: Database, conductor: Conductor, clock: Clock, *, settings: ManagerSettings) -> None:
        """Serve from `database`; jobs are moved by `conductor`."""
        self._database = database
        self._conductor = conductor
        self._clock = clock
        self._settings = settings

    def delete(self, request: DeleteRequest) -> JobView:
        """Accept a deletion and return its job, already on its way. Refuses, with nothing changed: snapshot_not_found,
        snapshot_busy, snapshots_of_several_vms, vm_busy, volume_shared, and what is said of the machine."""
        _require_well_formed(request)
        received_at = self._clock.now()
        try:
            job, outgoing = self._accept(request, received_at)
        except IntegrityError:
            # Somebody else was quicker between our look and our write (PostgreSQL); the second look says who.
            job, outgoing = self._accept(request, received_at)
        self._conductor.publish(outgoing)
        with self._database.read() as connection:
            return show_jobs.show_job(connection, self._clock.now(), job)

    def dry_run(self, request: DeleteRequest) -> tuple[DeletionView, ...]:
        """Return what the deletion would do to the machine's volumes; refuse what it would refuse."""
        _require_well_formed(request)
        with self._database.read() as connection:
            _, rounds = self._plan(connection, request)
        return tuple(_shown(each) for each in rounds)

    def _accept(self, request: DeleteRequest, received_at: datetime) -> tuple[JobId, Outgoing | None]:
        digest, key = _digest(request), request.idempotency_key
        with self._database.write() as connection:
            before = _made_before(connection, key, digest) if key else None
            if before is not None:
                return before, None
            facts, rounds = self._plan(connection, request)
            plan = Plan(vm=facts.vm, pool=_pool(facts, rounds), rounds=rounds, bytes_per_s=request.bytes_per_s)
            snapshots.mark(connection, [each.snapshot for each in rounds], snapshots.DELETING)
            job = NewJob(
                id=JobId(new_id()),
                kind="delete",
                vm=facts.vm,
                snapshot=rounds[0].snapshot,
                state=delete.begin(plan, facts.places[0].host),
                idempotency_key=key,
                request_hash=digest,
                created_at=received_at,
            )
            return job.id, self._conductor.start(connection, job)

    def _plan(self, connection: Connection, request: DeleteRequest) -> tuple[Facts, tuple[Round, ...]]:
        named = [show_snapshots.show_snapshot(connection, reference) for reference in request.snapshots]
        vms = {snapshot.vm for snapshot in named}
        if len(vms) > 1:
            names = ", ".join(sorted({snapshot.vm_name for snapshot in named}))
            raise RequestRefused("snapshots_of_several_vms", f"the snapshots are of {names}")
        silent_before = self._clock.now() - self._settings.host_silent_after
        vm = VmId(named[0].vm)
        facts = facts_store.gather(connection, vm, name="", now=self._clock.now(), silent_before=silent_before)
        _require_free(facts)
        for snapshot in named:
            _require_deletable(snapshot)
        tree = merges.tree_of(connection, vm)
        return facts, delete_plan.plan(tree, [SnapshotId(snapshot.id) for snapshot in named])


def _require_well_formed(request: DeleteRequest) -> None:
    references = request.snapshots
    if not 0 < len(references) <= MAX_SNAPSHOTS or any(len(each) > preflight.MAX_REFERENCE for each in references):
        raise RequestRefused("request_malformed", f"snapshots: 1 to {MAX_SNAPSHOTS} ids or names")
    if not 0 <= request.bytes_per_s <= MAX_BYTES_PER_S:
        raise RequestRefused("request_malformed", f"bytes_per_s: 0 (no limit) to {MAX_BYTES_PER_S}")


def _require_free(facts: Facts) -> None:
    """Refuse a machine that somebody holds, that is nowhere, or of which it is not known where its disks are."""
    for line in (*preflight.of_record(facts), *_of_machine(facts), *_of_storage(facts)):
        if line.level is Level.REFUSAL:
            raise RequestRefused(line.code, line.message, line.hint)


def _of_machine(facts: Facts) -> Iterator[PreflightLine]:
    name, place = facts.vm_name, facts.place
    if facts.preview:
        yield preflight.previewing(name, facts.preview)
    if place is None:
        return
    if facts.migrating_to or place.report.migrating:
        yield refused("vm_migrating", name, f"{name} is being migrated from {place.host}")
    if place.report.state in _BY_ITSELF:
        state = place.report.state.value.replace("_", " ")
        yield refused(_BY_ITSELF[place.report.state], name, f"{name} is {state} on {place.host}")
    if place.report.managed_save and place.report.state is VmState.OFF:
        yield refused("vm_managed_save", name, f"{name} is shut off with a managed save image")


def _of_storage(facts: Facts) -> Iterator[PreflightLine]:
    named = {leaf.storage_domain_id for leaf in facts.leaves.values()}
    for id_, known in facts.storage_domains.items():
        if id_ in named and known.problem:
            seen = f"the SPM of {known.pool} says of {known.name}: {known.problem}"
            yield refused("storage_unavailable", known.name, seen)


def _require_deletable(snapshot: SnapshotView) -> None:
    if snapshot.state not in _DELETABLE:
        raise RequestRefused("snapshot_busy", f"snapshot {snapshot.name} of {snapshot.vm_name} is {snapshot.state}")


def _pool(facts: Facts, rounds: tuple[Round, ...]) -> PoolId:
    """Return the one pool whose SPM serves these volumes. Raises RequestRefused."""
    named = [merge.base.storage_domain_id for each in rounds for merge in each.disks]
    wanted = dict.fromkeys(named or [leaf.storage_domain_id for leaf in facts.leaves.values()])
    unknown = [id_ for id_ in wanted if id_ not in facts.storage_domains]
    if unknown or not wanted:
        raise RequestRefused("storage_unavailable", f"no SPM has reported storage domain {', '.join(unknown) or '?'}")
    pools = sorted({facts.storage_domains[id_].pool for id_ in wanted})
    if len(pools) > 1:
        raise RequestRefused("vm_spans_pools", f"the disks lie in pools {', '.join(pools)}")
    return pools[0]


def _made_before(connection: Connection, key: str, digest: str) -> JobId | None:
    one_at_a_time(connection, key)
    before = jobs.by_idempotency_key(connection, key)
    if before is not None and before[1] != digest:
        raise RequestRefused("idempotency_key_reused", f"the key {key} belongs to job {before[0]}")
    return before[0] if before else None


def _digest(request: DeleteRequest) -> str:
    asked = {"delete": request.snapshots, "bytes_per_s": request.bytes_per_s}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _shown(each: Round) -> DeletionView:
    disks = tuple(
        DeletionDiskView(
            target=merge.target,
            vanishes=merge.top.path,
            merged_into=None if merge.way is Way.DISCARD else merge.base.path,
        )
        for merge in each.disks
    )
    return DeletionView(snapshot=each.snapshot, name=each.name, disks=disks)
