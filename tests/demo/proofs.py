"""What is proven of a guest in more than one chapter, each time from the guest's own records."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bed.oracle import Finding, examine, sha256
from tests.bed.vm import BedVm
from tests.demo.stage import Stage

MORE_RECORDS = 25


def writer_went_on(stage: Stage, vm: BedVm) -> None:
    """Claim that the guest has noticed nothing: it writes, without an error and without a gap, to this moment."""
    vm.wait_acks(more=MORE_RECORDS)
    acks = [ack for ack in vm.acks() if ack.target == "vda"]
    numbers = [ack.n for ack in acks]
    stage.teller.claim("the guest has seen no write error", not vm.write_errors(), vm.write_errors())
    stage.teller.claim(
        f"it goes on writing: records 1 to {numbers[-1]} acknowledged, none is missing",
        numbers == list(range(1, len(numbers) + 1)),
        numbers,
    )
    pause = max(after.uptime_ms - before.uptime_ms for before, after in pairwise(acks))
    stage.teller.show(f"(its longest pause between two records, by its own clock: {pause} ms)")


def on_new_volume(stage: Stage, vm: BedVm, before: str) -> None:
    """Claim that live and persistent definition name one volume that livesnap made."""
    live, persistent = vm.sources()["vda"], vm.sources(persistent=True)["vda"]
    stage.teller.claim(
        "the machine is on a new volume, in its live and in its persistent definition",
        live == persistent != before and Path(live).is_relative_to(stage.here.storage / "images"),
        (live, persistent),
    )


def straight_way(stage: Stage, job: Any) -> None:
    """Claim that the job went its three steps, none of them twice, and says how long each took."""
    steps = [(entry["step"], entry["ms"]) for entry in job["timeline"]]
    stage.teller.claim(
        "the timeline: " + ", ".join(f"{step} after {ms:.1f} ms" for step, ms in steps),
        [step for step, _ in steps] == ["creating_volumes", "pivoting", "completed"] and all(ms > 0 for _, ms in steps),
        steps,
    )


def chain_of(stage: Stage, vm: BedVm) -> list[str]:
    """Return the chain of the machine's vda on record, base first."""
    (disk,) = [disk for disk in stage.livesnap.json("vm", "show", vm.name)["disks"] if disk["target"] == "vda"]
    return [layer["path"] for layer in disk["chain"]]


def chain_has_grown(stage: Stage, vm: BedVm, before: list[str]) -> None:
    """Claim that the chain on record is one volume longer, and that its leaf is what QEMU has."""
    now = chain_of(stage, vm)
    stage.teller.claim(
        f"the chain was {len(before)} volume long and is {len(now)}: the previous leaf is the new one's base",
        now[:-1] == before and str(stage.here.storage / now[-1]) == vm.sources()["vda"],
        (before, now),
    )


def stands_still(stage: Stage, vm: BedVm, snapshot: Any) -> None:
    """Claim that the snapshot's volume does not change any more while the guest writes on."""
    path = volume_of(stage, snapshot)
    before = sha256(path)
    vm.wait_acks(more=MORE_RECORDS)
    after = sha256(path)
    stage.teller.claim(
        f"the previous volume stands still while the guest writes on: sha256 {before[:16]}… before and after"
        f" {MORE_RECORDS} more records",
        before == after,
        (before, after),
    )


def whole_up_to_the_switch(stage: Stage, vm: BedVm, snapshot: Any, acknowledged: int) -> Finding:
    """Claim that the snapshot holds all records up to one of its moment; `acknowledged` were safe before it."""
    finding = examine(volume_of(stage, snapshot))
    last = finding.records[-1] if finding.records else 0
    stage.teller.claim(
        f"the snapshot holds the guest's records 1 to {last} without a gap, all {acknowledged} that were acknowledged"
        " before it among them; e2fsck finds nothing to repair",
        finding.fsck_rc == 0
        and finding.records == tuple(range(1, last + 1))
        and acknowledged <= last <= vm.last_ack() + 1,
        (finding.fsck_rc, last, acknowledged, vm.last_ack()),
    )
    return finding


def volume_of(stage: Stage, snapshot: Any) -> Path:
    """Return the file that holds the content of the snapshot's vda."""
    (disk,) = [disk for disk in snapshot["disks"] if disk["target"] == "vda"]
    return stage.here.storage / str(disk["path"])
