"""A disk's volumes as a tree of lines. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from manager.cli.text import moment, size

Json = dict[str, Any]
Row = tuple[str, str, str, str, str]

_ROLES = {"leaf": "the machine writes here", "kept": "an undo comes back here"}
_DELETIONS = {
    "merge": "merged with the volume above",
    "shared": "stays: others stand on it",
    "immutable": "stays: it is immutable",
}


def tree(nodes: Sequence[Json]) -> Iterator[Row]:
    """Yield one row for each volume of one disk: its place in the tree, size, snapshots, role, and what a delete does.

    Whatever the record says, it ends: a volume whose parent is not among the nodes is a root.
    """
    known = {node["volume_id"] for node in nodes}
    above: dict[str | None, list[Json]] = {}
    for node in nodes:
        parent = node["parent_id"] if node["parent_id"] in known else None
        above.setdefault(parent, []).append(node)
    for root in above.get(None, []):
        yield from _branch(root, above, ("", ""))


def _branch(node: Json, above: dict[str | None, list[Json]], stem: tuple[str, str]) -> Iterator[Row]:
    """Yield a volume and what stands on it; `stem` is what stands before it, and before what follows below it."""
    snapshots = ", ".join(_mark(mark) for mark in node["snapshots"])
    path, bytes_ = f"{stem[0]}{node['path']}", size(node["size_bytes"])
    yield path, bytes_, snapshots, _note(node), _DELETIONS.get(node["if_deleted"], "")
    children = above.get(node["volume_id"], [])
    for child in children:
        own, below = ("└─ ", "   ") if child is children[-1] else ("├─ ", "│  ")
        yield from _branch(child, above, (stem[1] + own, stem[1] + below))


def _mark(mark: Json) -> str:
    label = ", ".join(filter(None, (mark["consistency"], moment(mark["taken_at"]))))
    return f"{mark['name']} ({label})" if label else str(mark["name"])


def _note(node: Json) -> str:
    users = f"used by {', '.join(node['used_by'])}" if node["used_by"] else ""
    return "; ".join(filter(None, (_ROLES.get(node["role"], ""), users)))
