"""A hypervisor host with its agent and guard as processes of their own; the test plays the Manager and the SPM."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.ids import HostId, JobId, StepId, VmId, new_id
from common.images.layout import host_lock_path
from common.messaging.broker import Publisher, make_app
from common.messaging.messages import Answer, DiskSwitch, LeavesObserved, Pivot, Probe, Repair, VolumeAt
from common.messaging.queues import ANSWERS
from common.messaging.reports import HostReport
from common.messaging.wire import Envelope, Sealed, readable, seal, task_of, unseal
from common.settings import SharedSettings
from hostagent import places
from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost, shared_dir
from tests.bed.paths import short_dir
from tests.bed.process import CLEAN_ENV, Daemon
from tests.bed.servers import RedisServer
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.integration.spm_kit import SpmKit
from tests.unit.common.messaging.samples import Parties
from tests.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
HOST = HostId("h1")
QUEUE = f"host.{HOST}"
MANAGER = "manager"


class GuardProcess(Daemon):
    """`python -m hostagent.guard`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.socket = places.guard_socket(Path(environment["LIVESNAP_STATE_DIR"]))
        super().__init__("guard", folder / "guard.log")

    def start(self) -> None:
        before = self._whole_log().count("guard_ready")
        self._spawn([sys.executable, "-m", "hostagent.guard"], env=self._environment, cwd=ROOT)
        eventually(lambda: self._whole_log().count("guard_ready") > before, timeout_s=20, what="the guard")

    def said(self) -> str:
        """Return what it has logged since its last start."""
        return self._whole_log().rpartition("guard_ready")[2]

    def _whole_log(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


class AgentProcess(Daemon):
    """`celery -A hostagent.worker worker`."""

    def __init__(self, folder: Path, environment: Mapping[str, str], name: str = "agent", *, threads: int = 4) -> None:
        self._environment = environment
        self._threads = threads
        self._node = f"{name}-{new_id()[:6]}@test"
        super().__init__(name, folder / f"{name}.log")

    def start(self, **more: str) -> None:
        """Start, with more environment if wanted, and wait until it consumes."""
        before = self.said().count(" ready.")
        pool = ["-P", "threads", "-c", str(self._threads)]
        words = ["-A", "hostagent.worker", "worker", *pool, "-l", "info", "-n", self._node]
        environment = {**self._environment, **more}
        self._spawn([sys.executable, "-m", "celery", *words], env=environment, cwd=ROOT)
        eventually(lambda: self._is_ready(before), timeout_s=30, what=f"{self.what}: {self.log}")

    def said(self) -> str:
        """Return its log so far."""
        return self.log.read_text() if self.log.exists() else ""

    def _is_ready(self, before: int) -> bool:
        assert self.alive, self._last_words()
        return self.said().count(" ready.") > before


class HostScene:
    """Redis, one host with libvirtd, guard and agent, one storage domain; the test is the Manager."""

    def __init__(self, root: Path, host: IsolatedHost, redis: RedisServer) -> None:
        self.host = host
        storage = shared_dir(root / "storage", host)
        self.kit = SpmKit(storage, host_alive=False)
        self.parties = Parties(root)
        for sender in (MANAGER, QUEUE):
            self.parties.key(sender)
        self.environment = {
            **CLEAN_ENV,
            "LIVESNAP_BROKER_URL": redis.url,
            "LIVESNAP_KEY_FILE": str(root / f"{QUEUE}.key"),
            "LIVESNAP_KEYS_DIR": str(root),
            "LIVESNAP_HOST_ID": HOST,
            "LIVESNAP_LIBVIRT_URI": host.uri,
            "LIVESNAP_STATE_DIR": str(root / "state"),
            "LIVESNAP_STORAGE_DOMAINS": json.dumps({"main": str(storage)}),
        }
        self.guard = GuardProcess(root, self.environment)
        self.agent = AgentProcess(root, self.environment)
        self._root = root
        self._redis = redis
        self._app = make_app(SharedSettings(broker_url=redis.url, task_events=False), name="test", queue=None)
        self._publisher = Publisher(self._app)
        self._heard: list[Envelope] = []
        self._volumes: dict[str, VolumeAt] = {}

    def start(self) -> None:
        """Start guard and agent."""
        self.guard.start()
        self.agent.start()

    def close(self) -> None:
        """Stop them and close what is open."""
        self.agent.close()
        self.guard.close()
        self._publisher.close()
        self.kit.close()

    def second_agent(self) -> AgentProcess:
        """Return another agent process of the same host, not started."""
        return AgentProcess(self._root, self.environment, "agent2")

    @property
    def state_dir(self) -> Path:
        """The state folder that agents and guard share."""
        return Path(self.environment["LIVESNAP_STATE_DIR"])

    @property
    def host_lock(self) -> Path:
        """The host's own lock on the storage domain."""
        return self.kit.root / host_lock_path(HOST)

    # ---- machines -----------------------------------------------------------------------------------------------

    def boot(self, name: str, *, disks: int = 1, **options: Any) -> BedVm:
        """Boot a vm with disks on the storage domain and wait for its writer and its agent."""
        targets = [f"vd{letter}" for letter in "abcdefgh"[:disks]]
        specs = tuple(DiskSpec(path=self._disk(name, target), target=target) for target in targets)
        vm = define_vm(self.host, VmSpec(name=name, disks=specs, **options))
        vm.start()
        vm.wait_ready()
        if options.get("load", "writer") == "writer":
            vm.wait_acks(more=3)
        if options.get("agent", True) and options.get("ga", "normal") not in ("none", "stop"):
            vm.wait_agent()
        return vm

    def _disk(self, name: str, target: str) -> Path:
        return make_disk(self.kit.root / f"{name}-{target}.qcow2", owner=self.host.owner)

    def switches(self, vm: BedVm, *, attempt: int = 1) -> tuple[DiskSwitch, ...]:
        """Make a new leaf above each disk's present one, as the SPM does; return the switches."""
        vm_id = VmId(vm.uuid)
        found = []
        for target, source in vm.sources().items():
            old = self._volumes.get(source) or self.kit.at(str(Path(source).relative_to(self.kit.root)))
            found.append(self.kit.switch(old, target, vm=vm_id))
        self.kit.create(*found, attempt=attempt, vm=vm_id)
        self._volumes.update({str(self.kit.file(disk.new)): disk.new for disk in found})
        return tuple(found)

    # ---- the Manager --------------------------------------------------------------------------------------------

    def pivot(self, vm: BedVm, disks: tuple[DiskSwitch, ...], **options: Any) -> Pivot:
        """Return the command, with generous limits."""
        plain: dict[str, Any] = {"quiesce": True, "require_quiesce": False}
        limits = {"freeze_limit_ms": 10_000, "held_limit_ms": 5_000}
        return Pivot(vm_id=VmId(vm.uuid), disks=disks, **{**plain, **limits, **options})

    def send(self, command: Pivot | Probe | Repair, *, job: JobId, attempt: int, step: StepId | None = None) -> StepId:
        """Send it to the host, and return the step."""
        now = SystemClock().now()
        envelope = Envelope(
            v=1,
            sender=MANAGER,
            to=QUEUE,
            job=job,
            vm=command.vm_id,
            step=step or StepId(new_id()),
            attempt=attempt,
            issued_at=now,
            deadline=now + timedelta(minutes=2),
            body=command,
        )
        sealed = seal(envelope, self.parties.key(MANAGER))
        self._publisher.publish(QUEUE, task_of(command), sealed, readable(envelope))
        return envelope.step

    def ask(self, command: Pivot | Probe | Repair, *, job: JobId, attempt: int) -> LeavesObserved:
        """Send it, wait for the answer, which must be an observation, and return it."""
        answer = self.answer(self.send(command, job=job, attempt=attempt))
        assert isinstance(answer, LeavesObserved), answer
        return answer

    def answer(self, step: StepId, *, timeout_s: float = 45) -> Answer:
        """Wait for the answer to a step."""

        def answers() -> list[Answer]:
            self._listen()
            return [said.body for said in self._heard if said.step == step]  # type: ignore[misc]

        return eventually(answers, timeout_s=timeout_s, what=f"an answer to {step}; {self.agent.log}")[0]

    def reports(self) -> list[HostReport]:
        """Return every report so far, oldest first."""
        self._listen()
        return [said.body for said in self._heard if isinstance(said.body, HostReport)]

    def forget(self) -> None:
        """Forget what was heard so far."""
        self._listen()
        self._heard.clear()

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            client = connection.default_channel.client
            while item := client.rpop(ANSWERS):
                body = json.loads(base64.b64decode(json.loads(item)["body"]))
                sender, text, signature = body[0]
                sealed = Sealed(sender=sender, body=text, signature=signature)
                self._heard.append(unseal(sealed, self.parties.ring, me=MANAGER))


@contextmanager
def host_scene() -> Iterator[HostScene]:
    """Yield a started scene; everything ends with it."""
    with short_dir() as root, IsolatedHost("a", root) as host, RedisServer(root / "redis") as redis:
        scene = HostScene(root, host, redis)
        try:
            scene.start()
            yield scene
        finally:
            scene.close()
