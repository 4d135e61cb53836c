"""What each account at the broker may do, and no more. Pure.

Measured with kombu 5.7 on Redis 7.0 and RabbitMQ 3.10: tests/integration/test_broker_access.py runs the product under
these rules, and tries what they refuse. An account is named as its process: `manager`, `spm.<pool>`, `host.<host>`;
there are three more:

    flower      sees task events, and touches nothing that carries work
    client      may ask for snapshots (the task manager.create_snapshot), and nothing else
    registrar   makes and removes the accounts and queues of hosts: for `livesnap host add`, at the API only. It can
                give itself every right, so its password belongs nowhere else

Redis cannot tell who has put an item into a list, and RabbitMQ tells it only to whom asks: that a host answers for
itself only is what signatures are for (common/messaging/wire.py).
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from common.ids import require_name
from common.messaging.queues import (
    ANSWERS,
    DEAD,
    DEAD_EXCHANGE,
    EVENTS,
    MANAGER,
    TO_AGENTS,
    TO_ANSWERS,
    TO_MANAGER,
    consumed_by,
    host_of,
    pool_of,
)

FLOWER: Final = "flower"
CLIENT: Final = "client"
REGISTRAR: Final = "registrar"
OTHERS: Final = (FLOWER, CLIENT, REGISTRAR)

_CONNECT: Final = "+auth +hello +ping +client|setname +select"
_TRANSACT: Final = "+multi +exec +watch +unwatch +discard"
_CONSUME: Final = "+brpop +llen +lpush +rpush +hset +hget +hdel +zadd +zrem +zrange +set +get +del"
_BIND_EVENTS: Final = "+sadd +srem +smembers +zadd +zrem +zrangebyscore"
_NOTHING: Final = "^$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """RabbitMQ's three patterns over the names of queues and exchanges, and the tags of the user."""

    configure: str = _NOTHING
    write: str = _NOTHING
    read: str = _NOTHING
    tags: tuple[str, ...] = ()


def require_account(name: str) -> None:
    """Raise ValueError unless `name` is one of the accounts above: it becomes a file's name, and a word among rules."""
    if name in (MANAGER, *OTHERS):
        return
    member = host_of(name) or pool_of(name)
    if member is None:
        raise ValueError(f"no account such as manager, spm.<pool>, host.<host>, {', '.join(OTHERS)}: {name[:80]!r}")
    try:
        require_name(member)
    except ValueError as error:
        raise ValueError(f"no account: {error}") from None


def unacked_prefix(name: str) -> str:
    """Return how the keys begin in which, on Redis, the consumer of that name keeps what it has not acknowledged."""
    return f"u:{name}:"


def redis_rules(account: str, *, database: int = 0) -> tuple[str, ...]:
    """Return the rules of Redis' ACL (7.0 or newer) for an account, without its password.

    Nobody may run a script, list keys, or see another's queue. Events go out by PUBLISH, which Redis does not keep.
    """
    require_account(account)
    plain = f"resetkeys resetchannels -@all {_CONNECT}".split()
    events = f"(+publish &/{database}.{EVENTS}/*)"
    match account:
        case "flower":
            return (*plain, *_TRANSACT.split(), *_flower_selectors(database))
        case "client":
            return (*plain, *_TRANSACT.split(), *_client_selectors(), events)
        case "registrar":
            accounts = "+acl|setuser +acl|deluser +acl|save"
            return (*plain, *accounts.split(), "(+del ~host.* ~spm.* ~u:host.* ~u:spm.*)")
        case _:
            is_manager = account == MANAGER
            sends = "%W~host.* %W~spm.*" if is_manager else f"%W~{ANSWERS}"
            sees = ("(+llen %R~host.* %R~spm.*)",) if is_manager else ()  # how long they are, for its metrics
            own = [f"~{queue}" for queue in consumed_by(account)]
            keys = (*own, f"~{unacked_prefix(account)}*")
            return (*plain, *f"{_TRANSACT} {_CONSUME}".split(), *keys, *sees, f"(+lpush {sends})", events)


def _client_selectors() -> tuple[str, ...]:
    """Return what any Celery client does that names the queue: it binds it, and looks at its lists by priority."""
    bindings = f"%W~_kombu.binding.{MANAGER} %W~_kombu.binding_permanent.{MANAGER}"
    return f"(+lpush +llen ~{MANAGER} ~{MANAGER}??[369])", f"(+sadd {bindings})"


def _flower_selectors(database: int) -> tuple[str, ...]:
    """Return what Flower needs besides: it hears events, and its queue of them is bound in keys of kombu's own."""
    events = f"&/{database}.{EVENTS}/*"
    bindings = f"~_kombu.binding.{EVENTS} ~_kombu.binding_permanent.{EVENTS} ~_kombu.binding_deadlines"
    held = f"~{unacked_prefix(FLOWER)}*"  # kombu looks there for what to deliver again, and never finds anything
    return (
        f"(+set +get +del +zrange {held})",
        f"(+psubscribe +punsubscribe +subscribe +unsubscribe {events})",
        f"({_BIND_EVENTS} {bindings})",
        f"(+llen +pexpire +del +brpop ~{EVENTS}.*)",
        "(+llen %R~manager* %R~host.* %R~spm.*)",
    )


def rabbit_permissions(account: str) -> Permissions:
    """Return an account's permissions in its virtual host."""
    require_account(account)
    own = _any_of(*consumed_by(account), *((DEAD,) if account == MANAGER else ()))
    match account:
        case "flower":
            mine = rf"^{EVENTS}\..*$"
            return Permissions(configure=mine, write=mine, read=rf"^{EVENTS}(\..*)?$")
        case "client":
            return Permissions(write=_any_of(TO_MANAGER, EVENTS))
        case "registrar":
            fixed = "|".join(map(re.escape, (MANAGER, ANSWERS, *_EXCHANGES, DEAD)))
            made = rf"^({fixed}|host\..*|spm\..*)$"
            return Permissions(configure=made, write=made, read=made, tags=("administrator",))
        case "manager":
            return Permissions(write=_any_of(TO_AGENTS, EVENTS), read=own)
        case _:
            return Permissions(write=_any_of(TO_ANSWERS, EVENTS), read=own)


_EXCHANGES: Final = (TO_MANAGER, TO_ANSWERS, TO_AGENTS, DEAD_EXCHANGE, EVENTS)


def _any_of(*names: str) -> str:
    return f"^({'|'.join(map(re.escape, names))})$"


def redis_hash(password: str) -> str:
    """Return a password as an ACL holds it: no secret, as long as the password cannot be guessed."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def rabbit_hash(password: str, salt: bytes) -> str:
    """Return a password as RabbitMQ's definitions hold it (rabbit_password_hashing_sha256; `salt`: four bytes)."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")
