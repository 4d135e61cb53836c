"""A whole livesnap on one isolated host, as a user runs it, and what tests ask of it."""

import json
import os
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tests.bed.disks import make_disk
from tests.bed.host import IsolatedHost, shared_dir
from tests.bed.oracle import Finding, examine
from tests.bed.paths import short_dir
from tests.bed.process import is_running
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec
from tests.e2e.backends import BACKENDS, PRODUCTION
from tests.e2e.warm import WarmCommandLine
from tests.wait import eventually

COMMAND_LINE = WarmCommandLine()
ENDED = ("completed", "rolled_back", "needs_operator")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one run of the command line said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    def error(self, *, status: int) -> Any:
        """Return why it was refused (status 2) or its job failed (1); fail unless it also says what to do."""
        assert self.status == status, f"status {self.status}, not {status}: {self.out} {self.err}"
        error = self.json["error"]
        assert error["message"]
        assert error["hint"]
        return error


class Livesnap:
    """`livesnap standalone` in a process of its own, and the command line that talks to it."""

    def __init__(
        self,
        state_dir: Path,
        libvirt_uri: str,
        storage: Path,
        *,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Describe an instance; `environment` goes to all of its processes."""
        self.state_dir = state_dir
        self.libvirt_uri = libvirt_uri
        self.storage = storage
        self.options = options
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def database_url(self) -> str:
        """The Manager's database, for SQLAlchemy."""
        if "--database" in self.options:
            return self.options[self.options.index("--database") + 1]
        return f"sqlite:///{self.state_dir}/manager/livesnap.sqlite"

    def start(self, *, timeout_s: float = 60) -> None:
        """Start it and wait until it says `ready`."""
        log = self.state_dir.parent / f"{self.state_dir.name}.standalone.log"
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "manager.cli", "standalone", "--state-dir", str(self.state_dir)),
                    *("--libvirt-uri", self.libvirt_uri, "--storage-domain", f"main={self.storage}"),
                    *("--host-id", "h1", *self.options),
                ],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        said = bytearray()

        def ready() -> bool:
            assert self._process is not None
            assert self._process.stdout is not None
            if select.select([self._process.stdout], [], [], 0.05)[0]:
                said.extend(os.read(self._process.stdout.fileno(), 4096))
            assert self._process.poll() is None, f"standalone ended: {log.read_text()[-3000:]}"
            return said == b"ready\n"

        eventually(ready, timeout_s=timeout_s, what="standalone's `ready`")

    def stop(self) -> None:
        """Stop it as a service manager does, and wait; fail if it does not end by itself."""
        if self._process is None:
            return
        with self._process as process:  # closes its output
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def kill9(self) -> None:
        """Kill the supervisor alone, as a crash would."""
        assert self._process is not None
        with self._process as process:
            process.kill()
            process.wait(10)

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    @contextmanager
    def nothing_restarted(self) -> Iterator[None]:
        """Hold the supervisor meanwhile: a process of this instance that dies stays dead until the `with` is left."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def stopped(self, words: str) -> Iterator[None]:
        """Stop the process whose command line has these words, as `pid_of`, and let it go on after the `with`."""
        with _stopped(self.pid_of(words)):
            yield

    @contextmanager
    def broker_stopped(self) -> Iterator[None]:
        """Stop the broker meanwhile (a dead one of its own, the supervisor would start again at once)."""
        with _stopped(BACKENDS.servers()[0].pid if PRODUCTION else self.pid_of("redis-server")):
            yield

    def pid_of(self, words: str) -> int:
        """Return the pid of that process of this instance whose command line has these words ("hostagent.worker")."""
        session = json.loads((self.state_dir / "standalone.json").read_text())["session"]
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if words in command and os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        assert len(found) == 1, f"{words!r} in session {session}: {found}"
        return found[0]

    def run(self, *words: str, timeout_s: float = 120) -> Said:
        """Run the command line against it and return what it said. In a process that stands by (warm.py)."""
        words = ("--state-dir", str(self.state_dir), *words)
        status, out, err = COMMAND_LINE.run(words, timeout_s=timeout_s)
        return Said(status=status, out=out, err=err)

    def json(self, *words: str, timeout_s: float = 120) -> Any:
        """Run the command line with `--json` and return the document; fail if it says nothing."""
        said = self.run(*words, "--json", timeout_s=timeout_s)
        assert said.out, f"status {said.status}: {said.err}"
        return said.json

    def submit(self, vm: BedVm, **options: Any) -> Any:
        """Submit a snapshot by HTTP and return its job; repeated with its key until an API that was killed is back."""
        key = uuid4().hex
        return eventually(
            lambda: self.ask(f"/v1/vms/{vm.name}/snapshots", options, key=key),
            timeout_s=60,
            what=f"a job for {vm.name}",
            interval_s=0.2,
        )

    def ask(self, path: str, body: Mapping[str, Any] | None = None, *, key: str = "") -> Any:
        """Return what the API answers at a path (a GET, with a body a POST), None where it refuses or is not there.

        For looking again and again: a run of the command line costs a third of a second of CPU, and this a hundredth.
        """
        headers = {"Idempotency-Key": key} if key else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._send(path, data, headers)[1]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def post(self, path: str, body: bytes, *, key: str = "") -> tuple[int, Any]:
        """POST raw bytes as an HTTP client of somebody's would; return the status and the document."""
        try:
            return self._send(path, body, {"Idempotency-Key": key} if key else {})
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def _send(self, path: str, data: bytes | None, headers: Mapping[str, str]) -> tuple[int, Any]:
        url, token = ((self.state_dir / name).read_text().strip() for name in ("url", "token"))
        always = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}{path}", data, {**always, **headers})
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, json.load(answer)

    def shows(self, vm: BedVm, state: str = "running") -> Any:
        """Wait until livesnap knows that a machine is in a state, and return it as it is shown."""

        def shown() -> Any:
            machine = self.ask(f"/v1/vms/{vm.name}")
            return machine if machine and machine["state"] == state else None

        return eventually(shown, timeout_s=45, what=f"{vm.name} {state} in the inventory", interval_s=0.1)

    def shows_on(self, vm: BedVm, sources: Mapping[str, str]) -> Any:
        """Wait for the report of a machine with its disks there and nothing wrong, and return it as it is shown.

        What is shown is what its host has seen last: a command that has ended may be some milliseconds ahead of it.
        """

        def shown() -> Any:
            machine = self.ask(f"/v1/vms/{vm.name}")
            if not machine or machine["problem"]:
                return None
            return machine if {disk["target"]: disk["path"] for disk in machine["disks"]} == dict(sources) else None

        return eventually(shown, timeout_s=20, what=f"{vm.name} on {sources} in the inventory", interval_s=0.1)

    def snapshots(self, vm: BedVm) -> Any:
        """Return a machine's snapshots."""
        path, found = f"/v1/vms/{vm.name}/snapshots", []

        def answered() -> bool:
            found.append(self.ask(path))
            return found[-1] is not None

        eventually(answered, timeout_s=30, what=f"the snapshots of {vm.name}", interval_s=0.1)
        return found[-1]

    def job(self, job_id: str) -> Any:
        """Return one job."""
        return eventually(lambda: self.ask(f"/v1/jobs/{job_id}"), timeout_s=30, what=f"job {job_id}", interval_s=0.1)

    def wait_for_end(self, job_id: str, *, timeout_s: float = 120, interval_s: float = 0.1) -> Any:
        """Wait until a job has ended or asks for an operator, looking that often, and return it."""

        def ended() -> Any:
            job = self.job(job_id)
            return job if job["state"] in ENDED else None

        return eventually(ended, timeout_s=timeout_s, what=f"the end of job {job_id}", interval_s=interval_s)

    def log(self, name: str) -> str:
        """Return the log of one of its processes."""
        return (self.state_dir / "logs" / f"{name}.log").read_text()


@dataclass(frozen=True, kw_only=True)
class Place:
    """An isolated host with a storage folder, and guests on it."""

    host: IsolatedHost
    root: Path
    storage: Path

    def guest(self, name: str, *, disks: int = 1, ga: AgentMode = "normal", agent: bool = True, **spec: Any) -> BedVm:
        """Define and start a guest whose writer runs on each disk; return once it writes (and its agent answers)."""
        specs = []
        for number in range(disks):
            target = f"vd{chr(ord('a') + number)}"
            path = make_disk(self.storage / f"{name}-{target}.qcow2", owner=self.host.owner)
            specs.append(DiskSpec(path=path, target=target))
        vm = define_vm(self.host, VmSpec(name=name, disks=tuple(specs), ga=ga, agent=agent, **spec))
        vm.start()
        vm.wait_ready()
        if agent and ga in ("normal", "block", "hookfail", "hookslow"):
            vm.wait_agent()
        vm.wait_acks(more=2)
        return vm

    def livesnap(self, *options: str, environment: Mapping[str, str] | None = None, state: str = "state") -> Livesnap:
        """Return an instance for this host; start it by `with`."""
        options += () if "--broker" in options else BACKENDS.options()
        return Livesnap(self.root / state, self.host.uri, self.storage, options=options, environment=environment)

    def volumes(self) -> set[str]:
        """Return the volumes that lie below `images/`, relative to the storage folder."""
        return {str(path.relative_to(self.storage)) for path in self.storage.glob("images/*/*.qcow2")}

    def content_of(self, snapshot: Any, target: str = "vda") -> Finding:
        """Examine the content of one disk of a snapshot by the guest's own file system."""
        (disk,) = [disk for disk in snapshot["disks"] if disk["target"] == target]
        return examine(self.storage / disk["path"])


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def place(kind: type[IsolatedHost] = IsolatedHost) -> Iterator[Place]:
    """Yield an isolated host with a storage folder of its own."""
    with short_dir() as root, kind("a", root) as host:
        yield Place(host=host, root=root, storage=shared_dir(root / "storage", host))


def writer_went_on(vm: BedVm, *, target: str = "vda") -> None:
    """Fail unless the guest's writer goes on, and has had no error and no gap in its numbers in this boot."""
    vm.wait_acks(target=target)
    assert vm.write_errors() == []
    numbers = vm.acknowledged(target)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "an acknowledged number is missing"


def alive(pid: int) -> bool:
    """Say whether a process lives."""
    return is_running(pid)
