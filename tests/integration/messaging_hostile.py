"""What somebody who may write to a queue could put there, to end its consumer or to borrow its rights."""

import json
import uuid
from typing import Any

from tests.integration.messaging_kit import Scene, raw_item

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
CALL: list[Any] = [["a", "b", "c"], {}, EMBED]
VICTIM = "host.h2"
STOLEN = {
    "task": "host.pivot",
    "args": ["stolen"],
    "kwargs": {},
    "options": {"exchange": "to.agents", "routing_key": VICTIM},
    "subtask_type": None,
    "immutable": True,
}


def head(**changes: Any) -> dict[str, Any]:
    """Return plausible headers of a probe, changed as told."""
    task_id = str(uuid.uuid4())
    return {"lang": "py", "task": "host.probe", "id": task_id, "argsrepr": "", "kwargsrepr": "", **changes}


def embedding(**embedded: Any) -> list[Any]:
    """Return a plain call that carries something to be published afterwards."""
    return [["a", "b", "c"], {}, EMBED | embedded]


Message = tuple[Any, dict[str, Any]]

MESSAGES: dict[str, Message] = {
    "task that cannot be hashed": (CALL, head(task=["a"])),
    "task that is an object": (CALL, head(task={"a": 1})),
    "task that is a number": (CALL, head(task=7)),
    "no headers": (CALL, {}),
    "id that is a list": (CALL, head(id=["a"])),
    "id that is null": (CALL, head(id=None)),
    "unknown task": (CALL, head(task="host.explode")),
    "body that is an object": ({}, head()),
    "body that is empty": ([], head()),
    "body of numbers": ([1, 2, 3], head()),
    "body that looks like protocol 1": (["args", {}, {}], head()),
    "protocol 1": ({"task": "host.probe", "id": "1", "args": ["a", "b", "c"], "kwargs": {}}, {}),
    "body that is not JSON": ("not json", head()),
    "body that is too deep": ("[" * 100_000, head()),
    "number that is too long": ("1" * 5000, head()),
    "body that is too large": ("x" * (5 * 2**20), head()),
    "time in the far future": (CALL, head(eta="9999-01-01T00:00:00+00:00")),
    "time that is none": (CALL, head(eta="soon")),
    "expiry that is a list": (CALL, head(expires=["a"])),
    "expiry long ago": (CALL, head(expires="2001-01-01T00:00:00+00:00")),
    "time limit that is text": (CALL, head(timelimit="ab")),
    "time limit of three": (CALL, head(timelimit=[1, 2, 3])),
    "retries": (CALL, head(retries=10**9)),
    "stamps": (CALL, head(stamped_headers=["a"], stamps={"a": 1})),
    "embedded chain": (embedding(chain=[STOLEN]), head()),
    "embedded callback": (embedding(callbacks=[STOLEN]), head()),
    "embedded errback": (embedding(errbacks=[STOLEN]), head()),
    "embedded chord": (embedding(chord=STOLEN), head()),
    "Celery's own group": ([[[STOLEN], [["r", None], None], "g", []], {}, EMBED], head(task="celery.group")),
    "Celery's own chord": ([[[STOLEN], STOLEN], {}, EMBED], head(task="celery.chord")),
    "Celery's own map": ([[STOLEN, [1]], {}, EMBED], head(task="celery.map")),
    "too few arguments": ([["a"], {}, EMBED], head()),
    "named arguments": ([[], {"sender": "manager", "body": "{}", "signature": ""}, EMBED], head()),
    "arguments that are no text": ([[1, {"a": 1}, None], {}, EMBED], head()),
    "signature that is none": ([["manager", "{}", "AAAA"], {}, EMBED], head()),
    "sender that is a path": ([["../../etc/passwd", "{}", "AAAA"], {}, EMBED], head()),
}

CONTENT_TYPES = [
    ("application/x-python-serialize", "binary"),
    ("application/json", "no-such-encoding"),
    ("application/x-yaml", "utf-8"),
    ("application/data", "binary"),
]


def publish_all(scene: Scene, queue: str) -> int:
    """Publish every hostile message to `queue`, as a client of the broker's own protocol; return how many."""
    with scene.app.connection_for_write() as connection:
        exchange = scene.exchange_to(queue)
        producer = connection.Producer()
        where = {"exchange": exchange, "routing_key": queue}
        for body, headers in MESSAGES.values():
            text = body if isinstance(body, str) else json.dumps(body)
            kind = {"content_type": "application/json", "content_encoding": "utf-8"}
            producer.publish(text.encode(), headers=headers, **kind, **where)
        for content_type, encoding in CONTENT_TYPES:
            kind = {"content_type": content_type, "content_encoding": encoding}
            producer.publish(json.dumps(CALL).encode(), headers=head(), **kind, **where)
    return len(MESSAGES) + len(CONTENT_TYPES)


def raw_items(queue: str) -> list[bytes]:
    """Return list items for `queue` that kombu itself would never write."""

    def changed(**properties: Any) -> bytes:
        return raw_item(CALL, head(), queue=queue, **properties)

    whole = json.loads(changed())
    return [
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"[" * 100_000,
        b"1" * 5000,
        b'{"properties": null}',
        json.dumps({**whole, "headers": None}).encode(),
        json.dumps({**whole, "headers": [1]}).encode(),
        json.dumps({**whole, "properties": ["delivery_tag"]}).encode(),
        json.dumps({**whole, "body": {"a": 1}}).encode(),
        json.dumps({**whole, "body": "A"}).encode(),
        json.dumps({**whole, "content-type": {"a": 1}}).encode(),
        changed(delivery_tag=None),
        changed(delivery_tag=["a"]),
        changed(delivery_tag={"a": 1}),
        changed(delivery_info=None),
        changed(delivery_info={"exchange": "", "routing_key": VICTIM}),
        changed(delivery_info={"exchange": "celeryev", "routing_key": "x"}),
        changed(body_encoding="rot13"),
        changed(body_encoding=["base64"]),
        changed(priority={"a": 1}),
        changed(reply_to=["a"], correlation_id={"a": 1}),
    ]
