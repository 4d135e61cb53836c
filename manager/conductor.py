"""The engine: one durable step of one job, whatever its kind.

Load, advance, save, outbox: one transaction (P6). Then publish, with no second write where the broker takes it. A crash
before the commit leaves the job as it was, and whoever brought the event brings it again; a crash after it leaves the
command in the outbox, from which the relay sends it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, assert_never

from sqlalchemy import Connection
from structlog.contextvars import bound_contextvars

from common import logs
from common.clock import Clock
from common.crashpoints import reach
from common.errors import BrokerUnavailable, LivesnapError, RequestRefused
from common.ids import JobId, StepId, VmId, new_id
from common.messaging.keys import SigningKey
from common.messaging.messages import Answer, Refused
from common.messaging.queues import host_queue, spm_queue
from common.messaging.shell import Publish
from common.messaging.wire import SCHEMA_VERSION, Envelope, seal
from manager.flows import FLOWS
from manager.flows.base import (
    Answered,
    Event,
    HostLost,
    Next,
    ResolveRequested,
    Send,
    Started,
    TimedOut,
    ToHost,
    ToSpm,
)
from manager.loads import loads_of
from manager.settings import ManagerSettings
from manager.store import admission, duty, inventory, jobs, lost_hosts, outbox, snapshots
from manager.store.jobs import Change, NewJob, StoredJob
from manager.store.outbox import Outgoing
from manager.store.session import Database

_log = logs.get()

IDLE_LABELS = frozenset({"needs_operator"})
"""States in which nothing may stay outstanding although the job has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What one event did: whether anything changed, what is to be published now that it is committed, the timer that
    was set, whether the job has ended, and whether it goes no further by itself (for ever, or until it is told to)."""

    changed: bool
    outgoing: Outgoing | None = None
    wake_at: datetime | None = None
    is_over: bool = False
    at_rest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What has just come in, and when; `envelope` is that of an answer."""

    now: datetime
    event: Event
    envelope: Envelope | None


class Conductor:
    """Moves jobs on. Safe to share between threads and processes: a job's row is locked, and its version checked."""

    def __init__(
        self, database: Database, key: SigningKey, publish: Publish, clock: Clock, *, settings: ManagerSettings
    ) -> None:
        """Sign commands with the Manager's `key` and send them with `publish`."""
        self._database = database
        self._key = key
        self._publish = publish
        self._clock = clock
        self._resend_first = settings.resend_first
        self._timer_is_set: Callable[[datetime], object] = lambda _: None

    def on_timer(self, tell: Callable[[datetime], object]) -> None:
        """Have `tell` called with when a timer runs out, after the commit that has set it. A crash in between: it is
        seen a little later, as one that another process has set."""
        self._timer_is_set = tell

    def start(self, connection: Connection, new: NewJob) -> Outgoing | None:
        """Store a new job and its first step in the caller's transaction; give the result to `publish` after it.

        Raises sqlalchemy.exc.IntegrityError if the vm is busy or the idempotency key is taken, and
        RequestRefused(host_drained) where its host takes nothing new.
        """
        if duty.is_off(connection, new.vm):
            raise RequestRefused("host_drained", f"the host of machine {new.vm} was drained")
        job = jobs.insert_job(connection, new)
        admission.register(connection, job.id, loads_of(job.state))
        with bound_contextvars(job=job.id, vm=job.vm):
            if why := admission.why_wait(connection, job.id):
                told = f"waiting for {why}" + (f"; warnings: {new.warnings}" if new.warnings else "")
                jobs.queue(connection, job, self._clock.now(), told)
                _log.info("job.queued", reason=why)
                return None
            return self._step(connection, job, Started(warnings=new.warnings), None).outgoing

    def answer(self, envelope: Envelope, answer: Answer) -> bool:
        """Take a consumer's answer to the step that its job waits for; False if it changed nothing.

        Any other answer (late, repeated, from somebody who was not asked) is ignored and logged: the job has moved on.
        """
        if envelope.job is None:
            _log.warning("answer.ignored", reason="it names no job", sender=envelope.sender)
            return False
        return self._apply(envelope.job, Answered(answer=answer), envelope)

    def apply(self, job_id: JobId, event: Event) -> bool:
        """Take an event that is no answer; False if it changed nothing: job unknown, ended, timer not due, or ignored.

        Raises LivesnapError(database_unavailable); then nothing has happened.
        """
        return self._apply(job_id, event, None)

    def look_early(self, vm: VmId, teller: str) -> None:
        """Let the vm's job, if it looks at the work of `teller` now and then, look now: something there has ended.

        Nobody speaks for another whom the job has asked last (P9). Raises LivesnapError(database_unavailable).
        """
        with self._database.read() as connection:
            job = jobs.busy_with(connection, vm)
            asked = outbox.last_asked(connection, job) if job is not None else None
        if job is not None and asked == teller:
            self._apply(job, TimedOut(early=True), None)

    def admit(self) -> None:
        """Let the jobs begin whose turn it is, oldest first. Raises LivesnapError(database_unavailable).

        Called when a job has ended or a limit has changed, and by the timers, for what a crash in between left waiting.
        """
        with self._database.read() as connection:
            ready = [job for job, why in admission.waiting(connection).items() if not why]
        for job in ready:
            self._begin(job)

    def _begin(self, job_id: JobId) -> None:
        """Make the first step of a job that has waited, unless it has begun, or has to wait after all."""
        with bound_contextvars(job=job_id):
            with self._database.write() as connection:
                job = jobs.lock_job(connection, job_id)
                if job is None or not job.is_queued or admission.why_wait(connection, job_id):
                    return
                stepped = self._step(connection, job, Started(), None)
            self.publish(stepped.outgoing)

    def publish(self, outgoing: Outgoing | None) -> None:
        """Send a committed command. Where the broker is away, say so on its row and leave it to the relay."""
        if outgoing is None:
            return
        try:
            self._publish(outgoing.queue, outgoing.task, outgoing.sealed, outgoing.readable)
        except BrokerUnavailable as error:
            about = {"job": outgoing.job, "step": outgoing.step, "queue": outgoing.queue}
            _log.warning("publish.failed", **about, reason=error.message)
            self._note_unpublished(outgoing, error.message)
        reach("manager.apply.published")

    def _apply(self, job_id: JobId, event: Event, envelope: Envelope | None) -> bool:
        with bound_contextvars(job=job_id):
            with self._database.write() as connection:
                job = jobs.lock_job(connection, job_id)
                why_not = self._why_not(connection, job, event, envelope)
                if job is None or why_not:
                    _log.info("event.ignored", kind=type(event).__name__, reason=why_not)
                    return False
                stepped = self._step(connection, job, event, envelope)
                reach("manager.apply.before_commit")
            reach("manager.apply.committed")
            self.publish(stepped.outgoing)
        if stepped.at_rest:
            self._database.ring()
        if stepped.wake_at is not None:
            self._timer_is_set(stepped.wake_at)
        if stepped.is_over:
            self.admit()
        return stepped.changed

    def _why_not(self, connection: Connection, job: StoredJob | None, event: Event, envelope: Envelope | None) -> str:
        """Return why an event is not for this job, as it stands now; '' if it is."""
        if job is None:
            return "there is no such job"
        if job.finished_at is not None:
            return "the job has ended"
        if isinstance(event, TimedOut) and not self._is_due(job, event):
            return "the timer is not due: somebody else has moved the job on"
        if envelope is None:
            return ""
        waiting = outbox.open_step(connection, job.id)
        if waiting is None or waiting[0] != envelope.step:
            return f"step {envelope.step} has been answered or superseded"
        if waiting[1] != envelope.sender:
            return f"{envelope.sender} answers what {waiting[1]} was asked"
        return ""

    def _is_due(self, job: StoredJob, event: TimedOut) -> bool:
        if event.early:
            return FLOWS[job.kind].may_look_early(job.state)
        return job.wake_at is not None and job.wake_at <= self._clock.now()

    def _step(self, connection: Connection, job: StoredJob, event: Event, envelope: Envelope | None) -> Stepped:
        """Advance the job and store everything that follows; the caller's transaction commits it."""
        now = self._clock.now()
        if isinstance(event, Answered) and isinstance(event.answer, Refused):
            inventory.catch_up(connection, job.vm, event.answer.highest)
        following = self._advance(connection, job, event)
        if _is_idle(job.state, following):
            if isinstance(event, TimedOut) and not event.early:
                jobs.postpone(connection, job.id, None)  # else it would be due for ever
            _log.info("event.ignored", kind=type(event).__name__, reason=f"it changes nothing in {job.state.label}")
            return Stepped(changed=False)
        outgoing = self._store(connection, job, following, Moment(now=now, event=event, envelope=envelope))
        _log.info("job.step", state=following.state.label, was=job.state.label, detail=following.detail)
        is_over = FLOWS[job.kind].is_over(following.state)
        return Stepped(
            changed=True,
            outgoing=outgoing,
            wake_at=following.wake_at(now),
            is_over=is_over,
            at_rest=is_over or following.state.label in IDLE_LABELS,
        )

    def _advance(self, connection: Connection, job: StoredJob, event: Event) -> Next[Any]:
        """Ask the flow what follows. A host that was removed is not asked anything: that it is lost is what happens."""
        advance = FLOWS[job.kind].advance
        following = advance(job.state, _informed(connection, job, event))
        if isinstance(following.send, ToHost) and lost_hosts.is_removed(connection, following.send.host):
            lost = HostLost(host=following.send.host)
            following = advance(job.state, _informed(connection, job, lost))
        return following

    def _store(self, connection: Connection, job: StoredJob, following: Next[Any], moment: Moment) -> Outgoing | None:
        """Write one step: the answer's row closed, the command's opened, records, state and timeline."""
        flow, state, now = FLOWS[job.kind], following.state, moment.now
        is_over = flow.is_over(state)
        if moment.envelope is not None and isinstance(moment.event, Answered):
            outbox.close_answered(connection, moment.envelope.step, moment.event.answer, now)
        elif job.version > 0 and (following.send or is_over or state.label in IDLE_LABELS):
            outbox.close_superseded(connection, job.id, now)  # before its first step a job has nothing outstanding
        outgoing = self._send(connection, job, following.send, state.label) if following.send else None
        if is_over:
            admission.forget(connection, job.id)
        snapshots.apply_records(connection, job.id, following.records, now)
        change = Change(
            state=state,
            at=now,
            wake_at=following.wake_at(now),
            problem=flow.problem_of(state),
            is_over=is_over,
            detail=following.detail,
        )
        jobs.save(connection, job, change)
        return outgoing

    def _send(self, connection: Connection, job: StoredJob, send: Send, label: str) -> Outgoing:
        """Count, sign and store a command. The vm's attempt is raised here, in the transaction of its outbox row."""
        match send:
            case ToHost(host=host):
                queue, attempt = host_queue(host), inventory.raise_attempt(connection, job.vm, host)
            case ToSpm(pool=pool):
                queue, attempt = spm_queue(pool), inventory.raise_attempt(connection, job.vm, None)
            case _:
                assert_never(send)
        now = self._clock.now()
        envelope = Envelope(
            v=SCHEMA_VERSION,
            sender=self._key.sender,
            to=queue,
            job=job.id,
            vm=job.vm,
            step=StepId(new_id()),
            attempt=attempt,
            issued_at=now,
            deadline=now + send.deadline_after,
            body=send.command,
        )
        sealed = seal(envelope, self._key)
        return outbox.add(connection, envelope, sealed, step_label=label, next_send_at=now + self._resend_first)

    def _note_unpublished(self, outgoing: Outgoing, reason: str) -> None:
        """Let the job say that it waits for the broker. If the database fails too, the job only says it later."""
        again = self._clock.now() + self._resend_first
        try:
            with self._database.write() as connection:
                outbox.note_publishing(connection, [outgoing.step], error=reason, next_send_at=again)
        except LivesnapError as error:
            _log.warning("note.failed", step=outgoing.step, reason=error.message)


def _informed(connection: Connection, job: StoredJob, event: Event) -> Event:
    """Return the event with what it carries of the inventory: where the vm is now, or which new volumes exist."""
    match event:
        case Answered() | TimedOut() | ResolveRequested():
            return replace(event, vm_host=inventory.current_host(connection, job.vm))
        case HostLost() if job.snapshot is not None:
            return replace(event, standing=snapshots.standing_volumes(connection, job.snapshot))
        case _:
            return event


def _is_idle(state: object, following: Next[Any]) -> bool:
    """Tell whether a step changes nothing: then timer and outstanding command stay as they are."""
    nothing_sent = following.send is None and following.wake_after is None and not following.records
    return nothing_sent and bool(following.state == state)
