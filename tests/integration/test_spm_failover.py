"""SPMs that die, sleep and lose their lease in the middle of a command, and the standby that goes on.

One broker and one storage domain serve a row of SPMs, each the standby of the one before. What a dead one left
unanswered is sent again, as the Manager's outbox does when a consumer reports a new incarnation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from common.ids import new_id
from common.images.metadata import Legality, VolumeState
from common.messaging.messages import (
    Command,
    CreateVolumes,
    DeleteVolumes,
    DiskSwitch,
    Failed,
    Kept,
    Refusal,
    Refused,
    VolumesCreated,
    VolumesDeleted,
)
from tests.bed.paths import short_dir
from tests.bed.servers import RedisServer
from tests.crash import arm, arm_stop, stopped_at
from tests.integration.spm_kit import SpmKit, in_use
from tests.integration.test_spm_worker import Scene, SpmWorker
from tests.wait import eventually

pytestmark = [
    pytest.mark.needs("qemu-img", "qemu-io", "redis-server"),
    pytest.mark.xdist_group("spm-failover"),
]

CREATING = ("spm.create.begun", "spm.create.linked", "spm.create.metadata_written")
DELETING = ("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned")
WITHIN_S = 5.0
"""A standby works so soon after the death of the active SPM; on an idle machine it takes a fifth of a second."""


@dataclass
class Row:
    """SPMs of one pool, in the order in which they become active."""

    scene: Scene
    crashes: Path
    takeovers_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._workers: list[SpmWorker] = []
        self.active = self.begin("spm.active")
        self.standby = self.begin("lease.wait")

    def begin(self, says: str) -> SpmWorker:
        """Start one more, and wait until it says so."""
        # It reports when it becomes active, and then no more: a report looks at the lease too, and would end a sleeper.
        settings = {"LIVESNAP_CRASH_POINTS": str(self.crashes), "LIVESNAP_REPORT_INTERVAL_S": "3600"}
        worker = self.scene.worker(**settings)
        self._workers.append(worker)
        worker.begin()
        eventually(lambda: says in worker.said(), timeout_s=60, what=f"an SPM that says {says}: {worker.log}")
        return worker

    def next(self) -> None:
        """Let the standby be the active one from now on, with a new one behind it."""
        self.active, self.standby = self.standby, self.begin("lease.wait")

    def killed_at(self, point: str, command: Command, attempt: int) -> None:
        """Have the active SPM die at a point of a command, and its standby finish the same command."""
        kind = VolumesCreated if isinstance(command, CreateVolumes) else VolumesDeleted
        hit = arm(self.crashes, point)
        step = self.scene.send(command, attempt=attempt)
        eventually(lambda: hit.exists() and not self.active.alive, timeout_s=30, what="the active SPM's death")
        self.standby.wait_active()
        self.scene.send(command, attempt=attempt, step=step)
        self.scene.answer(step, kind)
        answered = next(each for each in self.scene.heard if each.step == step and isinstance(each.body, kind))
        self.takeovers_s[point] = (answered.issued_at - death_of(hit)).total_seconds()
        self.next()

    def close(self) -> None:
        """End them all."""
        for worker in self._workers:
            if worker.alive:
                worker.sigcont()
            worker.close()


def death_of(hit: Path) -> datetime:
    """Return when a process died of a crash point: it renames the file and kills itself."""
    return datetime.fromtimestamp(hit.stat().st_ctime).astimezone()


@pytest.fixture(scope="module")
def row() -> Iterator[Row]:
    with short_dir() as folder, RedisServer(folder / "redis") as broker:
        scene = Scene(folder=folder, broker=broker, kit=SpmKit(folder / "main"))
        made = Row(scene=scene, crashes=folder / "crash-points")
        yield made
        made.close()
        scene.close()


def creation(kit: SpmKit) -> CreateVolumes:
    """Return a creation for a new machine with two disks."""
    names = [f"{new_id()[:8]}.qcow2" for _ in range(2)]
    return kit.creation(kit.switch(kit.image(names[0])), kit.switch(kit.image(names[1]), "vdb"))


def deletion_of(kit: SpmKit, command: CreateVolumes) -> DeleteVolumes:
    return DeleteVolumes(vm_id=kit.vm, disks=command.disks)


def states(kit: SpmKit, disks: tuple[DiskSwitch, ...]) -> set[VolumeState]:
    return {kit.metadata(disk.new).state for disk in disks}


def test_a_standby_finishes_whatever_the_active_one_died_of(row: Row) -> None:
    """Kill -9 in each crash window of a creation and of a deletion, one SPM after the other."""
    kit = row.scene.kit
    for point in CREATING:
        command = creation(kit)
        row.killed_at(point, command, 1)
        assert states(kit, command.disks) == {VolumeState.EXISTS}
        row.scene.ask(deletion_of(kit, command), VolumesDeleted, attempt=2)
    for point in DELETING:
        command = creation(kit)
        row.scene.ask(command, VolumesCreated, attempt=3)
        row.killed_at(point, deletion_of(kit, command), 4)
        assert states(kit, command.disks) == {VolumeState.DELETED}
    assert row.scene.reports()[-1].epoch >= len(CREATING) + len(DELETING)
    # The clock of one machine measures both ends. A busy machine makes all of them slow, but hardly the quickest one.
    assert min(row.takeovers_s.values()) < WITHIN_S, row.takeovers_s
    print(f"takeovers: {row.takeovers_s}")  # noqa: T201  (the measurement, with `pytest -s`)


def test_late_and_repeated_commands_meet_tombstones_at_every_successor(row: Row) -> None:
    """The storage itself knows what was deleted: not one of these SPMs has seen these commands before."""
    kit, scene = row.scene.kit, row.scene
    command = creation(kit)
    scene.ask(command, VolumesCreated, attempt=5)
    first = scene.ask(deletion_of(kit, command), VolumesDeleted, attempt=6)
    row.active.kill9()
    row.standby.wait_active()
    row.next()
    before = kit.everything()
    assert scene.ask(deletion_of(kit, command), VolumesDeleted, attempt=6) == first
    late = scene.ask(command, Refused, attempt=5)
    assert (late.why, late.highest) == (Refusal.STALE, 6)
    assert scene.ask(command, Failed, attempt=6).code == "volume_deleted"
    assert kit.everything() == before


def test_a_stopped_spm_is_not_superseded_and_goes_on(row: Row) -> None:
    kit, scene = row.scene.kit, row.scene
    command = kit.creation(kit.switch(kit.image("stopped.qcow2")))
    arm_stop(row.crashes, "spm.create.begun")
    step = scene.send(command, attempt=7)
    with stopped_at("spm.create.begun", row.crashes, row.active.pid):
        before = kit.everything()
        scene.send(command, attempt=7, step=step)
        assert [each for each in scene.listen() if each.step == step] == []
        assert kit.everything() == before
        assert "spm.active" not in row.standby.said()
    assert len(scene.answer(step, VolumesCreated).created) == 1
    assert "spm.active" not in row.standby.said()


def test_an_spm_that_slept_through_its_successors_creation_changes_nothing(row: Row) -> None:
    """A machine runs on the volume that the sleeper was about to make: it must not be put in its place again."""
    kit, scene = row.scene.kit, row.scene
    command = kit.creation(kit.switch(kit.image("slept.qcow2")))
    arm_stop(row.crashes, "spm.create.begun")
    step = scene.send(command, attempt=8)
    with ExitStack() as machine:
        with stopped_at("spm.create.begun", row.crashes, row.active.pid):
            lose_lease(row)
            scene.send(command, attempt=8, step=step)
            scene.answer(step, VolumesCreated)
            machine.enter_context(in_use(kit.file(command.disks[0].new)))
            before = kit.everything()
        check_sleeper_ends(row)
        assert kit.everything().items() >= {each for each in before.items() if not each[0].endswith(".tmp")}


def test_an_spm_that_slept_through_its_successors_deletion_changes_nothing(row: Row) -> None:
    """It had marked the volume illegal; its successor found it in use, and said that it is kept."""
    kit, scene = row.scene.kit, row.scene
    command = kit.creation(kit.switch(kit.image("kept.qcow2")))
    scene.ask(command, VolumesCreated, attempt=9)
    arm_stop(row.crashes, "spm.delete.marked")
    step = scene.send(deletion_of(kit, command), attempt=10)
    with in_use(kit.file(command.disks[0].new)):
        with stopped_at("spm.delete.marked", row.crashes, row.active.pid):
            lose_lease(row)
            scene.send(deletion_of(kit, command), attempt=10, step=step)
            assert [kept.why for kept in scene.answer(step, VolumesDeleted).kept] == [Kept.IN_USE]
            before = kit.everything()
        check_sleeper_ends(row)
        assert kit.everything() == before
    known = kit.metadata(command.disks[0].new)
    assert (known.state, known.legality) == (VolumeState.EXISTS, Legality.LEGAL)


def lose_lease(row: Row) -> None:
    """Take the active SPM's lock away, as a file server does that takes it for dead: another one gets it."""
    # Its last BRPOP lasts up to a second and would be given what is meant for its successor. (The Manager sends again.)
    blocked = row.scene.queue
    eventually(lambda: blocked.info("clients")["blocked_clients"] == 0, timeout_s=10, what="the sleeper's last BRPOP")
    lease = row.scene.kit.root / "spm.lease"
    copy = lease.with_name("copy")
    copy.write_bytes(lease.read_bytes())
    copy.rename(lease)
    row.standby.kill9()  # it waits for the lock of a file that is gone
    row.standby = row.begin("spm.active")


def check_sleeper_ends(row: Row) -> None:
    """Wait for the end of the SPM that has woken without its lease; its successor is the active one from here on."""
    eventually(lambda: not row.active.alive, timeout_s=30, what="the end of the SPM without a lease")
    assert "lease.lost" in row.active.said()
    row.next()
