"""The SPM as operators run it: Celery workers, Redis, signed messages, kill -9, a standby."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import redis

from common.clock import SystemClock
from common.ids import HostId, JobId, StepId, StorageDomainId, new_id
from common.messaging.broker import Publisher, make_app
from common.messaging.keys import Keyring, SigningKey, write_public
from common.messaging.messages import (
    Command,
    DeleteVolumes,
    Failed,
    HostInspected,
    InspectHost,
    InspectVolumes,
    Kept,
    Refusal,
    Refused,
    VolumesCreated,
    VolumesDeleted,
    VolumesInspected,
)
from common.messaging.queues import ANSWERS
from common.messaging.reports import SpmReport
from common.messaging.wire import SCHEMA_VERSION, Envelope, Sealed, readable, seal, task_of, unseal
from common.settings import SharedSettings
from tests.bed.paths import short_dir
from tests.bed.process import CLEAN_ENV, Daemon
from tests.bed.servers import RedisServer
from tests.integration.spm_kit import POOL, SpmKit, write_data
from tests.wait import eventually

pytestmark = pytest.mark.needs("qemu-img", "qemu-io", "redis-server")

ROOT = Path(__file__).resolve().parents[2]
SPM = f"spm.{POOL}"
T = TypeVar("T")


class SpmWorker(Daemon):
    """One SPM process, as an operator would start it."""

    def __init__(self, folder: Path, url: str, mounts: dict[str, Path], **environment: str) -> None:
        self._environment = {
            **CLEAN_ENV,
            "LIVESNAP_BROKER_URL": url,
            "LIVESNAP_KEY_FILE": str(folder / f"{SPM}.key"),
            "LIVESNAP_KEYS_DIR": str(folder / "keys"),
            "LIVESNAP_POOL": POOL,
            "LIVESNAP_STORAGE_DOMAINS": json.dumps({name: str(path) for name, path in mounts.items()}),
            "LIVESNAP_REPORT_INTERVAL_S": "1",
            **environment,
        }
        super().__init__("SPM", folder / f"spm-{uuid.uuid4().hex[:6]}.log")

    def start(self) -> None:
        """Start, and wait until it is active."""
        self.begin()
        self.wait_active()

    def begin(self) -> None:
        """Start without waiting: a standby does not become active."""
        node = f"spm-{uuid.uuid4().hex[:6]}@test"
        words = ["-A", "spm.worker", "worker", "-P", "threads", "-c", "2", "-n", node, "-l", "info"]
        self._spawn([sys.executable, "-m", "celery", *words], env=self._environment, cwd=ROOT)

    def wait_active(self) -> None:
        """Return when it has its lease and consumes."""
        eventually(lambda: "spm.active" in self.said(), timeout_s=30, what=f"an active SPM: {self.log}")

    def said(self) -> str:
        """Return its log so far."""
        return self.log.read_text() if self.log.exists() else ""


@dataclass
class Scene:
    """A broker, a storage domain, and this process as the Manager."""

    folder: Path
    broker: RedisServer
    kit: SpmKit

    def __post_init__(self) -> None:
        (self.folder / "keys").mkdir()
        self.key = SigningKey.generate(self.folder / "manager.key", "manager")
        write_public(self.folder / "keys", self.key)
        write_public(self.folder / "keys", SigningKey.generate(self.folder / f"{SPM}.key", SPM))
        self.keyring = Keyring(self.folder / "keys")
        settings = SharedSettings(broker_url=self.broker.url, task_events=False)
        self.publisher = Publisher(make_app(settings, name="test", queue=None))
        self.queue = redis.Redis(port=self.broker.port)
        self.heard: list[Envelope] = []

    def worker(self, **environment: str) -> SpmWorker:
        """Return an SPM that is not started yet."""
        return SpmWorker(self.folder, self.broker.url, {self.kit.root.name: self.kit.root}, **environment)

    def send(self, command: Command, *, attempt: int = 1, step: StepId | None = None) -> StepId:
        """Publish a command as the Manager's outbox does."""
        now = SystemClock().now()
        envelope = Envelope(
            v=SCHEMA_VERSION,
            sender="manager",
            to=SPM,
            job=JobId(new_id()),
            vm=getattr(command, "vm_id", None),
            step=step or StepId(new_id()),
            attempt=attempt,
            issued_at=now,
            deadline=now + timedelta(minutes=1),
            body=command,
        )
        self.publisher.publish(SPM, task_of(command), seal(envelope, self.key), readable(envelope))
        return envelope.step

    def answer(self, step: StepId, kind: type[T]) -> T:
        """Wait for the answer to that step, which must be of that kind."""
        found = eventually(
            lambda: [e for e in self.listen() if e.step == step], timeout_s=30, what=f"an answer to {step}"
        )
        assert isinstance(found[0].body, kind), found[0].body
        return found[0].body

    def ask(self, command: Command, kind: type[T], *, attempt: int = 1) -> T:
        """Send a command and wait for its answer."""
        return self.answer(self.send(command, attempt=attempt), kind)

    def reports(self) -> list[SpmReport]:
        """Return the reports heard so far."""
        return [envelope.body for envelope in self.listen() if isinstance(envelope.body, SpmReport)]

    def listen(self) -> list[Envelope]:
        """Return everything that was said to the Manager so far; every word of it must be authentic."""
        while (item := self.queue.rpop(ANSWERS)) is not None:
            assert isinstance(item, bytes)
            sender, body, signature = json.loads(base64.b64decode(json.loads(item)["body"]))[0]
            self.heard.append(unseal(Sealed(sender=sender, body=body, signature=signature), self.keyring, me="manager"))
        return self.heard

    def close(self) -> None:
        """Release what this process holds."""
        self.publisher.close()
        self.queue.close()
        self.kit.pool.close()
        self.kit.kill_host()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with short_dir() as folder, RedisServer(folder / "redis") as broker:
        made = Scene(folder=folder, broker=broker, kit=SpmKit(folder / "main"))
        yield made
        made.close()


def test_every_command_is_answered_and_reports_come_unasked(scene: Scene) -> None:
    kit = scene.kit
    with scene.worker():
        report = eventually(scene.reports, timeout_s=10, what="a first report")[0]
        assert (report.pool_id, report.sequence, report.epoch) == (POOL, 1, 1)
        assert [(m.storage_domain_id, m.name, m.problem) for m in report.storage_domains] == [(kit.id, "main", "")]
        assert 0 < report.storage_domains[0].free_bytes <= report.storage_domains[0].total_bytes

        creation = kit.creation(kit.switch(kit.image("web.qcow2")), kit.switch(kit.image("data.qcow2"), "vdb"))
        created = scene.ask(creation, VolumesCreated)
        assert [found.volume for found in created.created] == [disk.new for disk in creation.disks]
        inspected = scene.ask(InspectVolumes(volumes=(creation.disks[0].new,)), VolumesInspected, attempt=0)
        assert inspected.found == created.created[:1]

        write_data(kit.file(creation.disks[1].new))
        deletion = DeleteVolumes(vm_id=kit.vm, disks=creation.disks)
        deleted = scene.ask(deletion, VolumesDeleted, attempt=2)
        assert deleted.gone == (creation.disks[0].new.volume_id,)
        assert [kept.why for kept in deleted.kept] == [Kept.NOT_EMPTY]

        stale = scene.ask(creation, Refused, attempt=1)
        assert (stale.why, stale.highest) == (Refusal.STALE, 2)
        look = InspectHost(host_id=HostId("h1"), storage_domains=(kit.id,))
        assert scene.ask(look, HostInspected, attempt=0).held_on == (kit.id,)
        kit.kill_host()
        assert scene.ask(look, HostInspected, attempt=0).held_on == ()
        kit.revive_host()
        elsewhere = InspectHost(host_id=HostId("h1"), storage_domains=(StorageDomainId(new_id()),))
        assert scene.ask(elsewhere, Failed, attempt=0).code == "storage_domain_unknown"
        missing = scene.ask(kit.creation(kit.switch(kit.at("nowhere.qcow2"))), Failed)
        assert missing.code == "volume_not_found"
        eventually(lambda: scene.reports()[-1].sequence >= 2, timeout_s=10, what="a second report")


def test_unmounted_storage_domain_is_refused_reported_and_served_when_it_is_back(scene: Scene) -> None:
    kit = scene.kit
    creation = kit.creation(kit.switch(kit.image("web.qcow2")))
    with scene.worker():
        away = kit.root.rename(scene.folder / "away")
        kit.root.mkdir()
        assert scene.ask(creation, Refused).why is Refusal.NOT_READY
        look = InspectHost(host_id=HostId("h1"), storage_domains=(kit.id,))
        assert scene.ask(look, Refused).why is Refusal.NOT_READY, "what is not seen must not pass for free"
        eventually(
            lambda: scene.reports() and scene.reports()[-1].storage_domains[0].problem,
            timeout_s=10,
            what="a report of the missing mount",
        )
        assert list(kit.root.iterdir()) == []
        kit.root.rmdir()
        away.rename(kit.root)
        assert len(scene.ask(creation, VolumesCreated).created) == 1


def test_spm_that_lost_its_lease_ends(scene: Scene) -> None:
    with scene.worker() as worker:
        (scene.kit.root / "spm.lease").write_text("epoch 99\n")
        eventually(lambda: not worker.alive, timeout_s=10, what="the end of an SPM without a lease")
        assert "lease.lost" in worker.said()


def test_sigterm_ends_it_cleanly_and_frees_the_lease(scene: Scene) -> None:
    with scene.worker() as worker:
        os.kill(worker.pid, signal.SIGTERM)
        eventually(lambda: not worker.alive, timeout_s=15, what="the SPM's end")
        scene.kit.pool.wait_for_leases()
        assert scene.kit.pool.epoch == 2
        assert "Traceback" not in worker.said()


def test_sigterm_ends_a_standby_at_once(scene: Scene) -> None:
    scene.kit.pool.wait_for_leases()
    standby = scene.worker()
    standby.begin()
    try:
        eventually(lambda: "lease.wait" in standby.said(), timeout_s=30, what="the standby to wait")
        os.kill(standby.pid, signal.SIGTERM)
        eventually(lambda: not standby.alive, timeout_s=5, what="the standby's end")
    finally:
        standby.close()


def test_without_any_storage_domain_it_says_so(scene: Scene) -> None:
    creation = scene.kit.creation(scene.kit.switch(scene.kit.image("web.qcow2")))
    with scene.worker(LIVESNAP_STORAGE_DOMAINS="{}"):
        assert scene.ask(creation, Failed).code == "storage_domain_unknown"
        assert eventually(scene.reports, timeout_s=10, what="a report")[0].storage_domains == ()
