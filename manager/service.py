"""Use cases: what the API, and whoever enqueues a Celery task, can ask of the Manager."""

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from common import logs
from common.clock import Clock
from common.errors import RequestRefused
from common.ids import DiskId, HostId, JobId, PoolId, SnapshotId, StorageDomainId, VolumeId, disk_id, new_id
from common.images.layout import volume_path
from common.messaging.messages import DiskSwitch, Format, VolumeAt
from common.preflight import Level, PreflightLine
from manager import preflight
from manager.conductor import Conductor
from manager.deletions import Deletions
from manager.doctor.examine import Examiner
from manager.doctor.repair import Doctor
from manager.dry_run import DryRun
from manager.fleet import Fleet
from manager.fleet_views import HostView, RemovedHostView
from manager.flows import snapshot
from manager.flows.base import CancelRequested, Event, ResolveRequested
from manager.flows.snapshot_states import Plan
from manager.host_checks import HostChecks
from manager.idempotency import digest_of, made_before
from manager.job_limits import JobLimits
from manager.preflight import Choice, Facts, SnapshotRequest
from manager.removal import HostRemoval
from manager.reverts import Reverts
from manager.settings import ManagerSettings
from manager.store import facts as facts_store
from manager.store import jobs, locks, show_inventory, show_jobs, show_snapshots, snapshots
from manager.store.jobs import NewJob
from manager.store.locks import Wanted
from manager.store.outbox import Outgoing
from manager.store.session import Database
from manager.store.snapshots import NewSnapshot
from manager.views import DiagnosisView, JobMoment, JobView, LockView, SnapshotView, VmView

__all__ = ["Service", "SnapshotRequest"]

_log = logs.get()
_RESOLVABLE = ("awaiting_host", "needs_operator")
MAX_LOCK: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request with its name, the digest of what was really asked (perhaps no name), when it came, and what its check
    warned of."""

    request: SnapshotRequest
    digest: str
    at: datetime
    warnings: str


class Service:
    """The Manager's use cases. Safe to share between threads.

    Every method raises RequestRefused for what cannot be done, with nothing created or touched, and
    LivesnapError(database_unavailable).
    """

    def __init__(
        self,
        database: Database,
        conductor: Conductor,
        clock: Clock,
        *,
        settings: ManagerSettings,
        host_checks: HostChecks,
        removal: HostRemoval,
    ) -> None:
        """Serve from `database`; jobs are moved by `conductor`, a dry run asks hosts by `host_checks`, `removal` takes
        operators' words about hosts."""
        self._database = database
        self._conductor = conductor
        self._clock = clock
        self._settings = settings
        self._limits = settings.limits
        self._dry_runs = DryRun(host_checks, self._limits)
        examiner = Examiner(
            database,
            lambda queue, command: host_checks.ask_queue(queue, command).answer,
            clock,
            silent_after=settings.host_silent_after,
        )
        self._removal = removal
        self._doctor = Doctor(database, conductor, examiner, clock)
        self.reverts = Reverts(database, conductor, clock, silent_after=settings.host_silent_after, shown=self._shown)
        """Preview, commit, undo and revert."""
        self.limits = JobLimits(database, conductor, clock)
        self.fleet = Fleet(database, clock, settings)
        """Who belongs to the fleet."""
        self.deletions = Deletions(database, conductor, clock, settings=settings)

    # ---- snapshots ----------------------------------------------------------------------------------------------

    def create_snapshot(
        self, request: SnapshotRequest, *, dry_run: bool = False
    ) -> JobView | tuple[PreflightLine, ...]:
        """Accept a snapshot and return its job, already on its way; or, for a dry run, everything that was checked.

        The same idempotency key with the same request returns the job that it made before. The job is committed before
        anything is sent: a broker that is away only makes it wait.
        """
        received_at = self._clock.now()
        wrong = preflight.malformed(request)
        if wrong is not None:
            raise RequestRefused(wrong.code, wrong.message, wrong.hint)
        if dry_run:
            return self._dry_run(request)
        try:
            job, outgoing = self._accept(request, received_at)
        except IntegrityError:
            # Somebody else was quicker between our look and our write (PostgreSQL); the second look says who.
            job, outgoing = self._accept(request, received_at)
        self._conductor.publish(outgoing)
        return self._shown(job)

    def list_snapshots(self, vm: str) -> list[SnapshotView]:
        """Return the snapshots of a vm (id or unique name), newest first."""
        with self._database.read() as connection:
            return show_snapshots.list_snapshots(connection, facts_store.find_vm(connection, vm))

    def show_snapshot(self, reference: str) -> SnapshotView:
        """Return a snapshot by its id, by VM/NAME, or by its name where that is unique."""
        with self._database.read() as connection:
            return show_snapshots.show_snapshot(connection, reference)

    # ---- inventory ----------------------------------------------------------------------------------------------

    def list_hosts(self) -> list[HostView]:
        """Return the hosts by name."""
        with self._database.read() as connection:
            return show_inventory.list_hosts(connection, silent_before=self._silent_before())

    def remove_host(self, host: str) -> RemovedHostView:
        """Give a host up for ever. Refuses: host_not_found, host_alive, and what prevents finding that out."""
        return self._removal.remove(HostId(host))

    def list_vms(self) -> list[VmView]:
        """Return the machines by name."""
        with self._database.read() as connection:
            return show_inventory.list_vms(connection, self._clock.now(), silent_before=self._silent_before())

    def show_vm(self, reference: str) -> VmView:
        """Return a machine, by id or unique name, with its disks and their chains."""
        with self._database.read() as connection:
            vm = facts_store.find_vm(connection, reference)
            now, silent_before = self._clock.now(), self._silent_before()
            return show_inventory.show_vm(connection, vm, now, silent_before=silent_before)

    # ---- locks --------------------------------------------------------------------------------------------------

    def lock_vm(
        self, reference: str, *, reason: str, ttl: timedelta | None = None, idempotency_key: str | None = None
    ) -> LockView:
        """Keep jobs off a machine until it is unlocked, or for `ttl`; the same key returns the lock that it made.

        Refuses: vm_busy (a job or a lock holds it, named), request_malformed.
        """
        if not preflight.is_printable_name(reason):
            raise RequestRefused("request_malformed", "reason: 1 to 255 printable characters")
        if ttl is not None and not timedelta(0) < ttl <= MAX_LOCK:
            raise RequestRefused("request_malformed", f"ttl: more than nothing and at most {MAX_LOCK.days} days")
        now = self._clock.now()
        until = None if ttl is None else now + ttl
        wanted = Wanted(reason=reason, expires_at=until, idempotency_key=idempotency_key)
        with self._database.write() as connection:
            vm = facts_store.hold(connection, facts_store.find_vm(connection, reference))
            lock = locks.take(connection, vm, wanted, now)
        _log.info("vm.locked", vm=vm.id, lock=lock.id, reason=reason, until=lock.until)
        return lock

    def unlock_vm(self, reference: str, *, lock: str | None = None) -> LockView:
        """Free a machine's lock, only if it is `lock` where that is given, and return it.

        Refuses: vm_not_locked, vm_busy (another lock holds it).
        """
        with self._database.write() as connection:
            vm = facts_store.hold(connection, facts_store.find_vm(connection, reference))
            freed = locks.free(connection, vm, lock, self._clock.now())
        _log.info("vm.unlocked", vm=vm.id, lock=freed.id, reason=freed.reason)
        return freed

    # ---- doctor -------------------------------------------------------------------------------------------------

    def examine(self) -> DiagnosisView:
        """Compare database, storage and live machines; return every difference, with what it means and the plan."""
        return self._doctor.examine()

    def repair(self) -> DiagnosisView:
        """Start the repairs that are provably safe, one for each machine; return what differed before them."""
        return self._doctor.repair()

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def list_jobs(self, vm: str | None = None, active: bool | None = None) -> list[JobView]:
        """Return the newest jobs, newest first, of one vm or all; `active`: only the unfinished (False: the others)."""
        with self._database.read() as connection:
            vm_id = facts_store.find_vm(connection, vm) if vm is not None else None
            return show_jobs.list_jobs(connection, self._clock.now(), vm=vm_id, active=active)

    def show_job(self, reference: str) -> JobView:
        """Return a job, by its id or the unique beginning of it."""
        with self._database.read() as connection:
            return show_jobs.show_job(connection, self._clock.now(), show_jobs.find_job(connection, reference))

    def job_moment(self, reference: str) -> JobMoment:
        """Return a job, and the version that it has at this moment or had just before."""
        with self._database.read() as connection:
            job = show_jobs.find_job(connection, reference)
            version = jobs.version_of(connection, job)
            return JobMoment(version=version, job=show_jobs.show_job(connection, self._clock.now(), job))

    def cancel_job(self, reference: str) -> JobView:
        """Ask a job to end without its effect; where that is no longer possible it goes on. Refuses: job_finished."""
        return self._apply(self._waiting(reference, only_in=None), CancelRequested())

    def resolve_job(self, reference: str, *, host_was_rebooted: bool = False) -> JobView:
        """Let a job that waits for a host or an operator ask again; it proves and deletes nothing.

        Refuses: job_finished, job_not_waiting; and the word that the host was rebooted with host_alive, or with what
        prevents finding that out.
        """
        job = self._waiting(reference, only_in=_RESOLVABLE)
        if host_was_rebooted:
            with self._database.read() as connection:
                state = jobs.state_of(connection, JobId(job.id))
            storage_domains = sorted({disk.new.storage_domain_id for disk in state.plan.disks})
            self._removal.require_no_sign_of_life(state.host, {state.plan.pool: storage_domains})
        return self._apply(job, ResolveRequested(host_was_rebooted=host_was_rebooted))

    # ---- watching -----------------------------------------------------------------------------------------------

    def healthy(self) -> dict[str, Any]:
        """Return that the database answers, what waits, and when the SPM of each pool reported last (`pools_seen_at`).

        Raises LivesnapError(database_unavailable).
        """
        with self._database.read() as connection:
            pools = show_inventory.pools_seen(connection)
        return {"status": "ok", "database": "ok", "pools_seen_at": pools, **self.figures()}

    def figures(self) -> dict[str, Any]:
        """Return counts: `jobs_by_state`, `outbox_open`, `outbox_unpublished`, `hosts_by_state`, `guests_frozen`."""
        with self._database.read() as connection:
            counted = show_jobs.figures(connection)
            hosts = show_inventory.list_hosts(connection, silent_before=self._silent_before())
        by_state = {state: sum(host.state == state for host in hosts) for state in ("up", "libvirt_down", "silent")}
        return {**counted, "hosts_by_state": by_state, "guests_frozen": sum(len(host.frozen) for host in hosts)}

    # ---- inside -------------------------------------------------------------------------------------------------

    def _accept(self, request: SnapshotRequest, received_at: datetime) -> tuple[JobId, Outgoing | None]:
        """Check and store a request in one transaction. Raises RequestRefused, or IntegrityError if it lost a race."""
        digest, key = _digest(request), request.idempotency_key
        with self._database.write() as connection:
            before = made_before(connection, key, digest)
            if before is not None:
                return before, None
            named, facts, choice = self._look(connection, request, received_at)
            lines = tuple(preflight.findings(named, facts, choice, self._limits))
            for line in lines:
                if line.level is Level.REFUSAL:
                    raise RequestRefused(line.code, line.message, line.hint)
            asked = Asked(request=named, digest=digest, at=received_at, warnings=_warnings(lines, choice))
            return self._store(connection, asked, facts, choice)

    def _dry_run(self, request: SnapshotRequest) -> tuple[PreflightLine, ...]:
        with self._database.read() as connection:
            named, facts, choice = self._look(connection, request, self._clock.now())
        disks = tuple(_switch(facts, disk.target) for disk in choice.disks if disk.target in facts.leaves)
        return self._dry_runs.table(named, facts, choice, disks)

    def _look(
        self, connection: Connection, request: SnapshotRequest, at: datetime
    ) -> tuple[SnapshotRequest, Facts, Choice]:
        """Return the request with a name, what is known of its vm, and the disks that it is about."""
        vm = facts_store.find_vm(connection, request.vm)
        moments = {"now": self._clock.now(), "silent_before": self._silent_before()}
        number = 1
        while True:
            named = request if request.name is not None else replace(request, name=_made_up_name(at, number))
            facts = facts_store.gather(connection, vm, name=named.name or "", **moments)
            if named is request or not facts.name_taken:
                return named, facts, preflight.choose(named, facts)
            number += 1

    def _store(
        self, connection: Connection, asked: Asked, facts: Facts, choice: Choice
    ) -> tuple[JobId, Outgoing | None]:
        """Reserve the snapshot and start its job."""
        request = asked.request
        plan = self._plan(request, facts, choice)
        reserved = NewSnapshot(
            id=plan.snapshot,
            vm=plan.vm,
            name=request.name or "",
            description=request.description,
            disks=plan.disks,
            excluded=choice.excluded,
            partial=choice.partial,
            created_at=asked.at,
        )
        snapshots.reserve(connection, reserved)
        job = NewJob(
            id=JobId(new_id()),
            kind="snapshot",
            vm=plan.vm,
            snapshot=plan.snapshot,
            state=snapshot.begin(plan, facts.places[0].host),
            idempotency_key=request.idempotency_key,
            request_hash=asked.digest,
            created_at=asked.at,
            warnings=asked.warnings,
        )
        return job.id, self._conductor.start(connection, job)

    def _plan(self, request: SnapshotRequest, facts: Facts, choice: Choice) -> Plan:
        disks = tuple(_switch(facts, disk.target) for disk in choice.disks)
        first = facts.storage_domains[disks[0].old.storage_domain_id]
        mode: Any = request.quiesce  # one of the four: `malformed` has seen to it
        return Plan(
            snapshot=SnapshotId(new_id()),
            vm=facts.vm,
            pool=PoolId(first.pool),
            disks=disks,
            mode=mode,
            freeze_limit_ms=round(self._settings.freeze_limit_s * 1000),
            held_limit_ms=round(self._settings.held_limit_s * 1000),
            limits=self._limits,
            probe_patience_ms=round(self._settings.probe_patience_s * 1000),
        )

    def _waiting(self, reference: str, *, only_in: tuple[str, ...] | None) -> JobView:
        """Return a job that somebody may still say something to."""
        job = self.show_job(reference)
        if job.finished_at is not None:
            raise RequestRefused("job_finished", f"job {job.id} has ended: {job.state}")
        if only_in is not None and job.state not in only_in:
            raise RequestRefused("job_not_waiting", f"job {job.id} is {job.state}, not waiting for a decision")
        return job

    def _apply(self, job: JobView, event: Event) -> JobView:
        self._conductor.apply(JobId(job.id), event)
        return self._shown(JobId(job.id))

    def _shown(self, job: JobId) -> JobView:
        with self._database.read() as connection:
            return show_jobs.show_job(connection, self._clock.now(), job)

    def _silent_before(self) -> datetime:
        return self._clock.now() - self._settings.host_silent_after


def _warnings(lines: tuple[PreflightLine, ...], choice: Choice) -> str:
    """Return what a job's timeline begins with; the disks that are left out are listed with the snapshot."""
    left_out = {disk.target for disk in choice.excluded}
    told = [line for line in lines if line.level is Level.WARNING and line.subject not in left_out]
    return "; ".join(f"{line.code}: {line.message}" for line in told)


def _made_up_name(at: datetime, number: int) -> str:
    """Return a name that sorts by time, the so manieth of its second."""
    return f"snapshot-{at:%Y%m%d-%H%M%S}" + (f"-{number}" if number > 1 else "")


def _digest(request: SnapshotRequest) -> str:
    """Return what tells whether two requests ask for the same; a key stands for what was asked, not for its name."""
    return digest_of({name: value for name, value in asdict(request).items() if name != "idempotency_key"})


def _switch(facts: Facts, target: str) -> DiskSwitch:
    """Return one disk's way: from the leaf on record to a new volume beside it, on the same storage domain."""
    old, disk, new = facts.leaves[target], disk_id(facts.vm, target), VolumeId(new_id())
    path = volume_path(DiskId(disk), new)
    volume = VolumeAt(
        volume_id=new,
        storage_domain_id=StorageDomainId(old.storage_domain_id),
        path=path,
        format=Format.QCOW2,
    )
    return DiskSwitch(target=target, disk_id=disk, old=old, new=volume)
