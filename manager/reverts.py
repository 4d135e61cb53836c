"""Use cases: preview, commit, undo and revert, as the API asks for them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from common import logs
from common.clock import Clock
from common.errors import RequestRefused
from common.ids import JobId, SnapshotId, VmId, VolumeId, disk_id, new_id
from common.images.layout import volume_path
from common.messaging.messages import DiskSwitch, Format, VolumeAt
from common.preflight import PreflightLine
from manager import revert_checks
from manager.conductor import Conductor
from manager.flows import revert_states
from manager.flows.revert_states import Goal, Plan
from manager.idempotency import digest_of, made_before
from manager.preflight import Facts
from manager.revert_checks import SnapshotDisk
from manager.store import branches
from manager.store import facts as facts_store
from manager.store.branches import Branch
from manager.store.jobs import NewJob
from manager.store.outbox import Outgoing
from manager.store.session import Database
from manager.views import JobView, LossView, VolumeView

_log = logs.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a user asks for. `reference` is the snapshot of a preview or revert, the machine of a commit or undo."""

    goal: Goal
    reference: str
    disks: tuple[str, ...] = ()
    idempotency_key: str | None = None

    @property
    def digest(self) -> str:
        """Return what tells whether two requests ask for the same."""
        return digest_of({"goal": self.goal, "reference": self.reference, "disks": list(self.disks)})


class Reverts:
    """Accepts the jobs that take a stopped machine to a snapshot and back. Safe to share between threads.

    Every method raises RequestRefused for what cannot be done, with nothing created or touched, and
    LivesnapError(database_unavailable).
    """

    def __init__(
        self,
        database: Database,
        conductor: Conductor,
        clock: Clock,
        *,
        silent_after: timedelta,
        shown: Callable[[JobId], JobView],
    ) -> None:
        """Serve from `database`; jobs are moved by `conductor` and shown by `shown`."""
        self._database = database
        self._conductor = conductor
        self._clock = clock
        self._silent_after = silent_after
        self._shown = shown

    def start(self, ask: Ask) -> JobView:
        """Accept what was asked and return its job, already on its way; the same key with the same request returns the
        job that it made before."""
        received_at = self._clock.now()
        try:
            job, outgoing = self._accept(ask, received_at)
        except IntegrityError:
            # Somebody else was quicker between our look and our write (PostgreSQL); the second look says who.
            job, outgoing = self._accept(ask, received_at)
        self._conductor.publish(outgoing)
        return self._shown(job)

    def loss(self, ask: Ask) -> LossView:
        """Return what a revert would give up; refuses what the revert itself would be refused with."""
        with self._database.read() as connection:
            facts, plan = self._plan(connection, ask)
            leaves = [disk.old for disk in plan.moves]
            given_up = {disk.new.volume_id for disk in plan.drops}
            return LossView(
                snapshot_id=plan.snapshot,
                snapshot_name=plan.name,
                vm=plan.vm,
                vm_name=facts.vm_name,
                targets=tuple(disk.target for disk in plan.moves),
                since=branches.written_since(connection, (leaf.volume_id for leaf in leaves)),
                volumes=tuple(
                    VolumeView(
                        volume_id=leaf.volume_id,
                        storage_domain=facts.storage_domains[leaf.storage_domain_id].name,
                        path=leaf.path,
                    )
                    for leaf in leaves
                    if leaf.volume_id in given_up
                ),
            )

    # ---- inside -------------------------------------------------------------------------------------------------

    def _accept(self, ask: Ask, received_at: datetime) -> tuple[JobId, Outgoing | None]:
        """Check and store a request in one transaction. Raises RequestRefused, or IntegrityError if it lost a race."""
        with self._database.write() as connection:
            before = made_before(connection, ask.idempotency_key, ask.digest)
            if before is not None:
                return before, None
            facts, plan = self._plan(connection, ask)
            job = NewJob(
                id=JobId(new_id()),
                kind=ask.goal,
                vm=plan.vm,
                snapshot=plan.snapshot,
                state=revert_states.begin(plan, facts.places[0].host),
                idempotency_key=ask.idempotency_key,
                request_hash=ask.digest,
                created_at=received_at,
            )
            outgoing = self._conductor.start(connection, job)
        _log.info("request.accepted", kind=ask.goal, vm=plan.vm, snapshot=plan.snapshot, job=job.id)
        return job.id, outgoing

    def _plan(self, connection: Connection, ask: Ask) -> tuple[Facts, Plan]:
        """Check a request against everything on record, and return what is to be done."""
        match ask.goal:
            case "preview" | "revert":
                return self._onto(connection, ask)
            case "commit" | "undo":
                return self._ending(connection, ask)

    def _onto(self, connection: Connection, ask: Ask) -> tuple[Facts, Plan]:
        snapshot = branches.snapshot_facts(connection, ask.reference)
        facts = self._facts(connection, snapshot.vm)
        _require(revert_checks.onto(facts, snapshot, ask.disks))
        moves = tuple(_onto(disk, facts.leaves[disk.target]) for disk in snapshot.chosen(ask.disks))
        drops = _drops(connection, [(disk, disk.old) for disk in moves]) if ask.goal == "revert" else ()
        return facts, _plan_of(ask.goal, facts, (snapshot.id, snapshot.name), moves, drops)

    def _ending(self, connection: Connection, ask: Ask) -> tuple[Facts, Plan]:
        facts = self._facts(connection, facts_store.find_vm(connection, ask.reference))
        _require(revert_checks.ending(facts, ask.goal))
        preview = facts.preview
        assert preview is not None
        kept = branches.branches(connection, (VolumeId(disk.kept_volume_id) for disk in preview.disks))
        ways = []
        for disk in preview.disks:
            way = kept.get(disk.kept_volume_id)
            if way is None:
                message = f"the volume to which disk {disk.target} comes back is not on record"
                raise RequestRefused("volume_not_found", message)
            ways.append(_back(connection, disk.target, facts, way))
        is_undo = ask.goal == "undo"
        drops = _drops(connection, [(way, way.old if is_undo else way.new) for way in ways])
        about = SnapshotId(preview.snapshot_id), preview.snapshot_name
        return facts, _plan_of(ask.goal, facts, about, tuple(ways) if is_undo else (), drops)

    def _facts(self, connection: Connection, vm: VmId) -> Facts:
        now = self._clock.now()
        return facts_store.gather(connection, vm, name="", now=now, silent_before=now - self._silent_after)


def _require(lines: Iterable[PreflightLine]) -> None:
    for line in lines:  # each is a refusal; the first is the one that is told
        raise RequestRefused(line.code, line.message, line.hint)


def _plan_of(
    goal: Goal,
    facts: Facts,
    about: tuple[SnapshotId, str],
    moves: tuple[DiskSwitch, ...],
    drops: tuple[DiskSwitch, ...],
) -> Plan:
    preview = facts.preview
    of = moves[0].new if moves else facts.leaves[preview.disks[0].target] if preview else drops[0].new
    pool = facts.storage_domains[of.storage_domain_id].pool
    return Plan(goal=goal, vm=facts.vm, pool=pool, snapshot=about[0], name=about[1], moves=moves, drops=drops)


def _onto(disk: SnapshotDisk, leaf: VolumeAt) -> DiskSwitch:
    """Return one disk's way: from the leaf on record to a new volume above the snapshot's."""
    content, new = disk.content, VolumeId(new_id())
    assert content is not None
    volume = VolumeAt(
        volume_id=new,
        storage_domain_id=content.storage_domain_id,
        path=volume_path(disk.disk, new),
        format=Format.QCOW2,
    )
    return DiskSwitch(target=disk.target, disk_id=disk.disk, old=leaf, new=volume, over=content)


def _back(connection: Connection, target: str, facts: Facts, way: Branch) -> DiskSwitch:
    """Return one disk's way back: from the leaf on record to the one that was kept."""
    return DiskSwitch(
        target=target,
        disk_id=disk_id(facts.vm, target),
        old=facts.leaves[target],
        new=way.volume,
        over=_parent(connection, way),
        kept=True,
    )


def _parent(connection: Connection, of: Branch) -> VolumeAt | None:
    if of.parent is None:
        return None
    found = branches.branches(connection, (of.parent,)).get(of.parent)
    return found.volume if found else None


def _drops(connection: Connection, given_up: list[tuple[DiskSwitch, VolumeAt]]) -> tuple[DiskSwitch, ...]:
    """Return what is to be deleted of these volumes: not what another one stands on, or a snapshot's content."""
    ids = [volume.volume_id for _, volume in given_up]
    known, needed = branches.branches(connection, ids), branches.needed(connection, ids)
    return tuple(
        DiskSwitch(
            target=way.target,
            disk_id=way.disk_id,
            old=_parent(connection, known[volume.volume_id]) or (way.new if volume == way.old else way.old),
            new=volume,
        )
        for way, volume in given_up
        if volume.volume_id in known and volume.volume_id not in needed
    )
