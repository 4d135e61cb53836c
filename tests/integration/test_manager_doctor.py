"""Doctor in the Manager: whom it asks, what becomes of its plans, and that they never meet a job half way."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from common.ids import disk_id
from common.messaging.messages import (
    AdoptVolumes,
    Answer,
    Command,
    CreateVolumes,
    DeleteVolumes,
    LeavesObserved,
    Outcome,
    Probe,
    Refusal,
    Refused,
    VolumeFound,
    VolumesDeleted,
    VolumesInspected,
)
from common.messaging.reports import VmState
from common.messaging.surveys import (
    DiskSeen,
    FileSeen,
    HostSurveyed,
    LayerSeen,
    MetadataSeen,
    Spot,
    StorageSurveyed,
    SurveyHost,
    SurveyStorage,
    VmSeen,
    VolumeSeen,
)
from manager.doctor.examine import Examiner
from manager.doctor.facts import Facts
from manager.doctor.repair import Doctor
from manager.host_checks import NoAnswer
from manager.store import facts as facts_store
from manager.views import DiagnosisView
from tests.fakes.clock import FakeClock
from tests.integration.manager_kit import H2, STORAGE, Fleet, disk, observed, refusal, vm, vm_id

pytest_plugins = ["tests.databases", "tests.integration.manager_fixtures"]
WEB1, DISK = vm_id("web1"), disk_id(vm_id("web1"), "vda")
FOREIGN = "web1.snap1"


class Consumers:
    """The hosts and the SPM, as doctor's questions find them; `asked` is what they were asked."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.asked: list[tuple[str, Command]] = []
        self.silent: set[str] = set()
        self.chain: tuple[str, ...] = ("web1.qcow2",)
        self.files: dict[str, FileSeen] = {}
        self.volumes: list[VolumeSeen] = []

    def __call__(self, queue: str, command: Command) -> Answer:
        self.asked.append((queue, command))
        if queue in self.silent:
            raise NoAnswer(f"{queue} did not answer")
        match command:
            case SurveyHost():
                return HostSurveyed(vms=(self._vm(),) if queue == "host.h1" else ())
            case SurveyStorage(named=()):
                # one volume on each page
                number = int(command.after or 0)
                following = str(number + 1) if number + 1 < len(self.volumes) else ""
                return replace(self._storage(), volumes=tuple(self.volumes[number : number + 1]), following=following)
            case SurveyStorage(named=named):
                seen = tuple(self.files[each.path] for each in named if each.path in self.files)
                return replace(self._storage(), named=seen)
            case _:
                raise AssertionError(command)

    def _storage(self) -> StorageSurveyed:
        return StorageSurveyed(storage_domain_id=STORAGE, locking_is_proven=True)

    def _vm(self) -> VmSeen:
        live = tuple(
            LayerSeen(path=f"/srv/{path}", format="qcow2", spot=Spot(storage_domain_id=STORAGE, path=path))
            for path in self.chain
        )
        seen = DiskSeen(target="vda", live=live, persistent=live)
        return VmSeen(vm_id=WEB1, name="web1", state=VmState.RUNNING, is_active=True, disks=(seen,))

    def file(self, path: str, on: str = "", **changes: Any) -> FileSeen:
        """Let a file be there, in use."""
        seen = FileSeen(
            path=path,
            stored_bytes=1,
            modified_at=self.fleet.clock.now(),
            is_locked=True,
            size_bytes=1 << 30,
            backing=Spot(storage_domain_id=STORAGE, path=on) if on else None,
            backing_format="qcow2" if on else "",
        )
        self.files[path] = replace(seen, **changes)
        return self.files[path]


@pytest.fixture
def consumers(fleet: Fleet) -> Consumers:
    made = Consumers(fleet)
    made.file("web1.qcow2")
    return made


@pytest.fixture
def doctor(fleet: Fleet, consumers: Consumers) -> Doctor:
    return Doctor(fleet.database, fleet.conductor, examiner(fleet, consumers), fleet.clock)


def examiner(fleet: Fleet, ask: Callable[[str, Command], Answer]) -> Examiner:
    return Examiner(fleet.database, ask, fleet.clock, silent_after=timedelta(seconds=60))


@pytest.fixture
def behind(fleet: Fleet, consumers: Consumers) -> Fleet:
    """Somebody has taken a snapshot of web1, and its host has reported so."""
    consumers.chain = (FOREIGN, "web1.qcow2")
    consumers.file(FOREIGN, "web1.qcow2")
    fleet.report_host(vm("web1", disk(FOREIGN)))
    assert refusal(fleet) == "vm_off_chain"
    return fleet


def codes(report: DiagnosisView) -> list[str]:
    return [finding.code for finding in report.findings]


def adopted(command: AdoptVolumes) -> VolumesInspected:
    """Return the SPM's answer."""
    return VolumesInspected(
        found=tuple(
            VolumeFound(
                volume=each.volume,
                disk_id=each.disk_id,
                parent_id=each.parent.volume_id if each.parent else None,
                size_bytes=1 << 30,
                origin="adopted",
            )
            for each in command.volumes
        )
    )


# ---- looking --------------------------------------------------------------------------------------------------------


def test_everybody_is_asked_and_nothing_is_sent_or_changed(fleet: Fleet, consumers: Consumers, doctor: Doctor) -> None:
    fleet.report_host(host=H2)
    assert doctor.examine() == DiagnosisView(findings=(), left_out=())
    assert [queue for queue, _ in consumers.asked] == ["host.h1", "host.h2", "spm.default", "spm.default"]
    assert fleet.sent == []
    assert fleet.service.list_jobs() == []


def test_who_is_silent_is_told_and_not_asked_for_long(
    fleet: Fleet, consumers: Consumers, doctor: Doctor, clock: FakeClock
) -> None:
    fleet.report_host(host=H2)
    clock.advance(90)
    fleet.report_host(vm())
    consumers.silent = {"spm.default"}
    report = doctor.examine()
    assert sorted(finding.subject for finding in report.findings) == ["host h2", "storage domain main"]
    assert "host.h2" not in [queue for queue, _ in consumers.asked]


def test_all_pages_are_read(consumers: Consumers, doctor: Doctor) -> None:
    consumers.volumes = [leftover(consumers, f"{number:08}-0000-0000-0000-000000000000") for number in range(3)]
    assert codes(doctor.examine()) == ["volume_unowned"] * 3


def leftover(consumers: Consumers, volume: str) -> VolumeSeen:
    """Return an empty volume that nobody knows."""
    path = f"images/{DISK}/{volume}.qcow2"
    metadata = MetadataSeen(
        volume_id=volume,  # type: ignore[arg-type]
        disk_id=DISK,
        vm_id=WEB1,
        path=path,
        format="qcow2",
        parent_id=None,
        snapshot_id=None,
        size_bytes=1,
        generation=1,
    )
    return VolumeSeen(metadata=metadata, file=consumers.file(path, "web1.qcow2", is_locked=False, is_empty=True))


def test_a_machine_that_a_job_holds_is_left_out(behind: Fleet, doctor: Doctor) -> None:
    started = doctor.repair()
    assert started.findings[0].job
    while_it_runs = doctor.repair()
    assert (while_it_runs.findings, while_it_runs.left_out) == ((), ("web1",))
    assert len(behind.service.list_jobs()) == 1


def test_a_machine_that_a_script_has_locked_is_left_out(behind: Fleet, doctor: Doctor) -> None:
    """A clone or a backup reads its chain: nothing may be committed, moved or adopted meanwhile."""
    lock = behind.service.lock_vm("web1", reason="clone")
    report = doctor.repair()
    assert (report.findings, report.left_out) == ((), ("web1",))
    behind.service.unlock_vm("web1", lock=lock.id)
    assert codes(doctor.examine()) == ["leaf_foreign"]


# ---- a snapshot that somebody else took ------------------------------------------------------------------------------


def test_it_is_adopted(behind: Fleet, doctor: Doctor) -> None:
    job = doctor.repair().findings[0].job
    assert job is not None
    probe = behind.last()
    assert (probe.to, probe.job) == ("host.h1", job)
    assert isinstance(probe.body, Probe)
    assert [(each.old.path, each.new.path) for each in probe.body.disks] == [("web1.qcow2", FOREIGN)]
    behind.answer(observed(Outcome.ALL_NEW))
    adopt = behind.last()
    assert (adopt.to, adopt.attempt) == ("spm.default", probe.attempt + 1)
    assert isinstance(adopt.body, AdoptVolumes)
    behind.answer(adopted(adopt.body))

    ended = behind.service.show_job(job)
    assert (ended.state, ended.kind, ended.error) == ("completed", "repair", None)
    (snapshot,) = behind.service.list_snapshots("web1")
    assert snapshot.name.startswith("found-")
    assert (snapshot.consistency, snapshot.consistency_reason, snapshot.taken_at) == ("crash", "found", None)
    assert [each.path for each in snapshot.disks] == ["web1.qcow2"]
    assert behind.service.show_vm("web1").problem == ""
    behind.create()
    above = behind.last().body
    assert isinstance(above, CreateVolumes)
    assert [each.old.path for each in above.disks] == [FOREIGN]


@pytest.mark.parametrize(
    "answer", [observed(Outcome.NONE), observed(Outcome.BAD, "chain_unexpected"), observed(Outcome.NOT_HERE)]
)
def test_what_the_host_does_not_confirm_is_not_adopted(behind: Fleet, doctor: Doctor, answer: LeavesObserved) -> None:
    job = doctor.repair().findings[0].job
    assert job is not None
    behind.answer(answer)
    ended = behind.service.show_job(job)
    assert ended.state == "rolled_back"
    assert ended.error is not None
    assert behind.service.list_snapshots("web1") == []
    with behind.database.read() as connection:
        assert facts_store.leaves_of(connection, WEB1)["vda"].path == "web1.qcow2"
    again = doctor.repair()
    assert again.findings[0].job not in (None, job), "its name is free again"


def test_a_host_that_cannot_look_is_asked_again(behind: Fleet, doctor: Doctor, clock: FakeClock) -> None:
    job = doctor.repair().findings[0].job
    assert job is not None
    behind.answer(Refused(why=Refusal.NOT_READY, message="libvirt is down", code="libvirt_unavailable"))
    assert behind.service.show_job(job).waiting_for
    clock.advance(5)
    behind.timers.sweep()
    assert isinstance(behind.last().body, Probe)
    assert behind.answer(observed(Outcome.ALL_NEW))


class Overtaken(Examiner):
    """Right after it has looked, something happens."""

    happens: Callable[[], object]

    def examine(self) -> Facts:
        facts = super().examine()
        self.happens()
        return facts


@pytest.mark.parametrize("by", ["snapshot", "lock"])
def test_a_plan_that_was_overtaken_is_not_begun(fleet: Fleet, consumers: Consumers, by: str) -> None:
    """A snapshot began and ended since the look: no job stands in the way, and still the plan is void."""
    consumers.chain = (FOREIGN, "web1.qcow2")
    consumers.file(FOREIGN, "web1.qcow2")
    late = Overtaken(fleet.database, consumers, fleet.clock, silent_after=timedelta(seconds=60))
    late.happens = {
        "snapshot": lambda: fleet.complete(fleet.create()),
        "lock": lambda: fleet.service.lock_vm("web1", reason="clone"),
    }[by]
    report = Doctor(fleet.database, fleet.conductor, late, fleet.clock).repair()
    assert [(finding.code, finding.job) for finding in report.findings] == [("leaf_foreign", None)]
    assert [job.kind for job in fleet.service.list_jobs()] == (["snapshot"] if by == "snapshot" else [])


# ---- an orphan ------------------------------------------------------------------------------------------------------


def test_an_orphan_is_deleted_after_every_host_has_answered(fleet: Fleet, consumers: Consumers, doctor: Doctor) -> None:
    fleet.report_host(host=H2)
    base = leftover(consumers, "00000000-0000-0000-0000-000000000001")
    known = replace(base.metadata, path="web1.qcow2", is_created=False)
    parent = VolumeSeen(metadata=known, file=consumers.file("web1.qcow2"))
    orphan = leftover(consumers, "00000000-0000-0000-0000-000000000002")
    orphan = replace(orphan, metadata=replace(orphan.metadata, parent_id=known.volume_id))
    consumers.volumes = [parent, orphan]

    found = next(finding for finding in doctor.repair().findings if finding.code == "volume_orphan")

    assert found.job is not None
    asked = [fleet.last()]
    fleet.answer(observed(Outcome.NOT_HERE))
    asked.append(fleet.last())
    fleet.answer(observed(Outcome.NONE))
    assert [each.to for each in asked] == ["host.h2", "host.h1"]
    command = fleet.last().body
    assert isinstance(command, DeleteVolumes)
    assert [each.new.volume_id for each in command.disks] == [orphan.metadata.volume_id]
    assert command.committed == ()
    fleet.answer(VolumesDeleted(gone=(orphan.metadata.volume_id,)))
    assert fleet.service.show_job(found.job).state == "completed"
