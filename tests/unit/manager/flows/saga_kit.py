"""A plan, and every answer that the world can give to it, for the saga's tests."""

from datetime import UTC, datetime
from functools import cache

from common.ids import DiskId, HostId, PoolId, SnapshotId, StorageDomainId, VmId, VolumeId, derived_id
from common.images.layout import volume_path
from common.messaging.messages import (
    Answer,
    DiskSwitch,
    Failed,
    Format,
    Kept,
    KeptVolume,
    LeavesObserved,
    Outcome,
    Refusal,
    Refused,
    VolumeAt,
    VolumeFound,
    VolumesCreated,
    VolumesDeleted,
)
from common.receipt import Receipt
from manager.flows.base import Answered, CancelRequested, Event, HostLost, Next, ResolveRequested, Started, TimedOut
from manager.flows.snapshot import advance, begin
from manager.flows.snapshot_states import NeedsOperator, Plan, QuiesceMode, RolledBack, State

H1, H2 = HostId("h1"), HostId("h2")
VM = VmId(derived_id("test", "vm"))
STORAGE_DOMAIN = StorageDomainId(derived_id("test", "storage domain"))


def disk(target: str) -> DiskSwitch:
    """Return the switch of one disk from an adopted base to a new volume."""
    disk_id, volume_id = DiskId(derived_id("disk", target)), VolumeId(derived_id("new", target))
    old = VolumeAt(
        volume_id=VolumeId(derived_id("old", target)),
        storage_domain_id=STORAGE_DOMAIN,
        path=f"{target}.qcow2",
        format=Format.QCOW2,
    )
    new = VolumeAt(
        volume_id=volume_id,
        storage_domain_id=STORAGE_DOMAIN,
        path=volume_path(disk_id, volume_id),
        format=Format.QCOW2,
    )
    return DiskSwitch(target=target, disk_id=disk_id, old=old, new=new)


@cache
def plan(mode: QuiesceMode = "auto") -> Plan:
    """Return a plan for two disks."""
    return Plan(
        snapshot=SnapshotId(derived_id("test", "snapshot")),
        vm=VM,
        pool=PoolId("default"),
        disks=(disk("vda"), disk("vdb")),
        mode=mode,
        freeze_limit_ms=60_000,
        held_limit_ms=10_000,
    )


RECEIPT = Receipt(
    vm_state="running",
    quiesce=True,
    switched_at=datetime(2026, 11, 23, tzinfo=UTC),
    own_switch=True,
    freeze_sent=True,
    freeze_confirmed=True,
    frozen_filesystems=2,
    thaw_confirmed=True,
    thawed_filesystems=2,
)


def created() -> VolumesCreated:
    """Return the SPM's answer that every volume of the plan exists."""
    found = tuple(
        VolumeFound(volume=d.new, disk_id=d.disk_id, parent_id=d.old.volume_id, size_bytes=1 << 26)
        for d in plan().disks
    )
    return VolumesCreated(created=found)


def observed(
    outcome: Outcome, code: str = "", receipt: Receipt | None = None, *, commit_begun: bool = False
) -> LeavesObserved:
    """Return a host's observation."""
    return LeavesObserved(
        outcome=outcome,
        boot_id="b",
        runtime_id="r",
        commit_begun=commit_begun,
        code=code,
        message=code,
        receipt=receipt,
    )


def deleted(kept: Kept | None = None) -> VolumesDeleted:
    """Return the SPM's answer to a deletion: all gone, or the second volume kept."""
    first, second = plan().new_volumes
    if kept is None:
        return VolumesDeleted(gone=(first, second))
    return VolumesDeleted(gone=(first,), kept=(KeptVolume(volume_id=second, why=kept),))


SPM_ANSWERS: tuple[Answer, ...] = (created(), VolumesCreated(created=()), deleted(), *(deleted(kept) for kept in Kept))
HOST_ANSWERS: tuple[Answer, ...] = (
    *(observed(outcome) for outcome in Outcome),
    observed(Outcome.ALL_NEW, receipt=RECEIPT),
    observed(Outcome.NONE, code="freeze_failed"),
    observed(Outcome.NONE_ROLLED_BACK, code="volume_not_writable"),
    observed(Outcome.BAD, code="volume_not_writable"),
    *(observed(outcome, commit_begun=True) for outcome in Outcome),
)
ANY_ANSWERS: tuple[Answer, ...] = (
    Failed(code="storage_full", message="full"),
    *(Refused(why=why, message=why) for why in Refusal),
)
ANSWERS = SPM_ANSWERS + HOST_ANSWERS + ANY_ANSWERS

STANDING = (plan().new_volumes, plan().new_volumes[1:], ())
"""What may be left of the new volumes when their host is lost."""

EVENTS: tuple[Event, ...] = (
    Started(),
    TimedOut(vm_host=H1),
    TimedOut(vm_host=H2),
    TimedOut(),
    CancelRequested(),
    ResolveRequested(vm_host=H1),
    ResolveRequested(),
    ResolveRequested(vm_host=H2, host_was_rebooted=True),
    *(HostLost(host=host, standing=standing) for host in (H1, H2) for standing in STANDING),
    *(Answered(answer=answer, vm_host=H1) for answer in ANSWERS),
    *(Answered(answer=observed(Outcome.NOT_HERE), vm_host=host) for host in (H2, None)),
)


SILENT = (TimedOut(vm_host=H1), TimedOut(vm_host=H1))
"""The pivot's host did not answer, and neither did it answer the probe."""


def tell(*events: Event, mode: QuiesceMode = "auto") -> list[Next[State]]:
    """Feed the events to a new saga, one after the other; return every step."""
    steps, state = [], begin(plan(mode), H1)
    for event in (Started(), *events):
        step = advance(state, event)
        steps.append(step)
        state = step.state
    return steps


def answered(answer: object) -> Answered:
    """Wrap an answer that came while the inventory has the vm on h1."""
    return Answered(answer=answer, vm_host=H1)  # type: ignore[arg-type]


def command_of(step: Next[State]) -> object:
    """Return the command that a step sends; fail if it sends none."""
    assert step.send is not None, f"nothing was sent: {step}"
    return step.send.command


def problem_of_last(steps: list[Next[State]]) -> str:
    """Return the code with which the last state explains itself."""
    state = steps[-1].state
    assert isinstance(state, RolledBack | NeedsOperator)
    return state.why.code
