"""Images that livesnap finds: adopted where they lie, with their whole chain, or refused with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import HeaderRefused, StorageError
from common.ids import VmId, VolumeId, new_id
from common.images.metadata import Origin
from common.messaging.messages import Format, InspectVolumes, VolumeAt
from spm.operations.inspect_volumes import inspect_volumes
from tests.bed.process import run
from tests.integration.spm_kit import SpmKit, write_data

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    kit = SpmKit(tmp_path / "main", read_only_bases=(str(tmp_path / "golden"),))
    yield kit
    kit.close()


def refusal(kit: SpmKit, leaf: VolumeAt, *, code: str = "header_refused") -> str:
    """Ask for a snapshot of that leaf, which must be refused for its header, and leave nothing made."""
    switch = kit.switch(leaf)
    with pytest.raises(HeaderRefused) as refused:
        kit.create(switch)
    assert not kit.file(switch.new).exists()
    assert not list((kit.root / "images").rglob("*.json"))
    assert refused.value.code == code
    return refused.value.message


def test_whole_chain_is_adopted_in_place(kit: SpmKit) -> None:
    base = kit.image("bases/cloud.img", image_format=Format.RAW)
    middle = kit.overlay("vms/middle.qcow2", "../bases/cloud.img", backing_format=Format.RAW)
    leaf = kit.overlay("vms/web/leaf.qcow2", "../middle.qcow2")
    before = {path: kit.file(path).read_bytes() for path in (base, middle, leaf)}
    switch = kit.switch(leaf)

    answer = kit.create(switch)

    assert [found.volume for found in answer.adopted] == [base, middle, leaf]
    assert [found.parent_id for found in answer.adopted] == [None, base.volume_id, middle.volume_id]
    assert [found.immutable for found in answer.adopted] == [True, True, False]
    assert {found.origin for found in answer.adopted} == {"adopted"}
    assert {path: kit.file(path).read_bytes() for path in before} == before
    assert kit.metadata(leaf, switch.disk_id).origin is Origin.ADOPTED


def test_second_snapshot_adopts_nothing(kit: SpmKit) -> None:
    first = kit.switch(kit.image("web.qcow2"))
    assert len(kit.create(first).adopted) == 1
    assert kit.create(kit.switch(first.new), attempt=2).adopted == ()


def test_absolute_backing_name_within_the_storage_domain(kit: SpmKit) -> None:
    base = kit.image("base.qcow2")
    leaf = kit.overlay("leaf.qcow2", str(kit.file(base)))
    assert [found.volume for found in kit.create(kit.switch(leaf)).adopted] == [base, leaf]


def test_base_shared_by_two_machines_is_adopted_once(kit: SpmKit) -> None:
    base = kit.image("base.qcow2")
    one, two = kit.overlay("one.qcow2", "base.qcow2"), kit.overlay("two.qcow2", "base.qcow2")
    other = VmId(new_id())
    assert [f.volume for f in kit.create(kit.switch(one)).adopted] == [base, one]
    assert [f.volume for f in kit.create(kit.switch(two, vm=other), vm=other).adopted] == [base, two]
    assert len(list((kit.root / "images").rglob(f"{base.volume_id}.json"))) == 1


def test_volume_of_ours_that_became_a_clones_base_is_immutable_from_then_on(kit: SpmKit) -> None:
    first = kit.switch(kit.image("web.qcow2"))
    kit.create(first)
    assert not kit.metadata(first.new).immutable
    clone = kit.overlay("clone.qcow2", first.new.path)
    other = VmId(new_id())
    news = kit.create(kit.switch(clone, vm=other), vm=other).adopted
    assert [(f.volume, f.immutable) for f in news if f.volume != clone] == [
        (first.old, True),
        (first.new, True),
    ]
    assert kit.metadata(first.new).immutable


def test_base_outside_below_a_declared_folder(kit: SpmKit, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    run(["qemu-img", "create", "-q", "-f", "qcow2", golden / "debian.qcow2", "16M"])
    leaf = kit.overlay("leaf.qcow2", str(golden / "debian.qcow2"))
    switch = kit.switch(leaf)
    answer = kit.create(switch)
    assert [(f.volume, f.parent_id) for f in answer.adopted] == [(leaf, None)]
    assert kit.metadata(leaf, switch.disk_id).external_base == str(golden / "debian.qcow2")
    assert kit.create(kit.switch(leaf), attempt=2).adopted == answer.adopted


def test_base_outside_elsewhere_is_refused(kit: SpmKit, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", outside, "16M"])
    assert "read-only base" in refusal(kit, kit.overlay("leaf.qcow2", str(outside)))


def test_declared_base_that_leads_elsewhere_is_refused(kit: SpmKit, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    run(["qemu-img", "create", "-q", "-f", "raw", tmp_path / "secret.img", "16M"])
    (golden / "link.img").symlink_to(tmp_path / "secret.img")
    leaf = kit.overlay("leaf.qcow2", str(golden / "link.img"), backing_format=Format.RAW)
    assert "read-only base" in refusal(kit, leaf)


def test_loop_is_refused(kit: SpmKit) -> None:
    kit.overlay("a.qcow2", "b.qcow2")
    assert "loop" in refusal(kit, kit.overlay("b.qcow2", "a.qcow2"))


def test_too_deep_a_chain_is_refused(kit: SpmKit) -> None:
    kit.image("0.qcow2")
    for n in range(1, 201):
        leaf = kit.overlay(f"{n}.qcow2", f"{n - 1}.qcow2")
    assert "deeper than 200" in refusal(kit, leaf)
    assert len(kit.create(kit.switch(kit.at("199.qcow2"))).adopted) == 200


def test_backing_format_that_would_be_probed_is_refused(kit: SpmKit) -> None:
    kit.image("base.qcow2")
    leaf = kit.overlay("leaf.qcow2", "base.qcow2", backing_format=None)
    assert "format ''" in refusal(kit, leaf)


@pytest.mark.parametrize("name", ["nbd:localhost:10809", "json:{}", "file:base.qcow2", "http://host/x"])
def test_backing_name_with_a_protocol_is_refused(kit: SpmKit, name: str) -> None:
    assert "protocol" in refusal(kit, kit.overlay("leaf.qcow2", name))


def test_encrypted_image_is_refused(kit: SpmKit) -> None:
    path = kit.root / "secret.qcow2"
    secret = ("--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s")
    run(["qemu-img", "create", "-q", "-f", "qcow2", *secret, path, "16M"])
    assert "is encrypted" in refusal(kit, kit.at("secret.qcow2"), code="disk_encrypted")


def test_external_data_file_is_refused(kit: SpmKit) -> None:
    leaf = kit.image("leaf.qcow2", options=("-o", f"data_file={kit.root}/data.raw"))
    assert "data file" in refusal(kit, leaf)


def test_image_that_is_not_what_the_records_say_is_refused(kit: SpmKit) -> None:
    (kit.root / "leaf.qcow2").write_bytes(b"\0" * 65536)
    assert "not a qcow2 image" in refusal(kit, kit.at("leaf.qcow2"))


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(kit: SpmKit, kind: str) -> None:
    path = kit.root / "leaf.qcow2"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert "regular file" in refusal(kit, kit.at("leaf.qcow2"))


def test_leaf_whose_header_was_changed_behind_our_back_is_refused(kit: SpmKit) -> None:
    first = kit.switch(kit.image("web.qcow2"))
    kit.create(first)
    other = kit.image("other.qcow2")
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", kit.file(other), kit.file(first.new)])
    with pytest.raises(HeaderRefused) as refused:
        kit.create(kit.switch(first.new), attempt=2)
    assert "on record is web.qcow2" in refused.value.message


def test_volume_id_that_is_not_the_files_is_refused(kit: SpmKit) -> None:
    kit.image("web.qcow2")
    wrong = replace(kit.at("web.qcow2"), volume_id=VolumeId(new_id()))
    with pytest.raises(StorageError) as refused:
        kit.create(kit.switch(wrong))
    assert refused.value.code == "volume_not_found"


# ---- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_lists_what_exists_and_changes_nothing(kit: SpmKit) -> None:
    first = kit.switch(kit.image("web.qcow2"))
    gone = kit.switch(kit.image("data.qcow2"), "vdb")
    kit.create(first, gone)
    kit.delete(gone)
    write_data(kit.file(first.new))
    before = kit.everything()
    never = kit.switch(first.new).new
    answer = inspect_volumes(InspectVolumes(volumes=(first.old, first.new, gone.new, never)), kit.pool)
    assert [found.volume for found in answer.found] == [first.old, first.new]
    assert kit.everything() == before


def test_inspect_says_when_the_file_of_a_volume_is_gone(kit: SpmKit) -> None:
    first = kit.switch(kit.image("web.qcow2"))
    kit.create(first)
    kit.file(first.new).unlink()
    with pytest.raises(StorageError) as failed:
        inspect_volumes(InspectVolumes(volumes=(first.new,)), kit.pool)
    assert failed.value.code == "volume_not_found"
