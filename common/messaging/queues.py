"""Queue names. A consumer's queue is also its identity as a sender: `manager`, `spm.<pool>`, `host.<host>`.

Only the Manager has two: what is signed and what is not must not lie together. Pure.
"""

from typing import Final

from common.ids import HostId, PoolId

MANAGER = "manager"
"""The Manager itself, and where requests for snapshots lie, which anybody may put there who has an account for it."""

ANSWERS = "manager.answers"
"""Where signed messages to the Manager lie. Hosts and SPMs may write here only, so none of them can ask for a job."""

TO_MANAGER: Final = "to.manager"
TO_ANSWERS: Final = "to.answers"
TO_AGENTS: Final = "to.agents"
"""RabbitMQ's exchanges. An account may write to an exchange or not, so each has the queues of one kind of sender."""

DEAD: Final = "dead"
DEAD_EXCHANGE: Final = "dlx"
EVENTS: Final = "celeryev"
"""Celery's own name of the exchange of task events: any monitor looks there."""


def inbox_of(recipient: str) -> str:
    """Return the queue in which signed messages to `recipient` lie."""
    return ANSWERS if recipient == MANAGER else recipient


def consumed_by(name: str) -> tuple[str, ...]:
    """Return the queues that the process of this name takes messages from."""
    return (MANAGER, ANSWERS) if name == MANAGER else (name,)


def spm_queue(pool: PoolId) -> str:
    """Return the queue of the active SPM of `pool`."""
    return f"spm.{pool}"


def host_queue(host: HostId) -> str:
    """Return the queue that all agent processes of `host` consume."""
    return f"host.{host}"


def host_of(queue: str) -> HostId | None:
    """Return the host whose queue this is, None for any other queue."""
    kind, _, name = queue.partition(".")
    return HostId(name) if kind == "host" and name else None


def pool_of(queue: str) -> PoolId | None:
    """Return the pool whose SPM's queue this is, None for any other queue."""
    kind, _, name = queue.partition(".")
    return PoolId(name) if kind == "spm" and name else None
