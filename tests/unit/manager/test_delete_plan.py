"""Which volume goes into which: every small tree, and the rules of what is never touched."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from common.errors import RequestRefused
from common.ids import DiskId, SnapshotId, StorageDomainId, VmId, VolumeId, derived_id, disk_id
from common.messaging.merging import Way
from manager.delete_plan import Content, Kept, Node, Tree, plan
from tests.unit.manager.doctor.scene import volume

VM, OTHER = VmId(derived_id("vm")), VmId(derived_id("other"))
DISK, SECOND, FOREIGN = disk_id(VM, "vda"), disk_id(VM, "vdb"), disk_id(OTHER, "vda")


def sid(name: str) -> SnapshotId:
    return SnapshotId(derived_id(f"snapshot {name}"))


def vid(name: str) -> VolumeId:
    return volume(name).volume_id


def node(name: str, parent: str | None, disk: DiskId = DISK, *, immutable: bool = False) -> Node:
    return Node(at=volume(name), disk_id=disk, parent=vid(parent) if parent else None, immutable=immutable)


def tree(nodes: tuple[Node, ...], leaves: dict[DiskId, str], snapshots: dict[str, str], *, target: str = "vda") -> Tree:
    """Return a tree; each snapshot has one disk, whose content is the named volume."""
    return Tree(
        volumes={each.at.volume_id: each for each in nodes},
        leaves={disk: vid(leaf) for disk, leaf in leaves.items()},
        snapshots={
            sid(name): Kept(name=name, disks=(Content(target=target, disk_id=DISK, volume=vid(content)),))
            for name, content in snapshots.items()
        },
    )


CHAIN = tree(
    (node("A", None), node("B", "A"), node("C", "B"), node("D", "C")),
    {DISK: "D"},
    {"a": "A", "b": "B", "c": "C"},
)


def moves(at: Tree, *names: str) -> list[tuple[str, str, Way, bool]]:
    """Return (what vanishes, into what, way, leaf) for each merge, in order."""
    by_id = {vid(name): name for name in "ABCDEFGX"}
    return [
        (by_id[merge.top.volume_id], by_id[merge.base.volume_id], merge.way, merge.leaf)
        for each in plan(at, [sid(name) for name in names])
        for merge in each.disks
    ]


def refused(at: Tree, *names: str) -> str:
    with pytest.raises(RequestRefused) as error:
        plan(at, [sid(name) for name in names])
    return error.value.code


def test_a_chain_loses_the_volume_above_the_content() -> None:
    assert moves(CHAIN, "a") == [("B", "A", Way.CHAIN, False)]
    assert moves(CHAIN, "b") == [("C", "B", Way.CHAIN, False)]
    assert moves(CHAIN, "c") == [("D", "C", Way.CHAIN, True)]


def test_what_stands_above_is_told() -> None:
    (first,) = plan(CHAIN, [sid("b")])
    assert [each.volume_id for each in first.disks[0].above] == [vid("D")]


def test_several_are_planned_one_after_the_other() -> None:
    assert moves(CHAIN, "c", "b", "a") == [
        ("D", "C", Way.CHAIN, True),
        ("C", "B", Way.CHAIN, True),
        ("B", "A", Way.CHAIN, True),
    ]
    assert moves(CHAIN, "a", "b", "c") == [
        ("B", "A", Way.CHAIN, False),
        ("C", "A", Way.CHAIN, False),
        ("D", "A", Way.CHAIN, True),
    ]
    assert moves(CHAIN, "b", "b") == moves(CHAIN, "b")


BRANCHED = tree(
    # A <- B <- C <- D (left by a revert to b), and B <- E <- F, where the machine writes.
    (node("A", None), node("B", "A"), node("C", "B"), node("D", "C"), node("E", "B"), node("F", "E")),
    {DISK: "F"},
    {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"},
)


def test_a_fork_is_shared_until_one_branch_is_gone() -> None:
    assert refused(BRANCHED, "b") == "volume_shared"
    assert moves(BRANCHED, "c") == [("D", "C", Way.BRANCH, False)]
    assert moves(BRANCHED, "d") == [("D", "C", Way.DISCARD, False)]
    assert moves(BRANCHED, "d", "c", "b") == [
        ("D", "C", Way.DISCARD, False),
        ("C", "B", Way.DISCARD, False),
        ("E", "B", Way.CHAIN, False),
    ]
    # Below the fork, both branches are lifted.
    assert moves(BRANCHED, "a") == [("B", "A", Way.CHAIN, False)]
    (first,) = plan(BRANCHED, [sid("a")])
    assert {each.volume_id for each in first.disks[0].above} == {vid("C"), vid("E")}


def test_all_or_none_of_several_is_accepted() -> None:
    assert refused(BRANCHED, "e", "b") == "volume_shared"


@pytest.mark.parametrize("name", ["B", "C"])
def test_immutable_volumes_neither_take_data_nor_vanish(name: str) -> None:
    volumes = {id_: replace(each, immutable=id_ == vid(name)) for id_, each in CHAIN.volumes.items()}
    assert refused(replace(CHAIN, volumes=volumes), "b") == "volume_shared"


@pytest.mark.parametrize("below", ["B", "C"])
def test_another_machine_that_stands_on_a_volume_makes_it_shared(below: str) -> None:
    clone = node("X", below, FOREIGN)
    at = replace(CHAIN, volumes={**CHAIN.volumes, clone.at.volume_id: clone})
    assert refused(at, "b") == "volume_shared"


@pytest.mark.parametrize("leaf", ["B", "C"])
def test_another_disk_that_writes_to_a_volume_makes_it_shared(leaf: str) -> None:
    assert refused(replace(CHAIN, leaves={**CHAIN.leaves, FOREIGN: vid(leaf)}), "b") == "volume_shared"


def test_volumes_on_two_storage_domains_are_not_merged() -> None:
    moved = replace(
        CHAIN.volumes[vid("C")], at=replace(volume("C"), storage_domain_id=StorageDomainId(derived_id("elsewhere")))
    )
    assert refused(replace(CHAIN, volumes={**CHAIN.volumes, vid("C"): moved}), "b") == "volume_shared"


def test_a_volume_that_another_snapshot_shows_as_well_stays() -> None:
    twin = tree(tuple(CHAIN.volumes.values()), {DISK: "D"}, {"b": "B", "twin": "B"})
    assert moves(twin, "b") == []
    assert moves(twin, "b", "twin") == [("C", "B", Way.CHAIN, False)]


def test_a_leaf_that_is_a_snapshots_content_stays() -> None:
    assert moves(tree(tuple(CHAIN.volumes.values()), {DISK: "D"}, {"d": "D"}), "d") == []


def test_a_lost_record_is_no_reason_to_guess() -> None:
    volumes = {id_: each for id_, each in CHAIN.volumes.items() if id_ != vid("B")}
    assert refused(replace(CHAIN, volumes=volumes), "b") == "vm_off_chain"


def test_an_immutable_end_of_a_branch_stays() -> None:
    volumes = {id_: replace(each, immutable=id_ == vid("D")) for id_, each in BRANCHED.volumes.items()}
    assert refused(replace(BRANCHED, volumes=volumes), "d") == "volume_shared"


def test_every_disk_is_planned_by_its_own_tree() -> None:
    second = tuple(node(name, parent, SECOND) for name, parent in (("E", None), ("F", "E")))
    volumes = {**CHAIN.volumes, **{each.at.volume_id: each for each in second}}
    contents = (
        Content(target="vda", disk_id=DISK, volume=vid("B")),
        Content(target="vdb", disk_id=SECOND, volume=vid("E")),
    )
    at = Tree(
        volumes=volumes,
        leaves={DISK: vid("D"), SECOND: vid("F")},
        snapshots={sid("b"): Kept(name="b", disks=contents)},
    )
    assert moves(at, "b") == [("C", "B", Way.CHAIN, False), ("F", "E", Way.CHAIN, True)]


NAMES = "ABCDE"


def small_trees() -> list[Tree]:
    """Return every tree of five volumes with every leaf of it, and a snapshot of each volume that is no leaf."""
    found = []
    for parents in product(*(range(number) for number in range(1, len(NAMES)))):
        nodes = (node("A", None), *(node(NAMES[n], NAMES[parent]) for n, parent in enumerate(parents, 1)))
        ends = [name for name in NAMES if vid(name) not in {each.parent for each in nodes}]
        for leaf in ends:
            others = {name.lower(): name for name in NAMES if name != leaf}
            found.append(tree(nodes, {DISK: leaf}, others))
    return found


def path(at: Tree, volume_id: VolumeId) -> list[VolumeId]:
    """Return the volumes whose data a volume shows, itself first."""
    found, current = [], at.volumes[volume_id]
    while True:
        found.append(current.at.volume_id)
        if current.parent is None:
            return found
        current = at.volumes[current.parent]


@pytest.mark.parametrize("at", small_trees())
def test_no_small_tree_loses_what_a_kept_snapshot_or_the_machine_shows(at: Tree) -> None:
    """Model: what a volume shows is the set of the writes in its chain; a merge moves the writes of one to another."""
    for gone in at.snapshots:
        if len(at.children(at.snapshots[gone].disks[0].volume)) > 1:
            assert refused(at, at.snapshots[gone].name) == "volume_shared"
            continue
        (only,) = plan(at, [gone])
        wanted = [kept.disks[0].volume for id_, kept in at.snapshots.items() if id_ != gone]
        for merge in only.disks:
            top, base = merge.top.volume_id, merge.base.volume_id
            assert at.volumes[top].parent == base
            for shown in (path(at, end) for end in (*wanted, *at.leaves.values())):
                # Who shows `base` without `top` would see what was written later; who shows a discarded `top`, nothing.
                assert (top in shown) == (base in shown) if merge.way is not Way.DISCARD else top not in shown
