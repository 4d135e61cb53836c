"""The real saga inside the model: its states numbered, its messages made from the model's short ones, its steps kept.

`manager.flows.snapshot.advance` is called as it is. What it returns is told in the model's words, and each pair of
state and event is asked once. The words of a problem are left out of a state's number: nothing is decided by them,
and with them no two ways would lead to the same state (`test_saga_words.py` holds that against the saga).
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Literal, NamedTuple, assert_never

from common import receipt as receipts
from common.ids import DiskId, HostId, PoolId, SnapshotId, StorageDomainId, VmId, VolumeId, derived_id
from common.images.layout import volume_path
from common.messaging.messages import (
    Answer,
    CreateVolumes,
    DeleteVolumes,
    DiskSwitch,
    Failed,
    Format,
    Kept,
    KeptVolume,
    LeavesObserved,
    Outcome,
    Pivot,
    Probe,
    Refusal,
    Refused,
    Repair,
    VolumeAt,
    VolumeFound,
    VolumesCreated,
    VolumesDeleted,
)
from manager.flows import base
from manager.flows.base import Answered, CancelRequested, Event, Next, ResolveRequested, Started, TimedOut
from manager.flows.snapshot import advance, begin
from manager.flows.snapshot_states import Completed, CreatingVolumes, Pivoting, Plan, QuiesceMode, State, is_over
from tests.model.world import NOWHERE, SPM, Op, Receipt, Reply, Sent

Advance = Callable[[State, Event], Next[State]]
HOSTS = (HostId("h1"), HostId("h2"))
_STORAGE = StorageDomainId(derived_id("model", "storage"))
_WHEN = datetime(2026, 1, 1, tzinfo=UTC)
NEEDS_OPERATOR = "needs_operator"
AS_TOLD = "as told above"


class Happened(NamedTuple):
    """An event, short. `host` is where the inventory has the machine."""

    kind: Literal["started", "timeout", "cancel", "resolve", "answer"]
    reply: Reply | None = None
    host: int = NOWHERE


class Stepped(NamedTuple):
    """A step of the saga, short. `sent` has no attempt yet; `label` is the consistency that it recorded, if any."""

    saga: int
    idle: bool
    sent: Sent | None
    timer: bool
    label: str
    detail: str


@cache
def plan(number: int, old: str, new: str, disks: int, mode: QuiesceMode) -> Plan:
    """Return what a job was asked for."""
    return Plan(
        snapshot=SnapshotId(derived_id("model", f"snapshot {number}")),
        vm=VmId(derived_id("model", "vm")),
        pool=PoolId("default"),
        disks=tuple(_disk(target, old, new) for target in ("vda", "vdb")[:disks]),
        mode=mode,
        freeze_limit_ms=60_000,
        held_limit_ms=10_000,
    )


def _disk(target: str, old: str, new: str) -> DiskSwitch:
    disk_id = DiskId(derived_id("model", target))
    return DiskSwitch(target=target, disk_id=disk_id, old=_volume(disk_id, old), new=_volume(disk_id, new))


def _volume(disk_id: DiskId, letter: str) -> VolumeAt:
    volume_id = VolumeId(derived_id(disk_id, letter))
    path = volume_path(disk_id, volume_id)
    return VolumeAt(volume_id=volume_id, storage_domain_id=_STORAGE, path=path, format=Format.QCOW2)


@cache
def receipt(short: Receipt) -> receipts.Receipt:
    """Return the real receipt."""
    return receipts.Receipt(
        vm_state=short.vm_state,
        quiesce=short.quiesce,
        switched_at=_WHEN,
        own_switch=short.own_switch,
        frozen_filesystems=short.frozen,
        thaw_confirmed=short.thaw_confirmed,
        thawed_filesystems=short.thawed,
        guard_fired=short.guard_fired,
    )


def answer(reply: Reply, asked: Plan) -> Answer:
    """Return the real message of an answer."""
    match reply.kind:
        case "created":
            return VolumesCreated(
                created=tuple(
                    VolumeFound(volume=d.new, disk_id=d.disk_id, parent_id=d.old.volume_id, size_bytes=1 << 26)
                    for d in asked.disks
                )
            )
        case "deleted":
            pairs = list(zip(asked.new_volumes, reply.kept, strict=True))
            return VolumesDeleted(
                gone=tuple(volume for volume, why in pairs if not why),
                kept=tuple(KeptVolume(volume_id=volume, why=Kept(why)) for volume, why in pairs if why),
            )
        case "observed":
            proof = receipt(reply.receipt) if reply.receipt else None
            return LeavesObserved(
                outcome=Outcome(reply.what),
                boot_id="b",
                runtime_id="r",
                commit_begun=reply.begun,
                code=reply.code,
                message=f"the host sees {reply.what}",
                receipt=proof,
            )
        case "failed":
            return Failed(code=reply.code, message=reply.code)
        case "refused":
            return Refused(why=Refusal(reply.what), message=reply.what)
        case _:
            assert_never(reply.kind)


class Sagas:
    """Every state that the saga has been in, by number, and every step that it was seen to take."""

    def __init__(self, *, disks: int, mode: QuiesceMode, advance: Advance = advance) -> None:
        """Drive `advance` for machines with that many disks."""
        self._disks, self._mode, self._advance = disks, mode, advance
        self._numbers: dict[State, int] = {}
        self._steps: dict[tuple[int, Happened], Stepped] = {}
        self.states: list[State] = []
        self.labels: list[str] = []

    def begin(self, number: int, old: str, new: str) -> int:
        """Return the number of a new job's first state, before it is fed "started"."""
        return self._number(begin(plan(number, old, new, self._disks, self._mode), HOSTS[0]))

    def step(self, saga: int, happened: Happened) -> Stepped:
        """Return what follows from an event in a state."""
        found = self._steps.get((saga, happened))
        if found is None:
            found = self._steps[saga, happened] = self._ask(saga, happened)
        return found

    def is_over(self, saga: int) -> bool:
        """Tell whether a job in that state has ended."""
        return is_over(self.states[saga])

    def _ask(self, saga: int, happened: Happened) -> Stepped:
        state = self.states[saga]
        event = _event(happened, state.plan)
        step = self._advance(state, event)
        nothing = step.send is None and step.wake_after is None and not step.records
        return Stepped(
            saga=self._number(step.state),
            idle=nothing and step.state == state,
            sent=_sent(step.send) if step.send else None,
            timer=step.wake_after is not None,
            label=next((r.consistency for r in step.records if isinstance(r, base.SnapshotTaken)), ""),
            detail=f"{step.state.label}: {step.detail}" if step.detail else step.state.label,
        )

    def _number(self, state: State) -> int:
        short = wordless(state)
        if short not in self._numbers:
            self._numbers[short] = len(self.states)
            self.states.append(short)
            self.labels.append(short.label)
        return self._numbers[short]


def wordless(state: State) -> State:
    """Return a state without the words of its problem, and without its code but for the one that decisions ask for."""
    match state:
        case Pivoting() | Completed() | CreatingVolumes(why=None):
            return state
        case _:
            assert state.why is not None
            code = state.why.code if state.why.code == "vm_not_found" else "other"
            return replace(state, why=base.Problem(code=code, message=AS_TOLD))


def _event(happened: Happened, asked: Plan) -> Event:
    host = HOSTS[happened.host] if happened.host != NOWHERE else None
    match happened:
        case Happened(kind="started"):
            return Started()
        case Happened(kind="timeout"):
            return TimedOut(vm_host=host)
        case Happened(kind="cancel"):
            return CancelRequested()
        case Happened(kind="resolve"):
            return ResolveRequested(vm_host=host)
        case Happened(reply=reply) if reply is not None:
            return Answered(answer=answer(reply, asked), vm_host=host)
        case _:
            raise AssertionError(happened)


def _sent(send: base.Send) -> Sent:
    to = SPM if isinstance(send, base.ToSpm) else HOSTS.index(send.host)
    command = send.command
    op: Op
    match command:
        case CreateVolumes():
            op = "create"
        case DeleteVolumes():
            op = "delete"
        case Pivot():
            op = "pivot"
        case Probe():
            op = "probe"
        case Repair():
            op = "repair"
        case _:
            raise AssertionError(f"no command of a snapshot: {command}")
    quiesce = isinstance(command, Pivot) and command.quiesce
    committed = isinstance(command, DeleteVolumes) and bool(command.committed)
    undo = isinstance(command, Repair) and command.undo
    return Sent(attempt=0, job=NOWHERE, to=to, op=op, quiesce=quiesce, committed=committed, undo=undo)
