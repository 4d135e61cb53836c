"""What the API shows of the fleet itself: hosts, pools, storage domains, and dead letters. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host. `state`: up, libvirt_down, silent, or expected: it was added and has not reported yet. `duty`:
    in_service, draining (it finishes what it has and takes nothing new), drained. `frozen` are the guests that its
    agents see frozen now."""

    id: str
    state: str
    seen_at: datetime | None
    vm_count: int
    frozen: tuple[str, ...]
    storage_domains: tuple[str, ...]
    problem: str
    duty: str = "in_service"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDutyView:
    """What a host does for the fleet from now on, and the jobs that it still has."""

    id: str
    duty: str
    jobs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitView:
    """A limit on jobs. `scope`: host, storage_domain, pool; `name` '': each that has no limit of its own. `at_work` is
    the most that are at work on one of those that it counts for, `waiting` how many jobs wait that it counts for."""

    scope: str
    name: str
    max_jobs: int
    at_work: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedView:
    """A host or a pool that was taken in. `settings` is the text of its settings file: it holds its private key and its
    password, and is nowhere else. `to_do` is what is left for people."""

    id: str
    queue: str
    account: str
    settings: str
    to_do: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedView:
    """A host that was taken out, the machines that were there, and what is left for people."""

    id: str
    vms: tuple[str, ...]
    to_do: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool. `state`: up, or silent when its SPM was not heard from for a while."""

    id: str
    state: str
    epoch: int
    seen_at: datetime
    storage_domains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDomainView:
    """One storage domain, as the SPM of its pool reports it; `root` is where that SPM has it."""

    id: str
    name: str
    pool: str
    root: str
    free_bytes: int
    total_bytes: int
    problem: str
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterView:
    """A message that RabbitMQ took out of circulation: the queue it lay in, why (`rejected`, `delivery_limit`), how
    often it died, its task, and the line that it says of itself. What a hostile message says may be anything."""

    queue: str
    reason: str
    count: int
    died_at: datetime | None
    task: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgedView:
    """How many dead letters were thrown away."""

    purged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedHostView:
    """A host that was removed as lost: the machines that were there, the jobs that ended, and what is left to do."""

    id: str
    removed_at: datetime
    vms: tuple[str, ...]
    jobs: tuple[str, ...]
    to_do: tuple[str, ...]
