# mypy: disable-error-code="no-untyped-call"
# kombu says that it has types, but most of its functions have none.
"""The guard's checks, one hostile detail at a time; the workers that it keeps alive are in tests/integration."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from common.errors import MessageRejected
from common.messaging.guard import MAX_MESSAGE_BYTES, check_call, check_item, check_message

TASKS = {"host.pivot", "manager.create_snapshot", "celery.group"}
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def item(**changes: Any) -> dict[str, Any]:
    """Return what kombu puts into a Redis list for queue `host.h1`."""
    plain = {
        "body": base64.b64encode(json.dumps([[], {}, EMBED]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers(),
        "properties": properties(),
    }
    return plain | changes


def properties(**changes: Any) -> dict[str, Any]:
    address = {"exchange": "", "routing_key": "host.h1"}
    plain = {"delivery_info": address, "delivery_tag": "tag", "body_encoding": "base64", "priority": 0}
    return plain | changes


def headers(**changes: Any) -> dict[str, Any]:
    """Return the headers that Celery's own client writes."""
    plain: dict[str, Any] = {
        "lang": "py",
        "task": "host.pivot",
        "id": "0-1-2",
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "0-1-2",
        "parent_id": None,
        "argsrepr": "vm=x",
        "kwargsrepr": "{}",
        "origin": "gen1@host",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    return plain | changes


def message(body: bytes | None = None, content_type: str = "application/json", **changes: Any) -> Message:
    text = json.dumps([["s", "b", "sig"], {}, EMBED]).encode() if body is None else body
    return Message(
        body=text,
        content_type=content_type,
        content_encoding="utf-8",
        headers=headers(**changes),
        accept={"application/json"},
    )


def test_what_celery_writes_passes() -> None:
    check_item(item(), "host.h1")
    check_message(message(), TASKS)
    named = json.dumps([[], {"vm": "web1"}, {}]).encode()
    check_message(message(named, task="manager.create_snapshot"), TASKS)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(None, id="null"),
        pytest.param([item(), "", "host.h1"], id="a list"),
        pytest.param({}, id="an empty object"),
        pytest.param(item(properties=[]), id="properties that are a list"),
        pytest.param(item(properties=properties(delivery_info=None)), id="no address"),
        pytest.param(
            item(properties=properties(delivery_info={"exchange": "", "routing_key": "spm.p1"})),
            id="an address of somebody else",
        ),
        pytest.param(
            item(properties=properties(delivery_info={"exchange": "x", "routing_key": "host.h1"})),
            id="an exchange of somebody else",
        ),
        pytest.param(item(properties=properties(delivery_tag=None)), id="no tag"),
        pytest.param(item(properties=properties(delivery_tag=["a"])), id="a tag that cannot be hashed"),
        pytest.param(item(properties=properties(delivery_tag="x" * 300)), id="a long tag"),
        pytest.param(item(properties=properties(body_encoding="rot13")), id="an unknown encoding"),
        pytest.param(item(properties=properties(body_encoding=None)), id="no encoding"),
        pytest.param(item(headers=None), id="no headers"),
        pytest.param(item(headers=[]), id="headers that are a list"),
        pytest.param(item(body=None), id="no body"),
        pytest.param(item(body={}), id="a body that is no text"),
        pytest.param(item(body="A"), id="a body that is not base64"),
        pytest.param(item(body="é"), id="a body that is not ASCII"),
        pytest.param(item(body="/w=="), id="a body that is not UTF-8"),
        pytest.param(item(body="A" * (MAX_MESSAGE_BYTES * 4 // 3 + 4)), id="a body that is too large"),
        pytest.param(item(**{"content-type": "application/x-python-serialize"}), id="pickle"),
        pytest.param(item(**{"content-encoding": "utf-7"}), id="an odd encoding"),
        pytest.param(item(**{"content-type": ["application/json"]}), id="a content type that is no text"),
    ],
)
def test_bad_items(bad: Any) -> None:
    with pytest.raises(MessageRejected):
        check_item(bad, "host.h1")


@given(JSON)
def test_no_item_raises_anything_else(value: Any) -> None:
    with pytest.raises(MessageRejected):
        check_item(value, "host.h1")
    for part in item():
        with suppress(MessageRejected):
            check_item(item(**{part: value}), "host.h1")
    for part in properties():
        with suppress(MessageRejected):
            check_item(item(properties=properties(**{part: value})), "host.h1")


@pytest.mark.parametrize(
    "changes",
    [
        {"task": ["a"]},
        {"task": {"a": 1}},
        {"task": None},
        {"task": "host.unknown"},
        {"task": "celery.group"},
        {"id": None},
        {"id": ["a"]},
        {"id": ""},
        {"id": "x" * 300},
        {"eta": "2030-01-01T00:00:00"},
        {"eta": 1},
        {"timelimit": [1, 1]},
        {"timelimit": "ab"},
        {"retries": 5},
        {"retries": "x"},
        {"shadow": "host.other"},
        {"stamped_headers": ["a"]},
        {"stamps": {"a": "b"}},
        {"group": {"a": 1}},
        {"argsrepr": "x" * 5000},
        {"origin": ["x"]},
        {"novelty": {"x": 1}},
        {"expires": ["2030"]},
    ],
    ids=str,
)
def test_bad_headers(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageRejected):
        check_message(message(**changes), TASKS)


SIGNATURE = {"task": "spm.delete", "args": [], "options": {"queue": "spm.p1"}}


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {},
        [],
        [1, 2, 3],
        ["args", {}, {}],
        [[], {}],
        [[], {}, {}, {}],
        [[], [], {}],
        [[], {}, None],
        [[], {}, {"chain": [SIGNATURE]}],
        [[], {}, {"callbacks": [SIGNATURE]}],
        [[], {}, {"errbacks": [SIGNATURE]}],
        [[], {}, {"chord": SIGNATURE}],
        [[], {}, {"novelty": None}],
        {"task": "host.pivot", "id": "1", "args": [], "kwargs": {}},
    ],
    ids=str,
)
def test_bad_calls(payload: Any) -> None:
    with pytest.raises(MessageRejected):
        check_call(payload)
    with pytest.raises(MessageRejected):
        check_message(message(json.dumps(payload).encode()), TASKS)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: message(b"not json"), id="not JSON"),
        pytest.param(lambda: message(b"[" * 100_000), id="deep"),
        pytest.param(lambda: message(b"1" * 5000), id="a long number"),
        pytest.param(lambda: message(b"\xff"), id="not UTF-8"),
        pytest.param(lambda: message(b"x" * (MAX_MESSAGE_BYTES + 1)), id="too large"),
        pytest.param(lambda: message(content_type="application/x-python-serialize"), id="pickle"),
        pytest.param(lambda: message(content_type="application/data"), id="an unknown type"),
    ],
)
def test_bad_bodies(make: Callable[[], Message]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  (the consumer refuses whatever decoding raises)
        check_message(make(), TASKS)
