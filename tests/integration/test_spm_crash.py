"""kill -9 of the SPM in every crash window, and its successor doing the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from common.images import qcow2
from common.images.metadata import Legality, VolumeState, find
from common.messaging.messages import CreateVolumes, DeleteVolumes, DiskSwitch
from tests import crash
from tests.bed.process import run
from tests.integration.spm_kit import SpmKit, in_use

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

CREATE_POINTS = ("spm.create.begun", "spm.create.linked", "spm.create.metadata_written")
DELETE_POINTS = ("spm.delete.begun", "spm.delete.marked", "spm.delete.trashed", "spm.delete.tombstoned")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    kit = SpmKit(tmp_path / "main")
    yield kit
    kit.close()


def carry_out(
    kit: SpmKit, command: CreateVolumes | DeleteVolumes, attempt: int, *, crash_at: str = ""
) -> subprocess.CompletedProcess[str]:
    """Carry the command out in a process of its own, which dies at a crash point if one is given."""
    kind = "create" if isinstance(command, CreateVolumes) else "delete"
    armed, hit = crash.crash_at(crash_at, kit.root.parent) if crash_at else ({}, kit.root / "never")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.spm_child", kind, str(kit.root), str(attempt)],
        input=TypeAdapter(type(command)).dump_json(command).decode(),
        env={**os.environ, **armed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert hit.exists() == bool(crash_at)
    return done


def killed(kit: SpmKit, command: CreateVolumes | DeleteVolumes, attempt: int, crash_at: str) -> None:
    """Have the SPM killed there."""
    assert carry_out(kit, command, attempt, crash_at=crash_at).returncode == -signal.SIGKILL


def two_disks(kit: SpmKit) -> CreateVolumes:
    return kit.creation(kit.switch(kit.image("web.qcow2")), kit.switch(kit.image("data.qcow2"), "vdb"))


def require_whole(kit: SpmKit, switch: DiskSwitch) -> None:
    known = kit.metadata(switch.new)
    assert (known.state, known.legality) == (VolumeState.EXISTS, Legality.LEGAL)
    assert qcow2.read_header(kit.file(switch.new)).size_bytes == 16 * 2**20
    run(["qemu-io", "-f", "qcow2", "-c", "read 0 64k", kit.file(switch.new)])


def require_gone(kit: SpmKit, switch: DiskSwitch) -> None:
    assert kit.metadata(switch.new).state is VolumeState.DELETED
    assert not kit.file(switch.new).exists()


@pytest.mark.parametrize("point", crash.sampled(*CREATE_POINTS, suite=CREATE_POINTS[::2]))
def test_killed_creation_is_completed_by_doing_it_again(kit: SpmKit, point: str) -> None:
    command = two_disks(kit)
    killed(kit, command, 1, point)
    for switch in command.disks:
        known = find(kit.root, switch.new)
        assert known is None or (kit.file(switch.new).exists() and known.state is VolumeState.EXISTS)

    assert carry_out(kit, command, 1).stdout == "2"

    for switch in command.disks:
        require_whole(kit, switch)
    assert carry_out(kit, command, 1).stdout == "2"


@pytest.mark.parametrize("point", crash.sampled(*CREATE_POINTS, suite=CREATE_POINTS[1:2]))
def test_killed_creation_can_be_undone(kit: SpmKit, point: str) -> None:
    command = two_disks(kit)
    killed(kit, command, 1, point)

    deletion = DeleteVolumes(vm_id=kit.vm, disks=command.disks)
    assert carry_out(kit, deletion, 2).stdout == "2"

    for switch in command.disks:
        require_gone(kit, switch)
    # A creation that comes late makes nothing any more.
    assert carry_out(kit, command, 2).stdout == "volume_deleted"
    for switch in command.disks:
        require_gone(kit, switch)


@pytest.mark.parametrize("point", crash.sampled(*DELETE_POINTS, suite=DELETE_POINTS[1:3]))
def test_killed_deletion_is_completed_by_doing_it_again(kit: SpmKit, point: str) -> None:
    command = two_disks(kit)
    assert carry_out(kit, command, 1).stdout == "2"
    deletion = DeleteVolumes(vm_id=kit.vm, disks=command.disks)
    killed(kit, deletion, 2, point)

    assert carry_out(kit, deletion, 2).stdout == "2"

    for switch in command.disks:
        require_gone(kit, switch)
    assert len(kit.trash()) == 2
    assert carry_out(kit, deletion, 2).stdout == "2"


@pytest.mark.parametrize("point", crash.sampled("spm.delete.begun", "spm.delete.marked", suite=("spm.delete.marked",)))
def test_deletion_killed_before_the_move_leaves_a_volume_in_use_usable(kit: SpmKit, point: str) -> None:
    """A machine is on the volume after all: what the dead SPM marked illegal must be legal again (protocol.md, V8)."""
    command = kit.creation(kit.switch(kit.image("web.qcow2")))
    assert carry_out(kit, command, 1).stdout == "1"
    deletion = DeleteVolumes(vm_id=kit.vm, disks=command.disks)
    killed(kit, deletion, 2, point)
    with in_use(kit.file(command.disks[0].new)):
        assert carry_out(kit, deletion, 3).stdout == "0"
    require_whole(kit, command.disks[0])
    assert kit.trash() == []


def test_killed_adoption_is_completed_by_doing_it_again(kit: SpmKit) -> None:
    kit.image("base.qcow2")
    kit.overlay("middle.qcow2", "base.qcow2")
    command = kit.creation(kit.switch(kit.overlay("leaf.qcow2", "middle.qcow2")))
    killed(kit, command, 1, "spm.create.begun")
    # As if it had died in the midst of the adoption: the leaf's own metadata, written last, is missing.
    for path in (kit.root / "images").rglob(f"{command.disks[0].old.volume_id}.json"):
        path.unlink()
    assert carry_out(kit, command, 1).stdout == "1"
    require_whole(kit, command.disks[0])
