"""Where machines write, against the record."""

from dataclasses import replace

import pytest

from common.ids import VmId, derived_id
from common.messaging.reports import VmState
from common.messaging.surveys import LayerSeen, Spot
from manager.doctor.facts import JobRecord, VmRecord
from manager.doctor.findings import MEANINGS
from tests.unit.manager.doctor.scene import (
    BASE,
    DB,
    DB_LEAF,
    H1,
    H2,
    LEAF,
    ONE,
    SIZE,
    WEB,
    WEB_DISK,
    Scene,
    adopted,
    chain,
    file,
    layers,
    volume,
)

VIRSH, VIRSH2 = adopted("web.snap1"), adopted("web.snap2")


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def foreign(scene: Scene) -> Scene:
    """Somebody has taken a snapshot of web1."""
    scene.web_on(VIRSH, LEAF, ONE, BASE)
    scene.name(file(VIRSH, LEAF))
    return scene


def test_a_world_in_order_has_no_finding(scene: Scene) -> None:
    assert scene.findings() == ()


def test_every_meaning_says_what_to_do() -> None:
    assert all(meaning.means and meaning.plan for meaning in MEANINGS.values())


# ---- a snapshot that somebody else took --------------------------------------------------------------------------


def test_a_foreign_snapshot_is_adopted(foreign: Scene) -> None:
    found = foreign.only("leaf_foreign")
    assert found.mend is not None
    plan, (snapshot,) = found.mend.plan, found.mend.snapshots
    assert (plan.vm, plan.hosts, plan.want, plan.commit_back, plan.delete) == (WEB, (H1,), "on_new", False, ())
    assert [(disk.old, disk.new) for disk in plan.disks] == [(LEAF, VIRSH)]
    assert [(each.volume, each.parent, each.snapshot_id) for each in plan.adopt] == [(VIRSH, LEAF, snapshot.id)]
    assert plan.leaves == ((WEB_DISK, VIRSH.volume_id),)
    assert [each.snapshot for each in plan.found] == [snapshot.id]
    assert snapshot.name == "found-20261126-120000"


def test_two_of_them_are_two_snapshots(foreign: Scene) -> None:
    foreign.web_on(VIRSH2, VIRSH, LEAF, ONE, BASE)
    foreign.name(file(VIRSH2, VIRSH))
    found = foreign.only("leaf_foreign")
    assert found.mend is not None
    assert [disk.old for snapshot in found.mend.snapshots for disk in snapshot.disks] == [LEAF, VIRSH]
    assert [(disk.old, disk.new) for disk in found.mend.plan.disks] == [(VIRSH, VIRSH2)]
    assert [each.volume for each in found.mend.plan.adopt] == [VIRSH, VIRSH2]
    assert found.mend.snapshots[0].name != found.mend.snapshots[1].name


def test_its_name_is_not_taken(foreign: Scene) -> None:
    first = next(iter(foreign.snapshots.values()))
    foreign.snapshots[next(iter(foreign.snapshots))] = replace(first, name="found-20261126-120000")
    found = foreign.only("leaf_foreign")
    assert found.mend is not None
    assert found.mend.snapshots[0].name == "found-20261126-120000x"


def test_of_a_stopped_machine(foreign: Scene) -> None:
    """Its definition may name the leaf alone: the rest is in the headers."""
    foreign.web(state=VmState.OFF, is_active=False, disks=chain((), layers(VIRSH)))
    foreign.storage = replace(foreign.storage, named=(file(DB_LEAF), file(VIRSH, LEAF, is_locked=False)))
    found = foreign.only("leaf_foreign")
    assert found.mend is not None
    assert [(disk.old, disk.new) for disk in found.mend.plan.disks] == [(LEAF, VIRSH)]


def test_whose_definition_still_names_the_leaf_on_record(foreign: Scene) -> None:
    """It is taken along: the probe sets it to what QEMU has."""
    foreign.web_on(VIRSH, LEAF, ONE, BASE, persistent=layers(LEAF))
    assert foreign.only("leaf_foreign").mend is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size_bytes": SIZE // 2}, "bytes"),
        ({"backing": None}, "no backing file"),
        ({"backing": Spot(storage_domain_id=None, path="/else/where")}, "/else/where"),
        ({"problem": "it has an external data file"}, "external data file"),
        ({"is_locked": False}, "not open"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_one_that_is_not_sound_is_left_to_an_operator(scene: Scene, change: dict[str, object], says: str) -> None:
    scene.web_on(VIRSH, LEAF, ONE, BASE)
    scene.name(file(VIRSH, LEAF, **change))
    found = scene.findings()
    unsound = next(each for each in found if each.code == "leaf_unsound")
    assert unsound.mend is None
    assert says in unsound.seen


def test_one_that_storage_does_not_show(scene: Scene) -> None:
    scene.web_on(VIRSH, LEAF, ONE, BASE)
    found = scene.only("leaf_unsound")
    assert "was not seen" in found.seen


def test_one_outside_of_every_storage_domain(scene: Scene) -> None:
    outside = LayerSeen(path="/tmp/x", format="qcow2", spot=Spot(storage_domain_id=None, path="/tmp/x"))
    scene.web(disks=chain((outside, *layers(LEAF, ONE, BASE))))
    assert scene.only("leaf_unsound").mend is None


@pytest.mark.parametrize("name", ["a/../b", "a\x07b", "x" * 2000])
def test_one_under_a_name_that_no_command_may_carry(scene: Scene, name: str) -> None:
    """Paths are the host's word; a hostile one ends as a finding, not as a fault (P9)."""
    scene.web_on(name, LEAF, ONE, BASE)
    scene.name(file(name, LEAF))
    assert "no name" in scene.only("leaf_unsound").seen


def test_one_that_another_machine_uses_too(foreign: Scene) -> None:
    foreign.hosts[H2][DB] = replace(foreign.hosts[H1].pop(DB), disks=chain(layers(VIRSH, LEAF, ONE, BASE)))
    foreign.storage = replace(foreign.storage, named=(file(VIRSH, LEAF),))
    codes = {each.code: each.mend for each in foreign.findings()}
    assert codes == {"leaf_unsound": None, "leaf_elsewhere": None, "volume_missing": None}


def test_one_that_a_snapshot_on_record_has_made(scene: Scene) -> None:
    scene.disks[WEB_DISK] = replace(scene.disks[WEB_DISK], leaf=ONE.volume_id)
    assert "snapshot too" in scene.only("leaf_unsound").seen


def test_one_whose_definition_names_something_else(foreign: Scene) -> None:
    foreign.web_on(VIRSH, LEAF, ONE, BASE, persistent=layers(BASE))
    assert "definition names base.qcow2" in foreign.only("leaf_unsound").seen


def test_one_that_is_used_as_raw(foreign: Scene) -> None:
    foreign.web(disks=chain((*layers(VIRSH, form="raw"), *layers(LEAF, ONE, BASE))))
    assert "is used as raw" in foreign.only("leaf_unsound").seen


# ---- elsewhere ---------------------------------------------------------------------------------------------------


def test_a_machine_that_went_back(scene: Scene) -> None:
    scene.web_on(ONE, BASE)
    scene.close(LEAF)
    found = scene.only("leaf_elsewhere")
    assert found.mend is None
    assert ONE.path in found.seen
    assert LEAF.path in found.seen


def test_a_stopped_machine_on_its_leaf(scene: Scene) -> None:
    scene.web(state=VmState.OFF, is_active=False, disks=chain((), layers(LEAF)))
    assert scene.findings() == ()


def test_a_machine_that_a_job_holds_is_left_out(foreign: Scene) -> None:
    foreign.unsettled = frozenset({WEB})
    assert foreign.findings() == ()


def test_a_machine_that_is_off_on_two_hosts_is_not_judged(foreign: Scene) -> None:
    off = replace(foreign.hosts[H1][WEB], state=VmState.OFF, is_active=False)
    foreign.hosts[H1][WEB] = foreign.hosts[H2][WEB] = off
    assert foreign.findings() == ()


def test_a_machine_that_runs_is_judged_there(foreign: Scene) -> None:
    foreign.hosts[H2][WEB] = replace(foreign.hosts[H1][WEB], state=VmState.OFF, is_active=False)
    assert foreign.only("leaf_foreign").seen.startswith("on host h1")


def test_a_machine_that_is_not_on_record_yet(scene: Scene) -> None:
    stranger = VmId(derived_id("new"))
    scene.hosts[H2][stranger] = replace(scene.hosts[H1][DB], vm_id=stranger, disks=chain(layers("new.qcow2")))
    assert scene.findings() == ()


# ---- definitions and headers -------------------------------------------------------------------------------------


def test_a_definition_that_is_behind(scene: Scene) -> None:
    scene.web_on(LEAF, ONE, BASE, persistent=layers(ONE, BASE))
    found = scene.only("definition_behind")
    assert found.mend is not None
    plan = found.mend.plan
    assert [(disk.old, disk.new) for disk in plan.disks] == [(ONE, LEAF)]
    assert (plan.want, plan.adopt, plan.delete, plan.leaves) == ("on_new", (), (), ())


def test_a_definition_that_names_something_else(scene: Scene) -> None:
    scene.web_on(LEAF, ONE, BASE, persistent=layers(BASE))
    assert scene.only("definition_differs").mend is None


def test_a_machine_without_a_definition(scene: Scene) -> None:
    scene.web_on(LEAF, ONE, BASE, persistent=())
    assert scene.findings() == ()


def test_a_header_that_names_another_base(scene: Scene) -> None:
    seen = scene.seen[LEAF.path]
    scene.seen[LEAF.path] = replace(seen, file=file(LEAF, BASE))
    found = scene.only("header_differs")
    assert found.mend is None
    assert BASE.path in found.seen


# ---- freezes, the journal, jobs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False, None])
def test_an_intent_to_freeze_without_owner(scene: Scene, frozen: bool | None) -> None:
    scene.web(is_marked=True, is_frozen=frozen)
    found = scene.only("guest_frozen_by_us")
    assert found.mend is not None
    assert (found.mend.plan.hosts, found.mend.plan.disks, found.mend.plan.want) == ((H1,), (), "answered")


def test_somebody_elses_freeze(scene: Scene) -> None:
    scene.web(is_frozen=True)
    assert scene.only("guest_frozen_by_others").mend is None


def test_a_guest_whose_agent_does_not_answer(scene: Scene) -> None:
    scene.web(is_frozen=None)
    assert scene.findings() == ()


def test_a_command_at_work_is_nobodys_fault(scene: Scene) -> None:
    scene.web(is_marked=True, is_frozen=None, is_busy=True, is_answered=False)
    assert scene.findings() == ()


def test_an_attempt_that_was_never_answered(scene: Scene) -> None:
    scene.web(is_answered=False, attempt=7)
    found = scene.only("attempt_unanswered")
    assert found.mend is not None
    assert "attempt 7" in found.seen


def test_a_job_that_waits(scene: Scene) -> None:
    scene.jobs = (JobRecord(id="4711", vm_name="web1", waiting_for="host h2"),)
    found = scene.only("job_waiting")
    assert found.mend is None
    assert "host h2" in found.seen


def test_a_host_that_was_not_seen(scene: Scene) -> None:
    scene.silent = {"host h2": "it did not answer within 5 s"}
    assert scene.only("not_seen").subject == "host h2"


def test_a_disk_on_record_of_which_the_leaf_is_gone(scene: Scene) -> None:
    """Nothing is judged by a record that has a hole, and nothing fails."""
    scene.vms[VmId(derived_id("x"))] = VmRecord(name="x", busy_with="", attempt=0)
    del scene.volumes[volume("leaf").volume_id]
    assert {each.code for each in scene.findings()} == set()
