"""Quiescing: what becomes of job, label and guest in each mode when the guest's agent is not as it should be.

One livesnap and one guest serve it all; the guest's agent is set through a shell of its own (`BedVm.shell`), and what
must happen in the middle of a freeze happens while the host agent stands still there. Another guest has no channel.

Every mode is tried where no agent is there and where a freeze fails; elsewhere those that could go wrong. What a mode
makes of each typed answer is decided by a pure function, which tests/unit/manager/flows tries with all of them.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.ids import new_id
from hostagent import vm_xml
from tests.bed.disks import make_overlay
from tests.bed.process import outcome
from tests.bed.vm import BedVm
from tests.e2e.kit import writer_went_on
from tests.e2e.quiesce_kit import (
    FREEZE_LIMIT_S,
    HELD_LIMIT_S,
    NO_AGENT,
    QUIESCED,
    UNQUIESCED,
    UNTOUCHED,
    Mode,
    Scene,
    Told,
    opened,
)
from tests.wait import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server"),
    pytest.mark.xdist_group("quiescing"),
]
SLOW_HOOK_S = 3


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with opened() as made:
        yield made


@pytest.fixture(scope="module")
def mute(scene: Scene) -> BedVm:
    """A guest without an agent's channel."""
    vm = scene.here.guest("mute", agent=False)
    scene.livesnap.shows(vm)
    return vm


# ---- no compatible agent: said before anything is touched, and the only reason to go on without ----------------------


def check_no_agent(told: Told, mode: Mode) -> None:
    """Check what each mode makes of a guest that has no compatible agent."""
    if mode == "require":
        told.check_failed("guest_agent_missing", NO_AGENT)
    elif mode == "never":
        told.check_taken(("crash", "not_quiesced"), UNQUIESCED)
    else:
        told.check_taken(("crash", "not_quiesced"), NO_AGENT, UNQUIESCED)
        assert [step["reason"] for step in told.snapshot["receipt"]["attempts"][1:]] == [told.reason(), ""]


@pytest.mark.parametrize("mode", ["auto", "require", "best-effort", "never"])
def test_no_channel(scene: Scene, mute: BedVm, mode: Mode) -> None:
    told = scene.take(mode, vm="mute")
    check_no_agent(told, mode)
    if mode != "never":
        assert "no_channel" in told.reason()
    writer_went_on(mute)


def test_channel_but_no_agent(scene: Scene) -> None:
    scene.set_agent("none")
    check_no_agent(scene.take("auto"), "auto")
    scene.check_guest()


def test_freezing_disabled_in_the_guest(scene: Scene) -> None:
    scene.set_agent("block")
    told = scene.take("best-effort")
    check_no_agent(told, "best-effort")
    assert "does not offer freezing" in told.reason()
    scene.check_guest()


def test_agent_stopped_before_the_freeze(scene: Scene) -> None:
    scene.set_agent("normal")
    scene.vm.shell("killall -STOP qemu-ga")
    told = scene.take("auto")
    scene.vm.shell("killall -CONT qemu-ga")
    check_no_agent(told, "auto")
    scene.check_guest()
    assert scene.vm.freeze_status() == "thawed"


# ---- a freeze that fails: no second pivot but in best-effort, once the guest is proven thawed ------------------------


@pytest.mark.parametrize("mode", ["auto", "require", "best-effort", "never"])
def test_freeze_hook_fails(scene: Scene, mode: Mode) -> None:
    scene.set_agent("hookfail")
    told = scene.take(mode)
    if mode == "best-effort":
        told.check_taken(("crash", "not_quiesced"), UNTOUCHED, UNQUIESCED)
    elif mode == "never":
        told.check_taken(("crash", "not_quiesced"), UNQUIESCED)
    else:
        told.check_failed("freeze_failed", UNTOUCHED)
    if mode != "never":
        assert "fsfreeze hook has failed with status 3" in told.reason()
    scene.check_guest()
    assert scene.vm.freeze_status() == "thawed"


def test_freeze_that_completes_after_its_limit_is_thawed(scene: Scene) -> None:
    scene.set_agent("hookslow")
    scene.vm.shell(f"echo {SLOW_HOOK_S} >/run/hook_s")
    told = scene.take("best-effort")
    told.check_taken(("crash", "not_quiesced"), UNTOUCHED, UNQUIESCED)
    scene.check_guest()
    assert scene.vm.freeze_status() == "thawed"


@pytest.mark.matrix
def test_agent_that_stops_in_the_freeze_is_thawed_once_it_goes_on(scene: Scene) -> None:
    """Even best-effort does not go on: the guest could freeze at any moment."""
    scene.set_agent("hookstop")
    with scene.nothing_changed():
        told = scene.take("best-effort")
    told.check_failed("guest_not_thawed", UNTOUCHED)
    late = scene.vm.last_ack()
    scene.vm.shell("killall -CONT qemu-ga; killall -CONT hookstop; true")
    eventually(lambda: "guard_thawed" in scene.livesnap.log("guard"), timeout_s=20, what="the guard's thaw")
    scene.check_guest()
    assert scene.vm.freeze_status() == "thawed"
    assert scene.vm.last_ack() > late


# ---- frozen by somebody else: said, never thawed, never pivoted as if quiesced ---------------------------------------


@pytest.mark.parametrize("mode", ["auto", "best-effort", "never"])
def test_frozen_by_somebody_else(scene: Scene, mode: Mode) -> None:
    scene.set_agent("normal")
    assert scene.vm.freeze() == 2
    told = scene.take(mode)
    assert scene.vm.thaw() == 2, "what somebody else has frozen is theirs to thaw"
    if mode == "never":
        told.check_taken(("crash", "not_quiesced"), UNQUIESCED)
        assert told.snapshot["receipt"]["freeze_sent"] is False
    else:
        told.check_failed("guest_frozen_by_others", UNTOUCHED)
    scene.check_guest()


def test_frozen_by_somebody_else_between_our_look_and_our_freeze(scene: Scene) -> None:
    scene.set_agent("normal")
    with scene.nothing_changed():
        with scene.stopped("host.pivot.armed", "best-effort") as job:
            assert scene.vm.freeze() == 2
        told = scene.end_of(job)
    assert scene.vm.thaw() == 2, "what somebody else has frozen is theirs to thaw"
    told.check_failed("guest_frozen_by_others", UNTOUCHED)
    scene.check_guest()


# ---- a freeze that does not last: the label is lost, and what was required is taken back -----------------------------


def test_file_system_thawed_early_costs_the_label(scene: Scene) -> None:
    scene.set_agent("normal")
    with scene.stopped("host.pivot.frozen", "auto") as job:
        scene.vm.shell("fsfreeze --unfreeze /mnt/vda")
        writer_went_on(scene.vm)
    told = scene.end_of(job)
    told.check_taken(("crash", "thaw_count_differs"), QUIESCED)
    receipt = told.snapshot["receipt"]
    assert (receipt["frozen_filesystems"], receipt["thawed_filesystems"]) == (2, 1)
    assert (receipt["freeze_confirmed"], receipt["thaw_confirmed"], receipt["guard_fired"]) == (True, True, False)
    assert scene.here.content_of(told.snapshot).needs_recovery, "and rightly: the writer went on before the switch"
    scene.check_guest()


def test_guest_that_thaws_itself_is_no_quiesced_one(scene: Scene) -> None:
    """As Windows does after ten seconds: all of it is thawed when the switch comes."""
    scene.set_agent("normal")
    with scene.nothing_changed():
        with scene.stopped("host.pivot.frozen", "require") as job:
            scene.vm.shell("fsfreeze --unfreeze /mnt/vda; fsfreeze --unfreeze /mnt/vdb")
            writer_went_on(scene.vm)
        told = scene.end_of(job)
    told.check_failed("quiesce_unproven", QUIESCED)
    assert "thawed early" in told.job["error"]["message"]
    scene.check_guest()


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_agent_that_dies_while_frozen(scene: Scene, mode: Mode) -> None:
    """Nobody can thaw the guest before its agent is back; then the guard does."""
    scene.set_agent("normal")
    before = scene.vm.sources()
    with scene.stopped("host.pivot.frozen", mode) as job:
        scene.vm.shell("killall -9 qemu-ga")
    told = scene.end_of(job)
    frozen_at = scene.vm.last_ack()
    scene.vm.shell("agent normal")
    if mode == "require":
        told.check_failed("quiesce_unproven", QUIESCED)
        assert scene.vm.sources() == before
    else:
        told.check_taken(("crash", "thaw_not_confirmed"), QUIESCED)
        receipt = told.snapshot["receipt"]
        assert (receipt["freeze_confirmed"], receipt["frozen_filesystems"]) == (True, 2)
        assert (receipt["thaw_confirmed"], receipt["thawed_filesystems"]) == (False, 0)
    scene.check_guest()
    assert scene.vm.last_ack() > frozen_at
    assert scene.vm.freeze_status() == "thawed"


def test_guest_held_for_longer_than_the_setting_is_thawed_by_the_guard(scene: Scene) -> None:
    scene.set_agent("normal")
    with scene.stopped("host.pivot.issued", "auto") as job:
        began = time.monotonic()
        scene.vm.wait_acks(more=3)
        held_s = time.monotonic() - began
    told = scene.end_of(job)
    told.check_taken(("crash", "guard_fired"), QUIESCED)
    receipt = told.snapshot["receipt"]
    assert receipt["guard_fired"] is True
    assert (receipt["freeze_limit_ms"], receipt["held_limit_ms"]) == (FREEZE_LIMIT_S * 1000, HELD_LIMIT_S * 1000)
    assert receipt["held_ms"] >= held_s * 1000
    assert receipt["held_ms"] >= receipt["held_limit_ms"] - 100
    scene.check_guest()


# ---- the receipt, held against sources of its own --------------------------------------------------------------------


def test_the_receipt_says_what_others_say_too(scene: Scene) -> None:
    scene.set_agent("hookslow")
    scene.vm.shell("echo 0.5 >/run/hook_s")
    before, began, fired = scene.vm.sources(), datetime.now(UTC), scene.livesnap.log("guard").count("guard_fires")
    with scene.stopped("host.pivot.frozen", "auto", "--disk", "vda", "--name", "whole") as job:
        stopwatch = time.monotonic()
        eventually(lambda: time.monotonic() > stopwatch + 1, timeout_s=5, what="a second to pass")
        held_ms = (time.monotonic() - stopwatch) * 1000
    told = scene.end_of(job)
    scene.check_guest()

    told.check_taken(("filesystem", ""), QUIESCED)
    receipt = told.snapshot["receipt"]
    assert (receipt["consistency"], receipt["consistency_reason"], receipt["quiesce_mode"]) == (
        "filesystem",
        "",
        "auto",
    )
    assert receipt["attempts"] == scene.livesnap.job(job["id"])["attempts"]
    assert (receipt["freeze_sent"], receipt["freeze_confirmed"], receipt["thaw_confirmed"]) == (True, True, True)
    mounted = len(scene.vm.console().rpartition("GUEST READY disks:")[2].splitlines()[0].split())
    assert receipt["frozen_filesystems"] == receipt["thawed_filesystems"] == mounted == 2
    assert receipt["guard_fired"] is False
    assert scene.livesnap.log("guard").count("guard_fires") == fired
    assert began < datetime.fromisoformat(receipt["switched_at"]) < datetime.now(UTC)
    assert receipt["excluded"] == [{"target": "vdb", "reason": "not_requested"}]
    check_routing(scene, receipt, before)
    check_times(scene, told, held_ms)
    page = scene.livesnap.run("snapshot", "show", "web/whole").out
    for words in (
        "2 file systems",
        f"{receipt['held_ms']:.1f} ms of at most {HELD_LIMIT_S} s",
        "did not fire",
        "new volume",
    ):
        assert words in page


def check_routing(scene: Scene, receipt: Any, before: dict[str, str]) -> None:
    """Hold what the receipt says of the disk against libvirt, QEMU's lock and QEMU's file, as others see them."""
    (disk,) = receipt["disks"]
    live, persistent = scene.vm.sources(), scene.vm.sources(persistent=True)
    assert str(scene.here.storage / disk["previous"]["path"]) == before["vda"]
    assert str(scene.here.storage / disk["new"]["path"]) == live["vda"] == persistent["vda"]
    assert live["vdb"] == before["vdb"]
    assert disk["routing"] == {
        "live_definition": live["vda"],
        "persistent_definition": persistent["vda"],
        "new_is_locked": True,
        "qemu_was_asked": False,
        "qemu": "",
    }
    info = ["qemu-img", "info", "-f", "qcow2", live["vda"]]
    assert outcome(info, ok=range(256))[0] != 0, "nobody holds the image lock"
    assert outcome([*info, "-U"], ok=(0,))[0] == 0
    with scene.vm.libvirt() as handle:
        assert not any("monitor" in taint for taint in handle.messages(0)), "QEMU was asked after all"
    assert 0 < disk["first_write_bytes"] <= Path(live["vda"]).stat().st_size


def check_times(scene: Scene, told: Told, held_ms: float) -> None:
    """Hold the two times against the test's clock, and against the gap in the guest's own timestamped writes.

    The gap lies between the last record in the snapshot and the next one. The hook's half second is no part of it.
    """
    receipt = told.snapshot["receipt"]
    assert receipt["freeze_ms"] >= 500
    assert receipt["held_ms"] >= held_ms
    last = scene.here.content_of(told.snapshot).records[-1]
    uptimes_ms = {ack.n: ack.uptime_ms for ack in scene.vm.acks() if ack.target == "vda"}
    gap_ms = uptimes_ms[last + 1] - uptimes_ms[last]
    # A busy emulator may print an acknowledgement late, on either side.
    assert gap_ms >= receipt["held_ms"] - receipt["thaw_ms"] - 250, "the guest wrote while it is said to be frozen"
    assert gap_ms <= receipt["held_ms"] + receipt["freeze_ms"] - 500 + 1000


# ---- what it is worth: the guest booted from its snapshot (last, since they take the machine off its chain) ----------


def booted_from(scene: Scene, snapshot: Any) -> str:
    """Stop the machine, put it on overlays above a snapshot's volumes, boot it; return what it says until it is up."""
    vm, owner = scene.vm, scene.here.host.owner
    vm.destroy()
    leaves = {}
    for disk in snapshot["disks"]:
        overlay = scene.here.storage / f"reverted-{new_id()}.qcow2"
        make_overlay(overlay, backing=scene.here.storage / disk["path"], owner=owner)
        leaves[disk["target"]] = (str(overlay), "qcow2")
    with vm.host.connect() as connection:
        connection.defineXML(vm_xml.with_sources(vm.xml(persistent=True), leaves))
    said, boots = len(vm.console()), vm.console().count("GUEST READY")
    vm.start()
    vm.wait_ready(boots=boots + 1)
    assert {target: path for target, (path, _) in leaves.items()} == vm.sources()
    return vm.console()[said:]


@pytest.fixture(scope="module")
def two(scene: Scene) -> tuple[Any, Any]:
    """A quiesced and an unquiesced snapshot of the guest while its writers were at work."""
    scene.set_agent("normal")
    quiesced, unquiesced = scene.take("auto"), scene.take("never")
    quiesced.check_taken(("filesystem", ""), QUIESCED)
    unquiesced.check_taken(("crash", "not_quiesced"), UNQUIESCED)
    return quiesced.snapshot, unquiesced.snapshot


@pytest.mark.matrix
def test_a_machine_reverted_to_a_quiesced_snapshot_boots_cleanly(scene: Scene, two: tuple[Any, Any]) -> None:
    said = booted_from(scene, two[0])
    for disk in ("vda", "vdb"):
        assert f"EXT4-fs ({disk}): mounted filesystem" in said
    assert "recover" not in said
    scene.vm.wait_acks()


@pytest.mark.matrix
def test_a_machine_reverted_to_an_unquiesced_snapshot_has_to_recover(scene: Scene, two: tuple[Any, Any]) -> None:
    said = booted_from(scene, two[1])
    for disk in ("vda", "vdb"):
        assert f"EXT4-fs ({disk}): recovery complete" in said
    scene.vm.wait_acks()
