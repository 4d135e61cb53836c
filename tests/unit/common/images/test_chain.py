"""How headers name backing files."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.images.chain import backing_name, local_name, names_protocol, resolve

PARTS = st.lists(
    st.text("ab-:. ", min_size=1, max_size=5).filter(lambda p: p not in (".", "..")), min_size=1, max_size=4
)


@given(PARTS, PARTS)
def test_name_leads_from_child_to_parent_and_is_no_option_or_protocol(child: list[str], parent: list[str]) -> None:
    name = backing_name("/".join(child), "/".join(parent))
    assert posixpath.normpath(resolve("/mnt/" + "/".join(child), name)) == "/mnt/" + "/".join(parent)
    assert not name.startswith(("-", "/"))
    assert not names_protocol(name)


@pytest.mark.parametrize(
    ("child", "parent", "name"),
    [
        ("images/d/v.qcow2", "vms/web.qcow2", "../../vms/web.qcow2"),
        ("images/d/v.qcow2", "images/d/u.qcow2", "u.qcow2"),
        ("leaf", "-x", "./-x"),
        ("leaf", "nbd:x", "./nbd:x"),
    ],
)
def test_examples(child: str, parent: str, name: str) -> None:
    assert backing_name(child, parent) == name


@pytest.mark.parametrize(("name", "expected"), [("nbd:x", True), ("json:{}", True), ("a/b:c", False), ("./a:b", False)])
def test_protocols(name: str, expected: bool) -> None:
    assert names_protocol(name) is expected
    assert not names_protocol(local_name(name))


def test_absolute_names_stay() -> None:
    assert resolve("/mnt/sd/leaf", "/mnt/sd/base") == "/mnt/sd/base"
