"""Hypothesis strategies for everything that may stand in an envelope, derived from the dataclasses themselves."""

import dataclasses
import types
import typing
from datetime import UTC, datetime
from functools import cache
from typing import Any

from hypothesis import strategies as st

from common import ids
from common.messaging.messages import DiskSwitch, VolumeAt
from common.messaging.reports import HostReport, SpmReport
from common.messaging.surveys import MetadataSeen, NamedFile
from common.messaging.wire import Envelope

NAMES = st.from_regex(ids._NAME, fullmatch=True)
UUIDS = st.uuids().map(str)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TEXT = st.text(max_size=40)
PART = st.text("abcxyz0189-_ äß.", min_size=1, max_size=12).filter(lambda part: part not in (".", ".."))

PATHS = st.lists(PART, min_size=1, max_size=4).map("/".join)

_BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(-(2**63), 2**63 - 1),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    datetime: TIMES,
    type(None): st.none(),
    ids.HostId: NAMES,
    ids.PoolId: NAMES,
}
_BY_FIELD: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (VolumeAt, "path"): PATHS,
    (NamedFile, "path"): PATHS,
    (MetadataSeen, "path"): PATHS,
    (DiskSwitch, "target"): st.from_regex(ids._TARGET, fullmatch=True),
}


@cache  # the same strategy for a kind wherever it stands: it is checked and laid out once
def of(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of an annotation: an id, a plain type, an enum, a union, a tuple, a dataclass."""
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if isinstance(kind, typing.NewType):
        return UUIDS
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(of(arguments[0]), max_size=2).map(tuple)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(of(each) for each in arguments))
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind))
    return st.sampled_from(list(kind))


def _dataclass(kind: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind,
        **{name: _BY_FIELD[kind, name] if (kind, name) in _BY_FIELD else of(hint) for name, hint in hints.items()},
    )


def parties(body: Any) -> tuple[str, str]:
    """Return who may send `body`, and to whom."""
    match body:
        case HostReport(host_id=host):
            return f"host.{host}", "manager"
        case SpmReport(pool_id=pool):
            return f"spm.{pool}", "manager"
        case _:
            pass
    kind, _, what = body.op.partition(".")
    orders = ("create", "delete", "inspect", "inspect_host", "adopt", "survey", "check", "pivot", "probe", "redefine")
    if what in (*orders, "repair") or what.startswith("merge"):
        return "manager", f"{kind}.x1"
    return ("spm.x1" if kind == "spm" else "host.x1"), "manager"


@st.composite
def envelopes(draw: st.DrawFn, kind: type) -> Envelope:
    """Draw an envelope round a body of `kind`, from somebody who may say such a thing to somebody who may hear it."""
    body = draw(of(kind))
    sender, to = parties(body)
    return Envelope(
        v=1,
        sender=sender,
        to=to,
        job=draw(of(ids.JobId | None)),
        vm=getattr(body, "vm_id", None) or draw(of(ids.VmId | None)),
        step=draw(of(ids.StepId)),
        attempt=draw(st.integers(0, 2**31 - 1)),
        issued_at=draw(TIMES),
        deadline=draw(TIMES),
        body=body,
    )
