"""The installed `livesnap` command, run as the person who watches would run it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.bed.process import kill_and_wait
from tests.bed.vm import BedVm
from tests.demo.teller import Teller
from tests.e2e.kit import Livesnap, Place
from tests.wait import eventually

BIN = Path(sys.executable).parent
START_LIMIT_S = 90.0
KNOWN_LIMIT_S = 60.0
"""Twice the time between two full reports: the Manager drops one that a later report has overtaken on the queue."""
STOP_LIMIT_S = 45.0
"""A worker in the middle of something is given ten seconds in each of the waves of stopping."""


class Installed(Livesnap):
    """`livesnap standalone` of this environment, and the commands that talk to it: shown, then run exactly so."""

    def __init__(
        self,
        teller: Teller,
        here: Place,
        *,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(here.root / "state", here.host.uri, here.storage, options=options, environment=environment)
        self._teller = teller
        # What the person has set for a livesnap of their own is not meant for this one.
        self._clean = {name: value for name, value in os.environ.items() if not name.startswith("LIVESNAP_")}

    def start(self, *, timeout_s: float = START_LIMIT_S) -> None:
        """Start it and wait until it says `ready`. Whatever happens here, it is stopped again if it fails."""
        words = [
            *("livesnap", "standalone", "--state-dir", str(self.state_dir), "--libvirt-uri", self.libvirt_uri),
            *("--storage-domain", f"main={self.storage}", *self.options, "--host-id", "h1"),
        ]
        settings = "".join(f"{name}={value} " for name, value in self.environment.items())
        self._teller.command(settings + shlex.join(words).replace(" --", " \\\n      --"))
        out = self.state_dir.with_name("standalone.out")
        try:
            self._spawn(words, out)
            eventually(lambda: self._is_ready(out), timeout_s=timeout_s, what="standalone's `ready`", interval_s=0.1)
        except BaseException:
            self.stop()
            raise
        self._teller.show("ready")

    def _spawn(self, words: list[str], out: Path) -> None:
        with out.open("wb") as said, self.state_dir.with_name("standalone.log").open("wb") as errors:
            self._process = subprocess.Popen(
                words,
                env={**self._clean, **self.environment},
                executable=str(BIN / "livesnap"),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
            )

    def _is_ready(self, out: Path) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise AssertionError("`livesnap standalone` has ended by itself")
        return out.read_bytes() == b"ready\n"

    def stop(self) -> None:
        """Stop it in order; if it takes too long, kill it (tests.demo.leftovers finds what that leaves)."""
        end_commands(self.state_dir)
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def know(self, vm: BedVm) -> None:
        """Wait until livesnap knows that a machine runs: at the latest after the host's second full report."""

        def known() -> bool:
            return bool(self.json("vm", "show", vm.name).get("state") == "running")

        eventually(known, timeout_s=KNOWN_LIMIT_S, what=f"{vm.name} in livesnap's inventory", interval_s=0.3)

    def shown(self, *words: str) -> int:
        """Show a command, run it on the person's own terminal, and return its exit status."""
        self._teller.command(shlex.join(["livesnap", *words]))
        done = subprocess.run(
            ["livesnap", *words],
            executable=str(BIN / "livesnap"),
            env={**self._clean, "LIVESNAP_STATE_DIR": str(self.state_dir)},
            stdin=subprocess.DEVNULL,
            timeout=180,
            check=False,
        )
        return done.returncode

    def take(self, vm: str, *words: str) -> tuple[int, Any]:
        """Show and run `snapshot create`; return its exit status and the job that it made, None if it made none."""
        before = {job["id"] for job in self.json("job", "list")}
        status = self.shown("snapshot", "create", vm, *words)
        new = [job["id"] for job in self.json("job", "list") if job["id"] not in before]
        return status, self.job(new[0]) if new else None


def end_commands(state_dir: Path) -> None:
    """End our own commands to an instance. An interrupt that comes while one is being started leaves it to nobody."""
    ours, mark = str(os.getpid()), os.fsencode(f"LIVESNAP_STATE_DIR={state_dir}")
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == ours and mark in (entry / "environ").read_bytes().split(b"\0"):
                kill_and_wait(int(entry.name))
