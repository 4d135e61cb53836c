"""A disk's volumes as lines."""

from typing import Any

from manager.cli.tree import tree


def node(name: str, parent: str | None, **changes: Any) -> dict[str, Any]:
    blank: dict[str, Any] = {"size_bytes": None, "snapshots": [], "used_by": [], "role": "", "if_deleted": ""}
    return {"volume_id": name, "parent_id": parent, "path": name, **blank, **changes}


def test_branches_are_told_each_to_its_end() -> None:
    nodes = [node("a", None), node("b", "a"), node("c", "b"), node("d", "a"), node("e", "d")]
    assert [row[0] for row in tree(nodes)] == ["a", "├─ b", "│  └─ c", "└─ d", "   └─ e"]


def test_a_volume_whose_parent_is_not_on_record_is_a_root() -> None:
    assert [row[0] for row in tree([node("b", "gone"), node("c", "b")])] == ["b", "└─ c"]


def test_what_stands_beside_a_volume() -> None:
    taken = {"id": "1", "name": "before", "consistency": "crash", "taken_at": "2026-11-26T10:00:00Z"}
    made = node("a", None, size_bytes=1 << 30, snapshots=[taken], used_by=["db1"], role="kept", if_deleted="shared")
    assert list(tree([made])) == [
        (
            "a",
            "1 GiB",
            "before (crash, 2026-11-26 10:00:00)",
            "an undo comes back here; used by db1",
            "stays: others stand on it",
        )
    ]
