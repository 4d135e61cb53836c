"""Turn plans that are provably safe into jobs, and show what doctor has found.

A repair is a job like any other: it holds its machine (one job per machine), its commands are fenced, and what it
records is recorded in the same transactions. So it cannot meet a snapshot half way, and asking twice is harmless.
"""

from collections.abc import Iterable

from sqlalchemy.exc import IntegrityError

from common import logs
from common.clock import Clock
from common.ids import JobId, VmId, new_id
from manager.conductor import Conductor
from manager.doctor.diagnosis import diagnose
from manager.doctor.examine import Examiner
from manager.doctor.facts import Facts
from manager.doctor.findings import Finding, Mend
from manager.flows import mend_states
from manager.store import duty, jobs, locks, snapshots
from manager.store import facts as facts_store
from manager.store.jobs import NewJob
from manager.store.session import Database
from manager.store.snapshots import NewSnapshot
from manager.views import DiagnosisView, FindingView

KIND = "repair"

_log = logs.get()


class Doctor:
    """Examines and repairs. Safe to share between threads."""

    def __init__(self, database: Database, conductor: Conductor, examiner: Examiner, clock: Clock) -> None:
        """Start jobs by `conductor`."""
        self._database = database
        self._conductor = conductor
        self._examiner = examiner
        self._clock = clock

    def examine(self) -> DiagnosisView:
        """Return what differs; nothing is changed. Raises LivesnapError(database_unavailable)."""
        facts = self._examiner.examine()
        return _shown(facts, diagnose(facts), {})

    def repair(self) -> DiagnosisView:
        """Start a job for each machine that has a plan which is provably safe, and return what differed before.

        One for each machine: what else is to be done there, the next call begins. A crash leaves some jobs started;
        they go on by themselves.
        """
        facts = self._examiner.examine()
        found = diagnose(facts)
        started: dict[int, JobId] = {}
        held: set[VmId] = set()
        for number, finding in enumerate(found):
            if finding.mend is None or finding.mend.plan.vm in held:
                continue
            job = self._start(finding.mend, facts)
            held.add(finding.mend.plan.vm)
            if job is not None:
                started[number] = job
                _log.info("repair.started", code=finding.code, subject=finding.subject, job=job)
        return _shown(facts, found, started)

    def _start(self, planned: Mend, facts: Facts) -> JobId | None:
        """Store and begin one repair; None where its machine is held, on a drained host, or moved
        since the look."""
        now, plan = self._clock.now(), planned.plan
        job = NewJob(
            id=JobId(new_id()),
            kind=KIND,
            vm=plan.vm,
            snapshot=planned.snapshots[0].id if planned.snapshots else None,
            state=mend_states.begin(plan),
            idempotency_key=None,
            request_hash="",
            created_at=now,
        )
        try:
            with self._database.write() as connection:
                row = facts_store.hold(connection, plan.vm)
                is_moved = row.attempt != facts.record.vms[plan.vm].attempt
                is_held = jobs.busy_with(connection, plan.vm) or locks.held(connection, plan.vm, now)
                if is_moved or is_held or duty.is_off(connection, plan.vm):
                    return None
                for each in planned.snapshots:
                    reserved = NewSnapshot(
                        id=each.id,
                        vm=plan.vm,
                        name=each.name,
                        description="found by livesnap doctor",
                        disks=each.disks,
                        excluded=(),
                        partial=False,
                        created_at=now,
                    )
                    snapshots.reserve(connection, reserved)
                outgoing = self._conductor.start(connection, job)
        except IntegrityError:
            return None  # somebody else was quicker (PostgreSQL): the next look will say
        self._conductor.publish(outgoing)
        return job.id


def _shown(facts: Facts, found: Iterable[Finding], started: dict[int, JobId]) -> DiagnosisView:
    names = sorted(facts.record.vms[vm].name for vm in facts.unsettled if vm in facts.record.vms)
    return DiagnosisView(
        findings=tuple(_view(facts, finding, started.get(number)) for number, finding in enumerate(found)),
        left_out=tuple(names),
    )


def _view(facts: Facts, finding: Finding, job: JobId | None) -> FindingView:
    known = facts.record.vms.get(finding.vm) if finding.vm else None
    return FindingView(
        code=finding.code,
        subject=finding.subject,
        vm=known.name if known else "",
        seen=finding.seen,
        means=finding.meaning.means,
        plan=finding.meaning.plan,
        safe=finding.mend is not None,
        job=job,
    )
