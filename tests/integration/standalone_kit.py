"""`livesnap standalone` as a user runs it, and what can be seen of it from outside."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from manager.standalone.processes import Process, end, in_session, look
from tests.integration.front_kit import Ran, livesnap
from tests.wait import eventually

READY_LIMIT_S = 90.0
"""It takes 4 s alone on two cores; tests run beside other tests."""


class Standalone:
    """One instance; as a context manager it is stopped, or ended, whatever state it is in."""

    def __init__(self, state_dir: Path, libvirt_uri: str, storage: Mapping[str, Path], *options: str) -> None:
        self.state_dir = state_dir
        self.log = state_dir.with_name(f"{state_dir.name}.log")
        named = [word for name, path in storage.items() for word in ("--storage-domain", f"{name}={path}")]
        self.words = ["--state-dir", str(state_dir), "--libvirt-uri", libvirt_uri, *named, *options]
        self._process: subprocess.Popen[str] | None = None
        self._sessions: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        self._forget()
        for session in self._sessions:
            end(in_session(session), patience_s=0)

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def start(self, **environment: str) -> Self:
        """Start it, and return at once."""
        self._forget()
        words = [sys.executable, "-m", "manager.cli", "standalone", *self.words]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=_clean(environment)
            )
        return self

    def wait_ready(self) -> Self:
        """Return when it has said so; the test fails with its log if it does not."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_LIMIT_S)
        line = self.process.stdout.readline() if readable else ""
        assert line == "ready\n", f"said {line!r}\n{self.log.read_text()}\n{self.logs()}"
        self._sessions.add(self.session)
        return self

    @property
    def session(self) -> int:
        """The process session of the instance."""
        supervisor = look(self.process.pid)
        assert supervisor is not None
        return supervisor.session

    def processes(self) -> list[Process]:
        """Return every process of the instance, its supervisor among them."""
        return list(in_session(self.session))

    def child(self, name: str) -> Process:
        """Return the process that the supervisor has started last under a name, as its log has it."""
        process = self._latest(name)
        assert process is not None, f"{name} has died"
        return process

    def _forget(self) -> None:
        """Close the pipe to a process that has ended."""
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _latest(self, name: str) -> Process | None:
        started = [line for line in self.log.read_text().splitlines() if f"name='{name}' pid=" in line]
        return look(int(started[-1].rpartition("pid=")[2]))

    def restarted(self, was: Process, name: str) -> Process:
        """Return the process that has taken the place of another."""

        def successor() -> Process | None:
            now = self._latest(name)
            return now if now != was else None

        found = eventually(successor, timeout_s=30, what=f"a new {name}")
        assert found is not None
        return found

    def stop(self) -> int:
        """Stop it as a user does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill9(self) -> None:
        """Kill the supervisor; its children go on."""
        self.process.kill()
        self.process.wait()

    def livesnap(self, *words: str) -> Ran:
        """Run the command line against it."""
        process = livesnap("--state-dir", str(self.state_dir), *words)
        out, err = process.communicate(timeout=120)
        return Ran(status=process.returncode, out=out, err=err)

    def logs(self) -> str:
        """Return the end of every log."""
        return "\n".join(
            f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.state_dir.glob("logs/*.log"))
        )

    def settings(self, name: str) -> str:
        """Return one settings file."""
        return (self.state_dir / "settings" / f"{name}.toml").read_text()

    def record(self) -> dict[str, int]:
        """Return what a running instance has written down about itself."""
        found: dict[str, int] = json.loads((self.state_dir / "standalone.json").read_text())
        return found


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("LIVESNAP_")}, **environment}
