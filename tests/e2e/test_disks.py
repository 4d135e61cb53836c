"""Disks of every kind on one machine: eight that a snapshot takes, all or none, and ten that it lists as left out."""

import json
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from common.images import qcow2
from common.units import whole_sectors
from hostagent import vm_xml
from tests.bed.disks import Format, make_disk, make_overlay
from tests.bed.oracle import examine
from tests.bed.paths import give
from tests.bed.process import run
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.e2e.kit import Livesnap, Place, place
from tests.e2e.odd_disks import TOOLS, OddDisk, OddDisks
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "qemu-nbd", *TOOLS),
    pytest.mark.xdist_group("disks"),
]

SIZE_MIB = 24
ODD_TAIL = 3 * 512
DEEP = 5
UNSEEN = "sdb"
"""The guest's kernel has no driver for its bus (SATA); for libvirt and QEMU it is a disk as any other."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A running livesnap, the machine `zoo`, and `paper`, which is never started."""

    here: Place
    livesnap: Livesnap
    zoo: BedVm
    odd: tuple[OddDisk, ...]
    never_started: tuple[OddDisk, ...]
    factory: OddDisks

    @property
    def good(self) -> list[str]:
        """The targets that a snapshot takes."""
        return sorted(disk.target for disk in self.zoo.spec.disks)

    def chains(self) -> dict[str, tuple[str, ...]]:
        """Return each good disk's live chain, the leaf first."""
        chains = vm_xml.chains(self.zoo.xml())
        return {target: chains[target] for target in self.good}

    def odd_sources(self) -> dict[str, str]:
        """Return where the disks are that no snapshot may touch."""
        sources = vm_xml.sources(self.zoo.xml())
        return {disk.target: sources[disk.target] for disk in self.odd}

    def taken(self, name: str, *words: str) -> Any:
        """Take a snapshot and return it."""
        said = self.livesnap.run("snapshot", "create", "zoo", "--name", name, *words, "--json")
        assert said.status == 0, said.out + said.err
        return self.livesnap.json("snapshot", "show", f"zoo/{name}")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        here = stack.enter_context(place())
        outside = here.root / "outside"
        outside.mkdir(mode=0o755)
        factory = OddDisks(here.host, here.storage, outside, stack)
        odd, never_started = factory.that_run(), factory.that_only_exist()
        zoo = VmSpec(name="zoo", disks=good_disks(here), odd_disks=tuple(disk.xml for disk in odd))
        vm = define_vm(here.host, zoo)
        define_vm(here.host, VmSpec(name="paper", odd_disks=tuple(disk.xml for disk in never_started)))
        vm.start()
        # libvirt has no event for a medium that is changed: what a report shows of it comes with the next one.
        livesnap = stack.enter_context(here.livesnap(environment={"LIVESNAP_REPORT_INTERVAL_S": "2"}))
        vm.wait_ready()
        vm.wait_agent()
        livesnap.shows(vm)
        yield Scene(here=here, livesnap=livesnap, zoo=vm, odd=odd, never_started=never_started, factory=factory)


def good_disks(here: Place) -> tuple[DiskSpec, ...]:
    """Make the eight: their formats, cluster sizes, lengths, depths and buses all differ."""
    raw = make_disk(here.root / "template.raw", format="raw", size_mib=SIZE_MIB, owner=here.host.owner)

    def made(
        target: str, *options: str, tail: int = 0, image_format: Format = "qcow2", bus: str = "virtio"
    ) -> DiskSpec:
        path = here.storage / f"{target}.{image_format}"
        with raw.open("r+b") as template:
            template.truncate(SIZE_MIB * 2**20 + tail)
        more = ["-o", ",".join(options)] if options else []
        run(["qemu-img", "convert", "-f", "raw", "-O", image_format, *more, raw, path])
        if image_format == "raw" and tail:
            with path.open("r+b") as image:
                image.truncate(SIZE_MIB * 2**20 + tail)
        return DiskSpec(path=give(path, here.host.owner), target=target, format=image_format, bus=bus)

    leaf = made("vda").path
    for number in range(DEEP):
        above = here.storage / f"vda-{number}.qcow2"
        leaf = make_overlay(above, backing=leaf, owner=here.host.owner, relative=True)
    return (
        DiskSpec(path=leaf, target="vda"),
        made("vdb", tail=700, image_format="raw"),
        made("vdc", "cluster_size=4k"),
        made("vdd", "cluster_size=2M", "preallocation=full"),
        made("vde", "cluster_size=128k", "extended_l2=on"),
        made("vdf", "preallocation=full", image_format="raw"),
        made("sda", tail=ODD_TAIL, bus="scsi"),
        made(UNSEEN, "preallocation=metadata", bus="sata"),
    )


def check_moved(before: dict[str, tuple[str, ...]], after: dict[str, tuple[str, ...]], moved: set[str]) -> None:
    """Exactly the disks in `moved` have one more layer, directly above the leaf that they had."""
    for target, chain in before.items():
        assert after[target][1:] == chain if target in moved else after[target] == chain, target


def check_headers(chains: dict[str, tuple[str, ...]]) -> None:
    """Every new leaf takes over its parent's shape, and names its format: in its header and to libvirt."""
    for target, (leaf, parent, *_) in chains.items():
        seen, is_raw = qcow2.read_header(Path(leaf)), parent.endswith(".raw")
        assert seen.backing_format == ("raw" if is_raw else "qcow2"), target
        if is_raw:
            assert seen.size_bytes == whole_sectors(Path(parent).stat().st_size)
        else:
            below = qcow2.read_header(Path(parent))
            assert (seen.size_bytes, seen.cluster_bits, seen.extended_l2) == (
                below.size_bytes,
                below.cluster_bits,
                below.extended_l2,
            ), target


def formats(xml: str) -> dict[str, list[str]]:
    """Return the format of each layer below a leaf, as the live definition has it."""
    found = {}
    for disk in ElementTree.fromstring(xml).iterfind("./devices/disk"):
        target = disk.find("target")
        assert target is not None
        found[target.get("dev", "")] = [layer.get("type", "") for layer in disk.iterfind(".//backingStore/format")]
    return found


# ---- what cannot be taken ---------------------------------------------------------------------------------------


def test_each_disk_says_whether_it_can_be_snapshotted_and_why_not(scene: Scene) -> None:
    codes = {
        "zoo": {disk.target: disk.code for disk in scene.odd} | dict.fromkeys(scene.good, ""),
        "paper": {disk.target: disk.code for disk in scene.never_started},
    }
    for name, expected in codes.items():
        disks = scene.livesnap.json("vm", "show", name)["disks"]
        assert {disk["target"]: disk["refusal"] for disk in disks} == expected
        assert all(disk["can_snapshot"] is (disk["refusal_message"] == "") is (disk["refusal"] == "") for disk in disks)
        picture = {line.split()[0]: line for line in scene.livesnap.run("vm", "show", name).out.splitlines() if line}
        for disk in disks:
            answer = f"no   {disk['refusal']}: {disk['refusal_message']}" if disk["refusal"] else "yes"
            assert " ".join(picture[disk["target"]].split()).endswith(" ".join(answer.split()))


def test_each_is_refused_by_its_own_code_when_it_is_named(scene: Scene) -> None:
    named = [("zoo", disk) for disk in scene.odd] + [("paper", disk) for disk in scene.never_started]
    for vm, disk in named:
        status, problem = scene.livesnap.post(f"/v1/vms/{vm}/snapshots", json.dumps({"disks": [disk.target]}).encode())
        assert (status, problem["code"]) == (409, disk.code), disk
        assert problem["detail"]
        assert problem["hint"]
    assert scene.livesnap.json("job", "list") == []


def test_a_machine_without_a_disk_to_take_is_refused(scene: Scene) -> None:
    said = scene.livesnap.run("snapshot", "create", "paper", "--json")
    assert (said.status, said.json["error"]["code"]) == (2, "vm_no_disk")


# ---- what can ---------------------------------------------------------------------------------------------------


def test_eight_disks_in_one_call_and_the_others_are_listed(scene: Scene) -> None:
    before, odd_before = scene.chains(), scene.odd_sources()
    assert len(before["vda"]) == DEEP + 1

    snapshot = scene.taken("all")

    after = scene.chains()
    check_moved(before, after, set(scene.good))
    check_headers(after)
    assert scene.odd_sources() == odd_before
    assert [disk["target"] for disk in snapshot["disks"]] == scene.good
    assert {disk["target"]: disk["reason"] for disk in snapshot["excluded"]} == {
        disk.target: disk.code for disk in scene.odd
    }
    assert snapshot["partial"] is True
    assert (snapshot["consistency"], snapshot["receipt"]["frozen_filesystems"]) == ("filesystem", len(scene.good) - 1)
    assert formats(scene.zoo.xml())["vdb"] == ["raw"]
    for disk in scene.zoo.spec.disks:
        if disk.target != UNSEEN:
            found = examine(disk.path, format=disk.format)
            assert (found.needs_recovery, found.fsck_rc) == (False, 0), disk
            assert found.records
            scene.zoo.wait_acks(target=disk.target)
    assert scene.zoo.write_errors() == []


def test_a_chosen_subset_after_the_medium_was_changed(scene: Scene) -> None:
    """Another disc in the drive is nobody's change of a chain."""
    with scene.zoo.libvirt() as handle:
        handle.updateDeviceFlags(scene.factory.cdrom("second"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    before, odd_before = scene.chains(), scene.odd_sources()
    assert odd_before["sdj"].endswith("second.raw")
    eventually(lambda: shown(scene)["sdj"]["path"] == odd_before["sdj"], timeout_s=20, what="the other medium")

    snapshot = scene.taken("some", "--disk", "vdb", "--disk", UNSEEN)

    after = scene.chains()
    check_moved(before, after, {"vdb", UNSEEN})
    assert scene.odd_sources() == odd_before
    reasons = {disk["target"]: disk["reason"] for disk in snapshot["excluded"]}
    assert reasons == {disk.target: disk.code for disk in scene.odd} | {
        target: "not_requested" for target in scene.good if target not in ("vdb", UNSEEN)
    }
    assert snapshot["partial"] is True


def shown(scene: Scene) -> dict[str, Any]:
    return {disk["target"]: disk for disk in scene.livesnap.json("vm", "show", "zoo")["disks"]}


def test_all_or_none(scene: Scene) -> None:
    """QEMU's user cannot reach the new volume of one disk out of eight: none of them moves."""
    before, odd_before, volumes = scene.chains(), scene.odd_sources(), scene.here.volumes()
    closed = Path(before["sda"][0]).parent
    mode = stat.S_IMODE(closed.stat().st_mode)
    give(closed, (0, 0))
    closed.chmod(0o700)
    try:
        said = scene.livesnap.run("snapshot", "create", "zoo", "--json")
    finally:
        closed.chmod(mode)
        give(closed, scene.here.host.owner)
    assert said.status in (1, 2), said.err
    assert said.json["error"]["code"] == "volume_permission"
    assert (scene.chains(), scene.odd_sources()) == (before, odd_before)
    assert scene.here.volumes() == volumes


def test_stopped_and_started_again(scene: Scene) -> None:
    """The definition says no more than the leaves; what is below them, and in which format, stands in their headers."""
    before = scene.chains()
    scene.zoo.destroy()
    eventually(
        lambda: scene.livesnap.json("vm", "show", "zoo")["state"] == "off", timeout_s=20, what="the machine to be off"
    )
    assert scene.livesnap.json("vm", "show", "zoo")["problem"] == "", "a transient disk's own file has gone by itself"

    scene.taken("off")

    scene.zoo.start(paused=True)
    after = {target: tuple(map(real, chain)) for target, chain in scene.chains().items()}
    check_moved({target: tuple(map(real, chain)) for target, chain in before.items()}, after, set(scene.good))
    assert formats(scene.zoo.xml())["vdb"] == ["qcow2", "qcow2", "raw"]


def real(path: str) -> str:
    return str(Path(path).resolve())
