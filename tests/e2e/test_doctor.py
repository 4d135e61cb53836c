"""Doctor on one livesnap and three guests that carry all faults at once: it finds exactly these, mends what is provably
safe, leaves the rest alone and says so; then snapshots work again, with the right content."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from common.ids import VolumeId, new_id
from common.images.layout import metadata_path, volume_path
from hostagent.vm_xml import METADATA_NAMESPACE, frozen_element
from tests.bed.disks import make_overlay
from tests.bed.oracle import examine
from tests.bed.vm import BedVm
from tests.e2e.delete_kit import boot, stopped
from tests.e2e.kit import Livesnap, Place, place, writer_went_on
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("doctor"),
    pytest.mark.timeout(300),  # the second test's set-up boots two guests
]


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """An isolated host."""
    with place() as opened:
        yield opened


@pytest.fixture(scope="module")
def livesnap(here: Place) -> Iterator[Livesnap]:
    """A running livesnap on it."""
    with here.livesnap() as running:
        yield running


def leaf(vm: BedVm, *, persistent: bool = False) -> Path:
    return Path(vm.sources(persistent=persistent)["vda"])


def document(path: Path) -> Any:
    return json.loads(path.with_suffix(".json").read_text())


def rewrite(path: Path, **fields: object) -> None:
    """Change a volume's metadata as nobody should."""
    path.with_suffix(".json").write_text(json.dumps({**document(path), **fields}))


def make_orphan(here: Place, parent: Path) -> Path:
    """Make an empty volume above `parent`, with metadata as livesnap writes it, that no machine and no record knows."""
    known, volume = document(parent), VolumeId(new_id())
    path = here.storage / volume_path(known["disk"], volume)
    make_overlay(path, backing=parent, owner=here.host.owner)
    names = ("id", "storage_domain", "path", "format")
    own = {"id": volume, "path": str(path.relative_to(here.storage)), "snapshot": new_id(), "state": "exists"}
    whole = {**known, **own, "parent": {name: known[name] for name in names}}
    (here.storage / metadata_path(known["disk"], volume)).write_text(json.dumps(whole))
    return path


def named(report: Any) -> dict[tuple[str, str], bool]:
    """Return code and subject of each finding, and whether its plan is safe."""
    return {(each["code"], each["subject"]): each["safe"] for each in report["findings"]}


def off_chain(livesnap: Livesnap, vm: BedVm) -> bool:
    return bool((livesnap.ask(f"/v1/vms/{vm.name}") or {}).get("problem") == "vm_off_chain")


def freeze_as_if_by_us(vm: BedVm) -> None:
    """Leave a guest as an agent does that dies, with its guard, right after its freeze."""
    with vm.libvirt() as handle:
        element, mine = libvirt.VIR_DOMAIN_METADATA_ELEMENT, frozen_element("of a dead owner")
        handle.setMetadata(element, mine, "livesnap", METADATA_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    vm.freeze()


def swept(livesnap: Livesnap) -> bool:
    """Say whether the agent's own sweep, which runs with every full report, has thawed a guest in the meantime."""
    return any("swept" in log.read_text() for log in (livesnap.state_dir / "logs").glob("host*.log"))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Three guests and what was done to them: `safe` and `rest` are what doctor is to find of it."""

    behind: BedVm
    lied: BedVm
    frozen: BedVm
    on_record: Path
    by_virsh: tuple[Path, Path]
    last_before: int
    lied_leaf: Path
    unowned: tuple[Path, ...]
    stray: Path
    safe: frozenset[tuple[str, str]]
    rest: dict[tuple[str, str], bool]

    @property
    def vms(self) -> tuple[BedVm, BedVm, BedVm]:
        """All of them."""
        return self.behind, self.lied, self.frozen


def with_a_snapshot(here: Place, livesnap: Livesnap, name: str) -> BedVm:
    """Boot a guest and take its first snapshot."""
    vm = here.guest(name)
    livesnap.shows(vm)
    assert livesnap.run("snapshot", "create", name, "--name", "one").status == 0
    return vm


@pytest.fixture(scope="module")
def behind(here: Place, livesnap: Livesnap) -> BedVm:
    """The first guest; the others are booted for the second test, as a test's time counts its set-up too."""
    return with_a_snapshot(here, livesnap, "behind")


def test_nothing_is_found_where_nothing_is_wrong(behind: BedVm, livesnap: Livesnap) -> None:
    said = livesnap.run("doctor", "--json")
    assert said.json == {"findings": [], "left_out": []}
    assert said.status == 0
    assert behind.freeze_status() == "thawed"


@pytest.fixture(scope="module")
def broken(here: Place, livesnap: Livesnap, behind: BedVm) -> Scene:
    """Everything that can be wrong, at once."""
    lied, frozen = (with_a_snapshot(here, livesnap, name) for name in ("lied", "frozen"))
    on_record, lied_leaf = leaf(behind), leaf(lied)
    # Somebody takes two snapshots with virsh.
    by_virsh = here.storage / "behind.snap1", here.storage / "behind.snap2"
    for below, path in zip([on_record, by_virsh[0]], by_virsh, strict=True):
        make_overlay(path, backing=below, owner=here.host.owner)
        last_before = behind.wait_acks()
        behind.snapshot({"vda": path})
    # libvirtd is killed in a switch, twice.
    unseen, leaked = here.storage / "lied.unseen", make_orphan(here, lied_leaf)
    make_overlay(unseen, backing=lied_leaf, owner=here.host.owner)
    lied.switch_behind_libvirt("vda", unseen)
    lied.switch_behind_libvirt("vda", leaked, insert=False)
    lied.wait_acks()
    # Empty volumes that nobody owns, a stranger's file, a deletion that was cut short, and somebody else's freeze.
    orphans = [make_orphan(here, leaf(frozen)) for _ in range(2)]
    stray = orphans[0].with_name("somebody.qcow2")
    shutil.copyfile(orphans[0], stray)
    rewrite(on_record, legality="illegal")
    frozen.freeze()
    record_at, stray_at, *orphans_at = (str(path.relative_to(here.storage)) for path in (on_record, stray, *orphans))
    safe = {("leaf_foreign", "behind"), ("xml_lies", "lied"), ("node_leaked", "lied"), ("volume_illegal", record_at)}
    return Scene(
        behind=behind,
        lied=lied,
        frozen=frozen,
        on_record=on_record,
        by_virsh=by_virsh,
        last_before=last_before,
        lied_leaf=lied_leaf,
        unowned=(leaked, *orphans),
        stray=stray,
        safe=frozenset(safe | {("volume_orphan", orphan) for orphan in orphans_at}),
        rest={("guest_frozen_by_others", "frozen"): False, ("file_unknown", stray_at): False},
    )


@pytest.fixture(scope="module")
def mended(livesnap: Livesnap, broken: Scene) -> Scene:
    """The same after a look at it, and after the repairs."""
    # A dry run lets the host report its machine at once, and not with its next full report.
    livesnap.run("snapshot", "create", "behind", "--dry-run")
    eventually(lambda: off_chain(livesnap, broken.behind), timeout_s=45, what="the alarm", interval_s=0.1)
    assert "livesnap doctor" in livesnap.run("vm", "show", "behind").out
    freeze_as_if_by_us(broken.behind)
    said = livesnap.run("doctor", "--json")
    left_frozen = set() if swept(livesnap) else {("guest_frozen_by_us", "behind")}
    assert named(said.json) == {**dict.fromkeys(broken.safe | left_frozen, True), **broken.rest}, said.out
    assert said.status == 1

    repaired = livesnap.run("doctor", "--repair", "--json")

    assert named(repaired.json) == broken.rest, repaired.out
    assert repaired.status == 1
    assert {each["job"]["state"] for each in repaired.json["done"]} == {"completed"}
    return broken


def test_what_is_provably_safe_is_mended_and_the_rest_is_left_alone(livesnap: Livesnap, mended: Scene) -> None:
    assert named(livesnap.json("doctor")) == mended.rest
    assert not any(path.exists() for path in mended.unowned)
    assert mended.stray.exists()
    assert document(mended.on_record)["legality"] == "legal"
    assert mended.lied.sources() == mended.lied.sources(persistent=True) == {"vda": str(mended.lied_leaf)}
    assert mended.frozen.thaw() == 1


def test_snapshots_work_again_and_all_content_is_right(here: Place, livesnap: Livesnap, mended: Scene) -> None:
    mended.frozen.thaw()
    found = {
        one["disks"][0]["path"]: one
        for one in livesnap.json("snapshot", "list", "behind")
        if (one["consistency"], one["consistency_reason"]) == ("crash", "found")
    }
    oldest, newest = str(mended.on_record.relative_to(here.storage)), mended.by_virsh[0].name
    assert found.keys() == {oldest, newest}
    for vm in mended.vms:
        taken = livesnap.run("snapshot", "create", vm.name, "--name", "after", "--json")
        assert taken.status == 0, taken.out
        writer_went_on(vm)
    contents = [here.content_of(found[path]) for path in (oldest, newest)]
    contents.append(here.content_of(livesnap.json("snapshot", "show", "behind/after")))
    first, second, after = (content.records for content in contents)
    assert not contents[2].needs_recovery
    assert (first, second) == (after[: len(first)], after[: len(second)])
    assert len(first) < len(second) < len(after)
    assert first[-1] < mended.last_before <= second[-1]


def adopt_one_more(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    """Have somebody take a snapshot with virsh, and doctor adopt it: the leaf is not one of ours then."""
    by_virsh = here.storage / f"{vm.name}.snap3"
    make_overlay(by_virsh, backing=leaf(vm), owner=here.host.owner)
    vm.snapshot({"vda": by_virsh})
    vm.wait_acks(more=3)
    livesnap.run("snapshot", "create", vm.name, "--dry-run")
    eventually(lambda: off_chain(livesnap, vm), timeout_s=45, what="the alarm", interval_s=0.1)
    livesnap.run("doctor", "--repair")


def records(here: Place, livesnap: Livesnap, vm: BedVm) -> dict[str, tuple[int, ...]]:
    """Return what each snapshot of a machine that is off holds, and its leaf."""
    found = {each["name"]: here.content_of(each).records for each in livesnap.json("snapshot", "list", vm.name)}
    return {**found, "the leaf": examine(leaf(vm, persistent=True)).records}


def test_found_snapshots_are_deleted_while_their_machine_is_off_and_nothing_is_lost(
    here: Place, livesnap: Livesnap, mended: Scene
) -> None:
    """The volumes above them were made by virsh and adopted: their metadata does not lie beside them."""
    vm = mended.behind
    adopt_one_more(here, livesnap, vm)
    stopped(livesnap, vm)
    before, listed = records(here, livesnap, vm), livesnap.json("snapshot", "list", vm.name)
    found = [each["name"] for each in listed if each["consistency_reason"] == "found"]
    assert len(found) == 3
    gone = livesnap.run("snapshot", "delete", *(f"{vm.name}/{name}" for name in found), "--json")
    assert (gone.status, livesnap.json("job", "list")[0]["state"]) == (0, "completed"), gone.out
    assert records(here, livesnap, vm) == {name: kept for name, kept in before.items() if name not in found}
    assert not any((here.storage / f"{vm.name}.snap{number}").exists() for number in (1, 3))
    boot(livesnap, vm)


@pytest.mark.matrix
@pytest.mark.own_backends
def test_a_lost_database_comes_back_from_storage(livesnap: Livesnap, mended: Scene) -> None:
    """Of what was on record, everything is back but names, receipts and times, which only the database had."""
    before = {vm.name: chain(livesnap, vm.name) for vm in mended.vms}
    count = {vm: len(livesnap.json("snapshot", "list", vm)) for vm in before}
    livesnap.stop()
    for part in livesnap.state_dir.rglob("livesnap.sqlite*"):
        part.unlink()
    livesnap.start()

    lost = livesnap.run("doctor", "--json")

    assert {finding for finding in named(lost.json).items() if finding[0][0] == "record_lost"} == {
        (("record_lost", vm), True) for vm in before
    }
    repaired = livesnap.run("doctor", "--repair", "--json")
    assert {code for code, _ in named(repaired.json)} == {"file_unknown"}, repaired.out
    assert {vm: chain(livesnap, vm) for vm in before} == before
    for vm, number in count.items():
        snapshots = livesnap.json("snapshot", "list", vm)
        assert len(snapshots) == number
        assert {one["consistency_reason"] for one in snapshots} == {"record_lost"}
    assert livesnap.run("snapshot", "create", "behind", "--name", "again").status == 0


def chain(livesnap: Livesnap, vm: str) -> list[tuple[str, str]]:
    """Return what is on record of a machine's disk, base first."""
    return [(layer["volume_id"], layer["path"]) for layer in livesnap.json("vm", "show", vm)["disks"][0]["chain"]]
