"""What can go wrong: each fault breaks something real, and says what it was.

A fault is a context: it has happened on entry, and what does not come back by itself is back after the exit.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from random import Random

import redis

from tests.chaos.world import PROCESSES, World
from tests.crash import arm
from tests.wait import eventually

CRASH_POINTS = (
    *("manager.apply.before_commit", "manager.apply.committed", "manager.apply.published"),
    *("spm.create.begun", "spm.create.linked", "spm.create.metadata_written"),
    *("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned"),
    *("host.pivot.begun", "host.pivot.prepared", "host.pivot.defined", "host.pivot.armed", "host.pivot.frozen"),
    *("host.pivot.issued", "host.pivot.switched", "host.pivot.thawed", "host.pivot.observed", "host.pivot.done"),
    *("host.probe.begun", "host.probe.done", "host.repair.begun", "host.repair.committed", "host.repair.done"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: `kind` and `target` for the histogram. `is_point`: armed before the jobs, it strikes by itself."""

    kind: str
    target: str
    strike: Callable[[World], AbstractContextManager[None]]
    is_point: bool = False

    def __str__(self) -> str:
        """Name it as the histogram does."""
        return f"{self.kind} {self.target}"


def last(seconds: float) -> None:
    """Let something go on for so long: the one thing here that is a matter of time, and no condition to wait for."""
    time.sleep(seconds)


def choose(rng: Random) -> Fault:
    """Draw a fault. Kinds are drawn first, so that the many crash points do not crowd out the rest."""
    return rng.choice((_point, _point, _kill, _kill, _kill, _stop, _stop, _kill_pair, _libvirtd, _lost, _full, _qemu))(
        rng
    )


def _point(rng: Random) -> Fault:
    point = rng.choice(CRASH_POINTS)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        arm(world.crashes, point)
        yield
        (world.crashes / point).unlink(missing_ok=True)

    return Fault(kind="point", target=point, strike=strike, is_point=True)


def _kill(rng: Random) -> Fault:
    name = rng.choice(tuple(PROCESSES))

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        _signal(world, name, signal.SIGKILL)
        yield

    return Fault(kind="kill", target=name, strike=strike)


def _stop(rng: Random) -> Fault:
    name, seconds = rng.choice(tuple(PROCESSES)), rng.uniform(0.2, 6)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        pid = _signal(world, name, signal.SIGSTOP)
        last(seconds)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        yield

    return Fault(kind="stop", target=name, strike=strike)


def _kill_pair(rng: Random) -> Fault:
    names = rng.choice((("agent", "guard"), ("agent", "spm"), ("agent", "broker"), ("manager", "broker")))

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        for name in names:
            _signal(world, name, signal.SIGKILL)
        yield

    return Fault(kind="kill", target="+".join(names), strike=strike)


def _libvirtd(rng: Random) -> Fault:
    with_agent, away_s = rng.random() < 0.4, rng.uniform(0, 3)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        world.place.host.kill9()
        if with_agent:
            _signal(world, "agent", signal.SIGKILL)
        last(away_s)
        world.place.host.start()
        yield

    return Fault(kind="kill", target="libvirtd+agent" if with_agent else "libvirtd", strike=strike)


def _lost(_: Random) -> Fault:
    @contextmanager
    def strike(world: World) -> Iterator[None]:
        with suppress(redis.ConnectionError, redis.TimeoutError):
            redis.Redis(unix_socket_path=str(world.livesnap.state_dir / "redis.sock"), socket_timeout=5).flushall()
        yield

    return Fault(kind="lose", target="all messages", strike=strike)


def _full(rng: Random) -> Fault:
    seconds = rng.uniform(0.5, 4)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        world.fs.fill()
        last(seconds)
        world.fs.free()
        yield

    return Fault(kind="fill", target="storage", strike=strike)


def _qemu(rng: Random) -> Fault:
    number, seconds = rng.random(), rng.uniform(0.2, 4)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        guest = world.guests[int(number * len(world.guests))]
        pid = guest.qemu_pid
        assert pid is not None, f"QEMU of {guest.name} is gone"
        os.kill(pid, signal.SIGSTOP)
        last(seconds)
        os.kill(pid, signal.SIGCONT)
        yield

    return Fault(kind="stop", target="qemu", strike=strike)


def _signal(world: World, name: str, number: signal.Signals) -> int:
    """Send a signal to a process that may just be being started again; return its pid, 0 if it is not there."""
    found: list[int] = []

    def look() -> bool:
        try:
            found.append(world.livesnap.pid_of(PROCESSES[name]))
        except AssertionError:
            return False
        return True

    eventually(look, timeout_s=20, what=f"{name} to run")
    try:
        os.kill(found[-1], number)
    except ProcessLookupError:
        return 0
    return found[-1]
