"""Locks that no definition explains, and what QEMU says."""

from dataclasses import replace

import pytest

from manager.doctor.lies import whom_to_ask
from tests.unit.manager.doctor.scene import BASE, H1, H2, LEAF, ONE, WEB, WEB_DISK, Scene, adopted, file, node, volume

UNSEEN, LEAKED = adopted("web.unseen"), volume("leaked")
IN_ORDER = (node(LEAF, "vda", 0), node(ONE, "vda", 1), node(BASE, "vda", 2))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_nobody_is_asked_without_need(scene: Scene) -> None:
    assert whom_to_ask(scene.view()) == {}


def test_the_machine_is_asked_on_whose_chain_the_file_stands(scene: Scene) -> None:
    scene.name(file(UNSEEN, LEAF))
    assert whom_to_ask(scene.view()) == {H1: frozenset({WEB})}


def test_the_machine_is_asked_that_the_metadata_names(scene: Scene) -> None:
    scene.add(LEAKED, LEAF, is_locked=True, problem="no header yet")
    assert whom_to_ask(scene.view()) == {H1: frozenset({WEB})}


def test_a_machine_that_a_job_holds_is_not_asked(scene: Scene) -> None:
    scene.add(LEAKED, LEAF, is_locked=True)
    scene.unsettled = frozenset({WEB})
    assert whom_to_ask(scene.view()) == {}
    assert scene.findings() == ()


def test_a_lying_definition_is_repaired_by_a_commit(scene: Scene) -> None:
    scene.name(file(UNSEEN, LEAF))
    scene.web(qemu=(node(UNSEEN, "vda", 0), node(LEAF, "vda", 1), node(ONE, "vda", 2), node(BASE, "vda", 3)))
    found = scene.only("xml_lies")
    assert found.mend is not None
    plan = found.mend.plan
    assert [(disk.old, disk.new) for disk in plan.disks] == [(LEAF, UNSEEN)]
    assert (plan.commit_back, plan.want, plan.hosts, plan.delete) == (True, "off_new", (H1,), ())


def test_what_livesnap_made_goes_to_the_trash_after_it(scene: Scene) -> None:
    scene.add(LEAKED, LEAF, is_locked=True, is_empty=False)
    scene.web(qemu=(node(LEAKED, "vda", 0), node(LEAF, "vda", 1), node(ONE, "vda", 2), node(BASE, "vda", 3)))
    found = scene.only("xml_lies")
    assert found.mend is not None
    assert [disk.new for disk in found.mend.plan.delete] == [LEAKED]
    assert found.mend.plan.hosts == (H2, H1)


def test_the_leaf_on_record_is_never_committed_away(scene: Scene) -> None:
    """The definition names the volume below: its content is a snapshot, which a commit would destroy."""
    scene.web_on(ONE, BASE)
    scene.web(qemu=IN_ORDER)
    codes = {each.code: each.mend for each in scene.findings()}
    assert codes == {"leaf_elsewhere": None, "xml_lies_unsound": None}


def test_a_lie_that_is_not_right_above_the_leaf(scene: Scene) -> None:
    scene.name(file(UNSEEN, ONE))
    scene.web(qemu=(node(UNSEEN, "vda", 0), node(ONE, "vda", 1), node(BASE, "vda", 2)))
    assert scene.only("xml_lies_unsound").mend is None


def test_a_volume_that_a_snapshot_has_made_is_never_committed_away(scene: Scene) -> None:
    scene.disks[WEB_DISK] = replace(scene.disks[WEB_DISK], leaf=ONE.volume_id)
    scene.web_on(ONE, BASE)
    scene.web(qemu=IN_ORDER)
    assert scene.only("xml_lies_unsound").mend is None


def test_a_definition_that_is_wrong_in_another_way_too(scene: Scene) -> None:
    scene.name(file(UNSEEN, LEAF))
    scene.web_on(ONE, BASE)
    scene.web(qemu=(node(UNSEEN, "vda", 0), node(LEAF, "vda", 1), node(ONE, "vda", 2), node(BASE, "vda", 3)))
    codes = {each.code: each.mend for each in scene.findings()}
    assert codes == {"leaf_elsewhere": None, "xml_lies_unsound": None}


def test_nothing_is_committed_into_an_immutable_leaf(scene: Scene) -> None:
    scene.volumes[LEAF.volume_id] = replace(scene.volumes[LEAF.volume_id], is_immutable=True)
    scene.name(file(UNSEEN, LEAF))
    scene.web(qemu=(node(UNSEEN, "vda", 0), node(LEAF, "vda", 1)))
    assert scene.only("xml_lies_unsound").mend is None


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_leaked_node_is_detached(scene: Scene, is_ours: bool) -> None:
    leaked = LEAKED if is_ours else UNSEEN
    if is_ours:
        scene.add(LEAKED, LEAF, is_locked=True)
    else:
        scene.name(file(UNSEEN, LEAF))
    scene.web(qemu=(*IN_ORDER, node(leaked, "", 0), replace(node(leaked, "", 0), node_name="its-storage")))
    found = scene.only("node_leaked")
    assert found.mend is not None
    assert [(disk.old, disk.new) for disk in found.mend.plan.disks] == [(LEAF, leaked)]
    assert [disk.new for disk in found.mend.plan.delete] == ([LEAKED] if is_ours else [])


def test_a_leaked_node_that_stands_on_no_disk_of_the_machine(scene: Scene) -> None:
    scene.name(file(UNSEEN, "else.qcow2"))
    scene.web(qemu=(*IN_ORDER, node(UNSEEN, "", 0)))
    assert scene.only("node_leaked").mend is None


def test_a_lock_that_nobody_explains(scene: Scene) -> None:
    scene.add(LEAKED, LEAF, is_locked=True)
    scene.web(qemu=IN_ORDER)
    codes = {each.code: each.mend for each in scene.findings()}
    assert codes == {"lock_unexplained": None, "volume_unowned": None}


def test_a_lock_may_be_that_of_a_host_that_was_not_seen(scene: Scene) -> None:
    scene.add(LEAKED, LEAF, is_locked=True)
    scene.silent = {"host h2": "it is silent"}
    assert {each.code for each in scene.findings()} == {"not_seen", "volume_unowned"}
