"""Snapshots that a Celery client asks for by `manager.create_snapshot`, without HTTP. Pure."""

from typing import Any

from common.errors import RequestRefused
from manager.preflight import SnapshotRequest


def request_of(args: tuple[Any, ...], kwargs: dict[str, Any], *, idempotency_key: str) -> SnapshotRequest:
    """Return the request that a Celery client has enqueued. Raises RequestRefused(request_malformed)."""
    fields = {"name": None, "description": "", "disks": (), "quiesce": "auto", **kwargs}
    unknown = fields.keys() - {"vm", "name", "description", "disks", "quiesce"}
    if args or unknown:
        what = "positional arguments" if args else f"unknown fields {ascii(sorted(unknown))[:200]}"
        raise RequestRefused("request_malformed", f"{what}: give vm, name, description, disks, quiesce by name")
    texts = [fields.get("vm"), fields["description"], fields["quiesce"], fields["name"] or ""]
    disks = fields["disks"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(disks, list | tuple):
        raise RequestRefused("request_malformed", "vm, name, description and quiesce are text, disks is a list")
    if not all(isinstance(disk, str) for disk in disks):
        raise RequestRefused("request_malformed", "disks is a list of targets such as 'vda'")
    return SnapshotRequest(**{**fields, "disks": tuple(disks), "idempotency_key": idempotency_key})
