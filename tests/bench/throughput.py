"""Saga throughput: completed sagas per second, against bare Celery that passes as many messages with no database.

Simulated: hosts and SPM have nothing behind them. Every round asks for a snapshot of every machine at once. One
Manager worker with four threads, as `livesnap standalone` has it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from tests.bench.budget import runs_within
from tests.bench.row import Row, Target
from tests.bench.sagas import BrokerKind, Fleet, Floor, Kind, broker, fleet, floor
from tests.bench.simulated.fleet import Size

SIZE = Size(hosts=10, vms=60)
QUICK = Size(hosts=3, vms=12)
ROUNDS = 4
QUICK_ROUNDS = 2
LEAST = 3
"""Of two rounds hardly any interval says anything."""
SECONDS = 11
FLOOR_SAGAS = 4
"""The floor passes so many times as much in its round, so that it lasts long enough to be measured."""
LIMIT = Target(measure="ratio", limit=0.6, at_least=True)
BROKERS: tuple[BrokerKind, ...] = ("redis", "rabbitmq")
KINDS: tuple[Kind, ...] = ("sqlite", "postgres")


@dataclass(slots=True)
class _Samples:
    ours: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    cpu_ms: list[Mapping[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rows(kind: BrokerKind, *, quick: bool, times: float) -> Iterator[Row]:
    """Measure one broker with both databases."""
    size = QUICK if quick else SIZE
    rounds = QUICK_ROUNDS if quick else round(ROUNDS * times)
    with broker(kind) as (root, server), floor(root, server.url) as bare:
        for database in KINDS:
            found = _Samples()
            with fleet(root, server.url, database, size) as ours:
                for number in runs_within(SECONDS * times, rounds + 1, min(rounds, LEAST) + 1):
                    rates = _both(ours, bare, ours_first=number % 2 == 0)
                    if number:  # the first fills caches
                        found.ours.append(rates[0])
                        found.floor.append(rates[1])
                        found.cpu_ms.append(ours.cpu_ms)
                found.notes.append(f"{size.vms} sagas at once; {ours.resent():.0%} of the commands were sent again")
            yield replace(row(f"{kind}-{database}", found.ours, found.floor, found.cpu_ms), notes=found.notes)


def _both(ours: Fleet, bare: Floor, *, ours_first: bool) -> tuple[float, float]:
    """Return our sagas per second and the floor's."""
    if ours_first:
        rate = ours.round()
        return rate, bare.round(ours.size.vms * FLOOR_SAGAS)
    beside = bare.round(ours.size.vms * FLOOR_SAGAS)
    return ours.round(), beside


def row(name: str, ours: Sequence[float], floor_rates: Sequence[float], cpu_ms: Sequence[Mapping[str, float]]) -> Row:
    """Return the row of one broker with one database."""
    return Row(
        key=f"saga-throughput/{name}",
        unit="/s",
        ours=ours,
        floor=floor_rates,
        targets=(LIMIT,),
        simulated=True,
        more_is_better=True,
        steps={f"{process} CPU ms a saga": median(each[process] for each in cpu_ms) for process in cpu_ms[0]},
    )
