"""What an idle host agent costs a hypervisor, with its guard: against a minimal Celery worker that waits as idly.

The host has one running guest that writes nothing, and is reported every 30 s. Both sides are counted over the same
stretches of time, each with a Redis of its own, of which nobody else is a client. Both have only what is installed with
the host's extra (`installed.py`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.bed.host import IsolatedHost
from tests.bed.paths import short_dir
from tests.bed.servers import RedisServer
from tests.bench.cost import exact_cpu_s, family, pss_mib, wake_ups
from tests.bench.installed import as_on_a_hypervisor
from tests.bench.row import Row, Target
from tests.bench.sagas import Worker
from tests.integration.host_kit import HostScene

STRETCHES, QUICK_STRETCHES = 3, 2
STRETCH_S = 30.0
"""One full report falls into each."""
QUICK_STRETCH_S = 3.0
SETTLE_S = 3.0
"""Starting is not idling."""
TARGETS: Mapping[str, tuple[Target, ...]] = {
    "pss": (Target(measure="median", limit=85),),
    "cpu": (Target(measure="median", limit=0.2),),
    "wake-ups": (),
    "broker-commands": (),
}
UNITS = {"pss": "MiB", "cpu": "%", "wake-ups": "/s", "broker-commands": "/s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Processes that do nothing, and their broker."""

    pids: tuple[int, ...]
    broker: "redis.Redis"

    def count(self) -> dict[str, float]:
        """Return what has been counted so far."""
        every = [each for pid in self.pids for each in family(pid)]
        return {
            "cpu": exact_cpu_s(every) * 100,
            "wake-ups": wake_ups(every),
            "broker-commands": int(self.broker.info("stats")["total_commands_processed"]),
        }

    def commands(self) -> dict[str, float]:
        """Return how often each command was asked of the broker so far."""
        stats = self.broker.info("commandstats")
        return {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}

    def memory(self) -> float:
        """Return the memory of all processes together, in MiB."""
        return pss_mib(each for pid in self.pids for each in family(pid))


def rows(*, quick: bool, times: float) -> Iterator[Row]:
    """Measure both sides over the same stretches."""
    stretch_s = QUICK_STRETCH_S if quick else STRETCH_S
    stretches = QUICK_STRETCHES if quick else round(STRETCHES * times)
    with _both() as (ours, floor):
        time.sleep(SETTLE_S)
        before, begun = ours.commands(), time.monotonic()
        measured = [_stretch(ours, floor, stretch_s) for _ in range(stretches)]
        commands, took_s = ours.commands(), time.monotonic() - begun
        steps = {
            "pss": {
                f"{name} MiB": pss_mib(family(pid)) for name, pid in zip(("agent", "guard"), ours.pids, strict=True)
            },
            "broker-commands": {
                f"{name} /s": (calls - before.get(name, 0)) / took_s
                for name, calls in commands.items()
                if name != "info" and calls > before.get(name, 0)
            },
        }
    for name, unit in UNITS.items():
        yield Row(
            key=f"idle/{name}",
            unit=unit,
            ours=[each[0][name] for each in measured],
            floor=[each[1][name] for each in measured],
            targets=TARGETS[name],
            steps=steps.get(name, {}),
        )


def _stretch(ours: Side, floor: Side, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return what a second cost each side, and what memory they have at its end."""
    sides = (ours, floor)
    before, begun = [side.count() for side in sides], time.monotonic()
    time.sleep(seconds)
    after, took_s = [side.count() for side in sides], time.monotonic() - begun
    found = []
    for side, was, now in zip(sides, before, after, strict=True):
        # The question for the count is itself a command.
        now["broker-commands"] -= 1
        found.append({name: (now[name] - was[name]) / took_s for name in was} | {"pss": side.memory()})
    return found[0], found[1]


@contextmanager
def _both() -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        root = stack.enter_context(short_dir())
        host = stack.enter_context(IsolatedHost("a", root))
        brokers = [stack.enter_context(RedisServer(root / name)) for name in ("ours", "floor")]
        scene = HostScene(root, host, brokers[0])
        scene.environment.update(as_on_a_hypervisor())
        stack.callback(scene.close)
        scene.boot("idle", load="idle")
        scene.guard.start()
        agent = Worker("hostagent.worker", "agent", root, 4, scene.environment, says="reported")
        stack.enter_context(agent)
        floor = stack.enter_context(_minimal(root, brokers[1]))
        ours = Side(pids=(agent.pid, scene.guard.pid), broker=_client(brokers[0]))
        yield ours, Side(pids=(floor.pid,), broker=_client(brokers[1]))


def _minimal(root: Path, broker: RedisServer) -> Worker:
    told = {"MINIMAL_BROKER": broker.url, "MINIMAL_READY": str(root / "minimal.ready")}
    environment = {**told, **as_on_a_hypervisor()}
    return Worker("tests.bench.minimal", "minimal", root, 4, environment, bare=True)


def _client(broker: RedisServer) -> "redis.Redis":
    return redis.Redis(unix_socket_path=str(broker.socket))
