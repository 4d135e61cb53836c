"""Fleets, simulated: does a saga cost as much with a thousand hosts as with ten, and what do reports cost?

Redis and PostgreSQL; each fleet has its own. All hosts of a fleet are in one process, which waits at as many queues as
there are hosts: that costs it, and the broker, what a real fleet's hosts do not pay. Hence the Manager's own processor
time for a saga stands beside the rate.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from sqlalchemy import select

from manager.store.tables import hosts
from tests.bench.budget import runs_within
from tests.bench.cost import cpu_s, pss_mib
from tests.bench.row import Row, Target
from tests.bench.sagas import Broker, Fleet, broker, fleet
from tests.bench.simulated.fleet import Size

VMS = 5000
SAGAS = 60
"""Of one round: so many machines are asked for, each on another host as far as there are enough."""
ROUNDS = 5
SECONDS = 18
FEW = Size(hosts=10, vms=VMS)
SIZES = (Size(hosts=100, vms=VMS), Size(hosts=1000, vms=VMS))
QUICK_FEW, QUICK_SIZES, QUICK_SAGAS = Size(hosts=3, vms=30), (Size(hosts=30, vms=30),), 10
LIMITS = {1000: (Target(measure="ratio", limit=0.9, at_least=True),)}
STRETCH_S, STRETCHES = 10.0, 3
"""Together one interval of reports."""
INVENTORY_LIMITS = {"cpu": (Target(measure="median", limit=10),), "lag": ()}
UNITS = {"cpu": "%", "lag": "ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A fleet, and its broker."""

    fleet: Fleet
    broker: Broker

    def memory(self) -> str:
        """Say what Manager and broker have."""
        manager, broker_mib = pss_mib([self.fleet.manager.pid]), pss_mib([self.broker.pid])
        return f"{self.fleet.size.hosts} hosts: Manager {manager:.0f} MiB, broker {broker_mib:.1f} MiB (PSS)"


def rows(*, quick: bool, times: float) -> Iterator[Row]:
    """Measure fleets of some sizes against one of few hosts with as many machines; and the largest one's reports."""
    rounds, sagas = (1, QUICK_SAGAS) if quick else (round(ROUNDS * times), SAGAS)
    few, sizes = (QUICK_FEW, QUICK_SIZES) if quick else (FEW, SIZES)
    with _sized(few) as small:
        small.fleet.round(sagas)  # the first fills caches
        for size in sizes:
            with _sized(size) as large:
                large.fleet.round(sagas)
                yield _rates(large, small, sagas, rounds, times)
                if size is sizes[-1]:
                    yield from _inventory(large.fleet)


def _inventory(watched: Fleet) -> Iterator[Row]:
    """Measure what the reports of a fleet cost the Manager, and how late they are taken."""
    found = _reported(watched)
    for name, unit in UNITS.items():
        yield Row(
            key=f"inventory/{name}",
            unit=unit,
            ours=found[name],
            targets=INVENTORY_LIMITS[name],
            simulated=True,
            notes=[f"{watched.size.hosts} hosts with {watched.size.vms} machines, every 30 s"],
        )


def _rates(large: Sized, small: Sized, sagas: int, rounds: int, times: float) -> Row:
    """Return the rates of both, in turn."""
    rates: dict[int, list[float]] = {large.fleet.size.hosts: [], small.fleet.size.hosts: []}
    manager: dict[int, list[float]] = {hosts_: [] for hosts_ in rates}
    for number in runs_within(SECONDS * times, rounds, 1):
        for each in (large, small) if number % 2 else (small, large):
            rates[each.fleet.size.hosts].append(each.fleet.round(sagas))
            manager[each.fleet.size.hosts].append(each.fleet.cpu_ms["manager"])
    name = large.fleet.size.hosts
    return Row(
        key=f"fleet/{name}-hosts",
        unit="/s",
        ours=rates[name],
        floor=rates[small.fleet.size.hosts],
        targets=LIMITS.get(name, ()),
        simulated=True,
        more_is_better=True,
        steps={f"Manager CPU ms a saga, {hosts_} hosts": median(took) for hosts_, took in manager.items()},
        notes=[large.memory(), small.memory()],
    )


def _reported(watched: Fleet) -> dict[str, list[float]]:
    """Let all hosts report; return the Manager's share of a core in %, by stretch, and how late the last report of each
    host was taken, in ms."""
    (watched.folder / "reporting").touch()
    time.sleep(STRETCH_S / 5)
    shares = []
    for _ in range(STRETCHES):
        begun, before = time.monotonic(), cpu_s([watched.manager.pid])
        time.sleep(STRETCH_S)
        shares.append((cpu_s([watched.manager.pid]) - before) / (time.monotonic() - begun) * 100)
    with watched.database.read() as connection:
        seen = connection.execute(select(hosts.c.seen_at, hosts.c.observed_at)).all()
    lags = [(row.seen_at - row.observed_at).total_seconds() * 1000 for row in seen]
    return {"cpu": shares, "lag": lags}


@contextmanager
def _sized(size: Size) -> Iterator[Sized]:
    with broker("redis") as (root, server), fleet(root, server.url, "postgres", size) as made:
        yield Sized(fleet=made, broker=server)
