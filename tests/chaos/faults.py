"""What can go wrong: each fault breaks something real, and says what it was.

A fault is a context: it has happened on entry, and what does not come back by itself is back after the exit.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from random import Random

from tests.chaos.parts import SUPERVISED, send
from tests.chaos.world import World
from tests.crash import arm
from tests.wait import eventually

CRASH_POINTS = (
    *("manager.apply.before_commit", "manager.apply.committed", "manager.apply.published"),
    *("spm.create.begun", "spm.create.linked", "spm.create.metadata_written"),
    *("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned"),
    *("host.pivot.begun", "host.pivot.prepared", "host.pivot.defined", "host.pivot.armed", "host.pivot.frozen"),
    *("host.pivot.issued", "host.pivot.switched", "host.pivot.thawed", "host.pivot.observed", "host.pivot.done"),
    *("host.probe.begun", "host.probe.done", "host.repair.begun", "host.repair.committed", "host.repair.done"),
    *("spm.merge.marked", "host.merge.begun", "host.merge.started", "host.merge.ready", "host.merge.pivoted"),
    *("spm.merge.begun", "spm.merge.started", "spm.merge.committed", "spm.merge.rebased", "spm.merge.recorded"),
    *("host.merge.aligned", "host.redefine.prepared", "host.redefine.defined", "host.redefine.observed"),
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


def choose(rng: Random, *, production: bool = False) -> Fault:
    """Draw a fault. Kinds are drawn first, so that the many crash points do not crowd out the rest."""
    kinds = (_point, _point, _kill, _kill, _kill, _stop, _stop, _kill_pair, _libvirtd, _lost, _full, _qemu)
    names = (*SUPERVISED, "broker", "agent of h2", "guard of h2", *(("database",) if production else ()))
    return rng.choice(kinds)(rng, names)


def _point(rng: Random, _: Sequence[str]) -> Fault:
    point = rng.choice(CRASH_POINTS)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        arm(world.crashes, point)
        yield
        (world.crashes / point).unlink(missing_ok=True)

    return Fault(kind="point", target=point, strike=strike, is_point=True)


def _kill(rng: Random, names: Sequence[str]) -> Fault:
    return _killed((rng.choice(names),))


def _kill_pair(rng: Random, _: Sequence[str]) -> Fault:
    return _killed(rng.choice((("agent", "guard"), ("agent", "spm"), ("agent", "broker"), ("manager", "broker"))))


def _killed(names: tuple[str, ...]) -> Fault:
    @contextmanager
    def strike(world: World) -> Iterator[None]:
        for name in names:
            _signal(world, name, signal.SIGKILL)
        yield

    return Fault(kind="kill", target="+".join(names), strike=strike)


def _stop(rng: Random, names: Sequence[str]) -> Fault:
    name, seconds = rng.choice(names), rng.uniform(0.2, 6)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        pid = _signal(world, name, signal.SIGSTOP)
        last(seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        yield

    return Fault(kind="stop", target=name, strike=strike)


def _libvirtd(rng: Random, _: Sequence[str]) -> Fault:
    number, with_agent, away_s = rng.choice((0, 0, 1)), rng.random() < 0.4, rng.uniform(0, 3)
    agent = ("agent", "agent of h2")[number]

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        host = world.hosts[number]
        host.kill9()
        if with_agent:
            _signal(world, agent, signal.SIGKILL)
        last(away_s)
        host.start()
        yield

    target = f"libvirtd of h{number + 1}"
    return Fault(kind="kill", target=f"{target}+agent" if with_agent else target, strike=strike)


def _lost(_rng: Random, _: Sequence[str]) -> Fault:
    @contextmanager
    def strike(world: World) -> Iterator[None]:
        world.lose_messages()
        yield

    return Fault(kind="lose", target="all messages", strike=strike)


def _full(rng: Random, _: Sequence[str]) -> Fault:
    seconds = rng.uniform(0.5, 4)

    @contextmanager
    def strike(world: World) -> Iterator[None]:
        world.fs.fill()
        last(seconds)
        world.fs.free()
        yield

    return Fault(kind="fill", target="storage", strike=strike)


def _qemu(rng: Random, _: Sequence[str]) -> Fault:
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
    """Send a signal to a process, which may just be being started again; return its pid."""
    return eventually(lambda: send(world.parts[name], number), timeout_s=20, what=f"{name} to run")
