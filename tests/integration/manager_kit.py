"""A Manager without its worker: its parts on a real database, what it sends in a list, and a small fleet to report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from common.clock import Clock
from common.errors import BrokerUnavailable, RequestRefused
from common.ids import HostId, PoolId, StepId, StorageDomainId, VmId, adopted_volume_id, derived_id, new_id
from common.messaging.keys import Keyring, SigningKey, write_public
from common.messaging.messages import (
    Answer,
    CreateVolumes,
    DeleteVolumes,
    HostInspected,
    InspectHost,
    LeavesObserved,
    Outcome,
    VolumeFound,
    VolumesCreated,
    VolumesDeleted,
)
from common.messaging.reports import (
    AgentState,
    DiskReport,
    HostReport,
    MountReport,
    Report,
    SpmReport,
    VmReport,
    VmState,
)
from common.messaging.shell import Publish
from common.messaging.wire import SCHEMA_VERSION, Envelope, Sealed, unseal
from common.receipt import Receipt
from manager.conductor import Conductor
from manager.host_checks import HostChecks
from manager.relay import Relay
from manager.removal import HostRemoval
from manager.reports import Reports
from manager.results import Results
from manager.service import Service, SnapshotRequest
from manager.settings import ManagerSettings
from manager.store.session import Database
from manager.store.tables import jobs, outbox, snapshots
from manager.timers import Timers
from manager.views import JobView

H1, H2, POOL = HostId("h1"), HostId("h2"), PoolId("default")
STORAGE = StorageDomainId(derived_id("test", "storage"))
ROOT = "/srv/images"


def vm_id(name: str) -> VmId:
    """Return the id that a test's vm of this name always has."""
    return VmId(derived_id("test vm", name))


def disk(path: str, target: str = "vda", **changes: Any) -> DiskReport:
    """Return a healthy disk whose live and persistent source are `path` below the storage domain."""
    healthy = DiskReport(
        target=target,
        device="disk",
        source_type="file",
        bus="virtio",
        format="qcow2",
        source=f"{ROOT}/{path}",
        persistent_source=f"{ROOT}/{path}",
        storage_domain_id=STORAGE,
        path=path,
        error_policy="stop",
    )
    return replace(healthy, **changes)


def vm(name: str = "web1", *disks: DiskReport, **changes: Any) -> VmReport:
    """Return a healthy running vm, with one disk unless told."""
    healthy = VmReport(
        vm_id=vm_id(name),
        name=name,
        state=VmState.RUNNING,
        persistent=True,
        agent=AgentState.CONNECTED,
        disks=disks or (disk(f"{name}.qcow2"),),
        runtime_id="run",
    )
    return replace(healthy, **changes)


class Fleet:
    """A Manager with its database; hosts and SPMs are this object's methods.

    `sent` holds what was published; while `broker_is_up` is False nothing can be. `on_check` is what a host does with
    the question of a dry run. `held_locks` is what the SPM sees of the hosts' own locks whenever it is asked; None: it
    does not answer.
    """

    def __init__(
        self, database: Database, folder: Path, clock: Clock, *, publish: Publish | None = None, **settings: Any
    ) -> None:
        self.database = database
        self.clock = clock
        self.sent: list[tuple[str, Sealed]] = []
        self.broker_is_up = True
        self.held_locks: set[HostId] | None = set()
        self.removed_queues: list[str] = []
        self.on_check: Callable[[Envelope], object] = lambda _: None
        self.settings = ManagerSettings(state_dir=folder, **{"check_wait_s": 0.3, "keys_dir": folder, **settings})
        key_file = folder / "manager.key"
        known = key_file.exists()
        key = SigningKey.load(key_file, "manager") if known else SigningKey.generate(key_file, "manager")
        write_public(folder, key)
        self._keyring = Keyring(folder)
        self.conductor = Conductor(database, key, publish or self.publish, clock, settings=self.settings)
        self.host_checks = HostChecks(database, key, publish or self.publish, clock, settings=self.settings)
        self.removal = HostRemoval(
            database, self.conductor, self.host_checks, self._keyring, clock, remove_queue=self.removed_queues.append
        )
        self.service = Service(
            database,
            self.conductor,
            clock,
            settings=self.settings,
            host_checks=self.host_checks,
            removal=self.removal,
        )
        self.relay = Relay(database, self.publish, clock, settings=self.settings)
        self.timers = Timers(database, self.conductor, clock)
        self.reports = Reports(
            database,
            clock,
            self._keyring,
            wake_relay=self.relay.wake,
            look_early=self.conductor.look_early,
            silent_after=self.settings.host_silent_after,
        )
        self._sequence = 0

    def publish(self, queue: str, task: str, sealed: Sealed, readable: str) -> None:
        """Be the broker."""
        if not self.broker_is_up:
            raise BrokerUnavailable("broker_unavailable", "no broker")
        if task == "host.check":
            self.on_check(unseal(sealed, self._keyring, me=queue))
            return
        self.sent.append((queue, sealed))
        if task == "spm.inspect_host" and self.held_locks is not None:
            asked = self.last()
            assert isinstance(asked.body, InspectHost)
            held = asked.body.storage_domains if asked.body.host_id in self.held_locks else ()
            seen = HostInspected(held_on=held)
            self.host_checks.take(self.envelope(asked.to, seen, step=asked.step), seen)

    def commands(self) -> list[Envelope]:
        """Return everything that was sent, as its consumers would read it."""
        return [unseal(sealed, self._keyring, me=queue) for queue, sealed in self.sent]

    def unanswered(self) -> list[Envelope]:
        """Return the commands that the outbox has no answer to."""
        wanted = select(outbox).where(outbox.c.closed_at.is_(None))
        with self.database.read() as connection:
            rows = connection.execute(wanted).all()
        sealed = [(row.queue, Sealed(sender=row.sender, body=row.body, signature=row.signature)) for row in rows]
        return [unseal(each, self._keyring, me=queue) for queue, each in sealed]

    def last(self) -> Envelope:
        """Return the last command sent."""
        return self.commands()[-1]

    def last_command(self) -> Envelope:
        """Return the last command of a job that was sent (not a question without one)."""
        return next(envelope for envelope in reversed(self.commands()) if envelope.job is not None)

    # ---- what hosts and SPMs say --------------------------------------------------------------------------------

    def report_spm(self, *mounts: MountReport, pool: PoolId = POOL, **changes: Any) -> None:
        """Let the SPM of a pool report; by default the one healthy storage domain."""
        self._sequence += 1
        report = SpmReport(
            pool_id=pool,
            incarnation="spm-1",
            sequence=self._sequence,
            epoch=1,
            observed_at=self.clock.now(),
            storage_domains=mounts or (mount(),),
        )
        report = replace(report, **changes)
        self.reports.take_spm(self.envelope(f"spm.{pool}", report), report)

    def report_host(self, *vms: VmReport, host: HostId = H1, **changes: Any) -> None:
        """Let a host report all of its vms."""
        self._sequence += 1
        report = HostReport(
            host_id=host,
            boot_id="boot",
            incarnation=f"{host}-1",
            sequence=self._sequence,
            observed_at=self.clock.now(),
            libvirt_up=True,
            full=True,
            vms=vms,
            storage_domains=(mount(),),
        )
        report = replace(report, **changes)
        self.reports.take_host(self.envelope(f"host.{host}", report), report)

    def answer(self, answer: Answer, command: Envelope | None = None, **changes: Any) -> bool:
        """Answer a command (the last one sent) as its consumer; tell whether it moved the job."""
        asked = command or self.last()
        envelope = self.envelope(asked.to, answer, job=asked.job, vm=asked.vm, step=asked.step, attempt=asked.attempt)
        return self.conductor.answer(replace(envelope, **changes), answer)

    def answer_check(self, asked: Envelope, answer: Answer, **changes: Any) -> None:
        """Answer the question of a dry run as the host that was asked."""
        envelope = self.envelope(asked.to, answer, vm=asked.vm, step=asked.step)
        Results(self.conductor, self.host_checks).take(replace(envelope, **changes), answer)

    def envelope(self, sender: str, body: Answer | Report, **changes: Any) -> Envelope:
        """Return an envelope to the Manager."""
        now = self.clock.now()
        blank = Envelope(
            v=SCHEMA_VERSION,
            sender=sender,
            to="manager",
            job=None,
            vm=None,
            step=StepId(new_id()),
            attempt=0,
            issued_at=now,
            deadline=now + timedelta(minutes=1),
            body=body,
        )
        return replace(blank, **changes)

    # ---- stories ------------------------------------------------------------------------------------------------

    def create(self, vm: str = "web1", **fields: Any) -> JobView:
        """Ask for a snapshot."""
        job = self.service.create_snapshot(SnapshotRequest(vm=vm, **fields))
        assert isinstance(job, JobView)
        return job

    def complete(self, job: JobView) -> JobView:
        """Answer everything that a job that has just been accepted sends, so that it completes."""
        self.answer(created(self.last()))
        self.answer(observed(Outcome.ALL_NEW, receipt=receipt(self.clock.now())))
        return self.service.show_job(job.id)


def mount(**changes: Any) -> MountReport:
    """Return the healthy storage domain."""
    healthy = MountReport(storage_domain_id=STORAGE, name="main", root=ROOT, free_bytes=1 << 40, total_bytes=1 << 41)
    return replace(healthy, **changes)


def created(asked: Envelope) -> VolumesCreated:
    """Return the SPM's answer to CreateVolumes: done, each parent that is not livesnap's own adopted with its base."""
    assert isinstance(asked.body, CreateVolumes)
    first_met = [each for each in asked.body.disks if not each.parent.path.startswith("images/")]
    made = tuple(
        VolumeFound(volume=each.new, disk_id=each.disk_id, parent_id=each.parent.volume_id, size_bytes=1 << 30)
        for each in asked.body.disks
    )
    base = adopted_volume_id(STORAGE, "base.qcow2")
    parents = tuple(
        VolumeFound(volume=each.parent, disk_id=each.disk_id, parent_id=base, size_bytes=1 << 30, origin="adopted")
        for each in first_met
    )
    bases = tuple(
        VolumeFound(
            volume=replace(each.parent, volume_id=base, path="base.qcow2"),
            disk_id=each.disk_id,
            parent_id=None,
            size_bytes=1 << 30,
            immutable=True,
            origin="adopted",
        )
        for each in first_met
    )
    return VolumesCreated(created=made, adopted=parents + bases)


def deleted(asked: Envelope) -> VolumesDeleted:
    """Return the SPM's answer to DeleteVolumes: all gone."""
    assert isinstance(asked.body, DeleteVolumes)
    return VolumesDeleted(gone=tuple(each.new.volume_id for each in asked.body.disks))


def receipt(switched_at: datetime = datetime(2026, 11, 23, tzinfo=UTC)) -> Receipt:
    """Return the receipt of a quiesced pivot."""
    return Receipt(
        vm_state="running",
        quiesce=True,
        switched_at=switched_at,
        own_switch=True,
        freeze_sent=True,
        freeze_confirmed=True,
        frozen_filesystems=2,
        thaw_confirmed=True,
        thawed_filesystems=2,
    )


def observed(outcome: Outcome, code: str = "", receipt: Receipt | None = None) -> LeavesObserved:
    """Return a host's observation."""
    return LeavesObserved(
        outcome=outcome,
        boot_id="boot",
        runtime_id="run",
        code=code,
        message=code,
        receipt=receipt,
        live_xml="<domain/>",
        persistent_xml="<domain/>",
    )


@contextmanager
def fleet_on(url: str, folder: Path, clock: Clock, **settings: Any) -> Iterator[Fleet]:
    """Yield a Manager on an existing database, as a further process would have it."""
    database = Database(url)
    try:
        yield Fleet(database, folder, clock, **settings)
    finally:
        database.close()


def refusal(fleet: Fleet, vm: str = "web1", **fields: Any) -> str:
    """Return the code that a request is refused with; nothing must be left of it."""
    before = counted(fleet)
    with pytest.raises(RequestRefused) as refused:
        fleet.create(vm, **fields)
    assert counted(fleet) == before
    assert refused.value.hint
    return refused.value.code


def counted(fleet: Fleet) -> list[Any]:
    """Return how many jobs and snapshots there are, and everything that was sent."""
    with fleet.database.read() as connection:
        tables = (jobs, snapshots)
        return [connection.execute(select(func.count()).select_from(table)).scalar() for table in tables] + fleet.sent
