"""What users see: jobs, snapshots, machines and hosts as the API and `--json` show them. Pure.

Field names are a contract (DESIGN.md section 6). Times are UTC; sizes are bytes.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorView:
    """Why something did not happen."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One command of a job: `attempt` is the machine's counter, `to` the queue, `outcome` '' while unanswered."""

    attempt: int
    step: str
    to: str
    sent_at: datetime
    quiesce: bool | None = None
    outcome: str = ""
    reason: str = ""
    deliveries: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One transition. `ms` is the time since the entry before it (the first: since the request)."""

    at: datetime
    step: str
    detail: str
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """How far a copy is, by its own numbers, which say nothing of its end. `bytes_per_s` is the mean since it began;
    `seconds_left` is None while that cannot be told."""

    done_bytes: int
    total_bytes: int
    bytes_per_s: int
    seconds_left: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionDiskView:
    """What a deletion does on one disk: the volume at `vanishes` goes, its data into `merged_into` (None: away)."""

    target: str
    vanishes: str
    merged_into: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionView:
    """What the deletion of one snapshot would do; no disk: only its record goes."""

    snapshot: str
    name: str
    disks: tuple[DeletionDiskView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One job. `waiting_for` is '' or names the host, SPM, broker or decision that it waits for."""

    id: str
    kind: str
    vm: str
    vm_name: str
    state: str
    waiting_for: str
    snapshot_id: str | None
    snapshot_name: str | None
    attempts: tuple[AttemptView, ...]
    error: ErrorView | None
    created_at: datetime
    finished_at: datetime | None
    timeline: tuple[TimelineEntry, ...]
    progress: ProgressView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMoment:
    """A job, and its version at that moment or a little before; the version grows with every change."""

    version: int
    job: JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDiskView:
    """The volume that holds the snapshot's content of one disk (the previous leaf); `size_bytes` is virtual."""

    target: str
    volume_id: str
    storage_domain: str
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedDisk:
    """A disk that the snapshot leaves out, with the stable code of the reason."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume; `path` is relative to its storage domain."""

    volume_id: str
    storage_domain: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingView:
    """Where each source of truth had a disk after its switch: absolute paths on the host.

    `persistent_definition` is '' where there is none, `qemu` where QEMU itself was not asked, since the rest agreed.
    """

    live_definition: str
    persistent_definition: str
    new_is_locked: bool
    qemu_was_asked: bool
    qemu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReceiptView:
    """One disk of a receipt. `previous` holds the snapshot's content, and the machine goes on with `new`.

    `first_write_bytes` is how far into the new volume the guest was seen to have written, 0 if no write was seen.
    """

    target: str
    previous: VolumeView
    new: VolumeView
    routing: RoutingView | None
    first_write_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotView:
    """One snapshot. `partial`: a writable disk was left out. `receipt` is empty until it is taken; what stands in it
    says manager/store/receipts.py."""

    id: str
    name: str
    description: str
    vm: str
    vm_name: str
    state: str
    consistency: str | None
    consistency_reason: str
    taken_at: datetime | None
    created_at: datetime
    disks: tuple[SnapshotDiskView, ...]
    excluded: tuple[ExcludedDisk, ...]
    partial: bool
    receipt: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """One volume of a disk's chain, base first."""

    volume_id: str
    path: str
    immutable: bool
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """One disk of a machine. Where it cannot be snapshotted, `refusal` is the stable code that says why not, and
    `refusal_message` says it in words; else both are ''."""

    target: str
    device: str
    bus: str
    format: str
    storage_domain: str | None
    path: str
    size_bytes: int | None
    can_snapshot: bool
    refusal: str
    refusal_message: str
    error_policy: str
    chain: tuple[LayerView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockView:
    """A lock that somebody's script holds on a machine; no `until`: until it is freed."""

    id: str
    reason: str
    since: datetime
    until: datetime | None

    def __str__(self) -> str:
        """Return who holds the machine, as a refusal says it."""
        until = f"until {self.until:%Y-%m-%d %H:%M:%S} UTC" if self.until else "until it is unlocked"
        return f'locked by "{self.reason}" since {self.since:%Y-%m-%d %H:%M:%S} UTC, {until} (lock {self.id})'


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewDiskView:
    """One disk that shows a snapshot: the leaf that it has now, and the one that it comes back to."""

    target: str
    volume_id: str
    kept_volume_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewView:
    """The snapshot that a machine shows for trial: `commit` keeps it so, `undo` ends it."""

    snapshot_id: str
    snapshot_name: str
    since: datetime
    disks: tuple[PreviewDiskView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMark:
    """A snapshot, where only its name and label are told."""

    id: str
    name: str
    consistency: str | None
    taken_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """One volume of a machine, as a node of its disk's tree; nodes come each after what they stand on.

    `role`: `leaf` (the machine writes to it), `kept` (an undo comes back to it) or ''. `snapshots` are those whose
    content it holds, `used_by` the other machines that stand on it. `revert_gives_up` is the volume that a revert to
    those snapshots gives up; `if_deleted` what a delete of them has to do here: `merge` it with the volume above, or
    leave it, since it is `shared` by several branches or machines, or `immutable`.
    """

    target: str
    volume_id: str
    parent_id: str | None
    storage_domain: str
    path: str
    size_bytes: int | None
    immutable: bool
    role: str
    snapshots: tuple[SnapshotMark, ...]
    used_by: tuple[str, ...]
    revert_gives_up: str | None
    if_deleted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LossView:
    """What a revert would give up: `volumes` with everything that was written to these disks `since` then (None: since
    the machine was put on the branch that it is on). Snapshots stay, as a branch."""

    snapshot_id: str
    snapshot_name: str
    vm: str
    vm_name: str
    targets: tuple[str, ...]
    since: datetime | None
    volumes: tuple[VolumeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmView:
    """One machine. `problem` is '' or a stable code such as vm_off_chain, `problem_detail` its sentence; `busy_with` is
    the job that holds it, `lock` a script's lock that does. `host_state` is that of its host (HostView): what is shown
    of a machine on a silent one was so at `seen_at`. `preview` is the snapshot that it shows for trial, `tree`
    every volume of its disks (where only one machine is shown)."""

    id: str
    name: str
    host: str | None
    host_state: str
    state: str
    agent: str
    problem: str
    problem_detail: str
    busy_with: str | None
    lock: LockView | None
    seen_at: datetime
    preview: PreviewView | None = None
    disks: tuple[DiskView, ...] = field(default=())
    tree: tuple[TreeNode, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    """One difference that doctor has found: what was seen, what it means, and the plan.

    `safe`: the plan is provably safe, and `doctor --repair` carries it out; `job` is the one that does so now.
    """

    code: str
    subject: str
    vm: str
    seen: str
    means: str
    plan: str
    safe: bool
    job: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisView:
    """What doctor has found. `left_out` are the machines that a job or a lock held: nothing is said of them."""

    findings: tuple[FindingView, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A token, without itself: only a hash of it is kept. Without `expires_at` it is good until it is revoked."""

    id: str
    name: str
    role: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokenView:
    """A token that has just been made. `token` is shown this once."""

    token: str
    id: str
    name: str
    role: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditView:
    """One request that was to change something, or was refused for its role. No `status`: it was never answered.

    `location` is that of the job that was made of it.
    """

    at: datetime
    token: str
    role: str
    method: str
    path: str
    status: int | None
    location: str
