"""Writes to the new leaf that fail, on a real guest: on a file system that answers with EIO, and when it is full.

One machine whose disks have the error policies side by side; every test leaves it running, on its old leaves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from common.messaging.messages import Outcome
from hostagent.operations.freeze import THAW_LIMIT_MS
from tests.bed.disks import FileSystem, Format, make_disk
from tests.bed.failing_fs import FailingFs
from tests.bed.host import IsolatedHost
from tests.bed.paths import give, short_dir
from tests.bed.process import run
from tests.bed.small_fs import SmallFs
from tests.bed.vm_spec import DiskSpec
from tests.integration.failing_kit import PAUSED_BY_IO_ERROR, XFS, Answered, BreaksAfterThaw, Scene
from tests.integration.operations_kit import Bench, bench_on

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("guest", "fuse", "loop", "mke2fs", "mount"),
    pytest.mark.xdist_group("failing-writes"),
]

SIZE_MIB = 24
#: Half of what an agent is given to answer to a thaw, and ten times what was measured.
PAUSE_LIMIT_S = THAW_LIMIT_MS / 1000 / 2
#: Far below the command's deadline (60 s) and libvirt's job lock (30 s): a commit that fails is not waited for.
COMMIT_LIMIT_S = 15


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A machine with error policy `stop`, but on vdc the default, on vdd and vdg `report`; vdf has no file system.

    Every cluster of its own disks is allocated: on a full file system they take writes, and only a new leaf does not.
    """
    with (
        short_dir() as root,
        IsolatedHost("a", root) as host,
        SmallFs(240, root / "real", host.owner) as small,
        FailingFs(root / "real", root / "storage", host.owner) as failing,
        bench_on(root, host) as on,
    ):
        disks = [
            allocated(on, "vda"),
            allocated(on, "vdb", image_format="raw"),
            allocated(on, "vdc", policy=None),
            allocated(on, "vdd", policy="report"),
            allocated(on, XFS, fs="xfs"),
            allocated(on, "vdf", fs=None),
            allocated(on, "vdg", policy="report"),
        ]
        vm = on.boot_with("unlucky", disks, fs="xfs", pace_ms=50, extra_cmdline="guest.printk=1")
        yield Scene(on=on, vm=vm, failing=failing, small=small)


def allocated(
    on: Bench,
    target: str,
    *,
    image_format: Format = "qcow2",
    fs: FileSystem | None = "ext4",
    policy: str | None = "stop",
) -> DiskSpec:
    plain = make_disk(on.kit.root / "plain", owner=on.host.owner, fs=fs, size_mib=SIZE_MIB)
    path = on.kit.root / f"{target}.{image_format}"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", image_format, "-o", "preallocation=full", plain, path])
    plain.unlink()
    if image_format == "raw":
        with path.open("r+b") as image:
            image.truncate(SIZE_MIB * 2**20 + 700)  # no multiple of 512: QEMU counts the last sector as a whole one
    return DiskSpec(path=give(path, on.host.owner), target=target, format=image_format, error_policy=policy)


@pytest.mark.parametrize(
    ("target", "quiesce"),
    [
        pytest.param("vda", True, id="in the thaw"),
        pytest.param(XFS, True, id="after the thaw, which writes nothing"),
        pytest.param("vda", False, id="right after the switch"),
        pytest.param("vdb", False, id="above a raw base"),
    ],
)
def test_eio_with_policy_stop(scene: Scene, target: str, *, quiesce: bool) -> None:
    disks = scene.on.switches(scene.vm, target)
    scene.failing.fail()
    got = scene.pivot(disks, quiesce=quiesce)
    scene.require_back(got)
    require_short_pause(got)


def test_eio_once_the_new_leaf_holds_data(scene: Scene) -> None:
    """vdf is never written to, so the watch for first writes goes on after vda's."""
    disks = scene.on.switches(scene.vm, "vda", "vdf")
    got = scene.pivot(disks, quiesce=True, guest=BreaksAfterThaw(scene, scene.failing.fail))
    scene.require_back(got)
    require_short_pause(got)


@pytest.mark.parametrize(("target", "quiesce"), [("vda", True), ("vda", False), ("vdc", True)])
def test_full_storage_that_pauses_the_guest(scene: Scene, target: str, *, quiesce: bool) -> None:
    """With QEMU's default policy too: it stops a guest whose storage is full."""
    disks = scene.on.switches(scene.vm, target)
    scene.small.fill()
    scene.vm.wait_acks(more=3, target=target)
    got = scene.pivot(disks, quiesce=quiesce)
    scene.require_back(got)
    require_short_pause(got)


def require_short_pause(got: Answered) -> None:
    """The machine was held for no longer than its rollback takes, and says why."""
    assert "paused by an I/O error on its new volumes" in got.seen.message
    assert len(got.pauses) == 1
    assert got.pauses[0] < PAUSE_LIMIT_S


@pytest.mark.parametrize("holds_data", [False, True])
def test_the_old_leaf_cannot_take_the_writes_either(scene: Scene, *, holds_data: bool) -> None:
    """Then the machine stays paused, its chain whole, until somebody gives it storage that it can write to."""
    vm = scene.vm
    disks = scene.on.switches(vm, "vda", "vdf")

    def both_fail() -> None:
        scene.failing.fail(then=r"vda\.qcow2")

    if not holds_data:
        both_fail()
    begun = time.monotonic()
    got = scene.pivot(disks, quiesce=True, guest=BreaksAfterThaw(scene, both_fail) if holds_data else None)
    assert time.monotonic() - begun < COMMIT_LIMIT_S
    require_stuck(scene, got, on_new=holds_data)
    require_stuck(scene, scene.repair(got), on_new=holds_data)

    scene.mend()
    if not holds_data:
        scene.require_back(scene.repair(got))
        return
    vm.resume()  # what the way out says; the machine then writes on to its new leaf
    vm.wait_acks(more=3)
    assert scene.probe(got).seen.outcome is Outcome.BAD, "never a success: the old leaf may hold newer data"
    scene.require_back(scene.repair(got), code="pivot_failed")


def require_stuck(scene: Scene, got: Answered, *, on_new: bool) -> None:
    """The machine is paused and says why; QEMU and both definitions agree on where it is."""
    old, new = scene.on.paths(got.disks)
    assert (got.seen.outcome, got.seen.code) == (Outcome.BAD, "volume_not_writable"), got.seen
    assert "resume the machine and resolve the job" in got.seen.hint
    assert scene.vm.state() == PAUSED_BY_IO_ERROR
    leaf = (new if on_new else old)["vda"]
    assert scene.vm.sources()["vda"] == scene.vm.sources(persistent=True)["vda"] == leaf
    assert all(scene.on.kit.file(disk.new).exists() for disk in got.disks)


# ---- the last ones: guests that hear of errors, after which their file systems may be beyond use -----------------


@pytest.mark.parametrize(
    ("target", "policy", "is_full"),
    [
        pytest.param("vdc", "default", False, id="EIO by default"),
        pytest.param("vdd", "report", False, id="EIO by report"),
        pytest.param("vdg", "report", True, id="ENOSPC by report"),
    ],
)
def test_errors_that_the_guest_is_told_of(scene: Scene, target: str, policy: str, *, is_full: bool) -> None:
    """What nobody can prevent is said: which disk, by which policy, and that the guest has heard of it."""
    disks = scene.on.switches(scene.vm, target)
    if is_full:
        scene.small.fill()
    else:
        scene.failing.fail()
    got = scene.pivot(disks, quiesce=False)
    scene.require_back(got)
    assert f"{target} (error policy {policy})" in got.seen.message
    assert "told the guest" in got.seen.message
    assert "error_policy='stop'" in got.seen.hint
    assert target in {error.target for error in scene.vm.write_errors()}
    assert got.pauses == []


def test_every_acknowledged_record_is_there(scene: Scene) -> None:
    scene.require_records()
