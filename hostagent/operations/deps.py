"""What every operation is given: the ports, the order that it carries out, and the disks with their absolute paths.

`Deps` is made once per process by its composition root; `work_on` makes one `Work` per message.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.clock import Clock
from common.errors import MessageRejected, NotReady
from common.ids import HostId, JobId, StepId, VmId
from common.messaging.messages import DiskSwitch, Pivot, Probe, Redefine, Repair
from common.messaging.wire import Envelope
from hostagent import processes
from hostagent.ports import Guard, Guest, Journal, QemuUser, Shutdowns, Storage, VmLocks

LOCK_WAIT = timedelta(seconds=10)
"""How long a command waits for another one of the same vm before it answers "not ready". A healthy one takes 0.1 s."""
_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """The outside world of the operations, shared by all threads of one agent process.

    `boottime_ms` is CLOCK_BOOTTIME; `libvirtd_instance` returns '' while it cannot be known. `image_users` names the
    processes of this host that have a file open, as far as /proc shows them. `verify_ms` bounds how long a thawed guest
    is watched for its first writes, `switch_limit_ms` how long one stays frozen for the call that moves the leaves.
    `qemu_user` maps a runtime id ('' for a stopped vm) to the user that must be able to open a new volume, None where
    that cannot be known.
    """

    host_id: HostId
    guest_of: Callable[[VmId], Guest]
    storage: Storage
    guard: Guard
    journal: Journal
    vm_lock: VmLocks
    shutdowns: Shutdowns
    clock: Clock
    boot_id: str
    libvirtd_instance: Callable[[], str]
    qemu_user: Callable[[str], QemuUser | None]
    image_users: Callable[[str], tuple[str, ...]] = processes.users_of
    boottime_ms: Callable[[], int] = processes.boottime_ms
    verify_ms: int = 300
    switch_limit_ms: int = 4000
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPair:
    """One disk of a command, with the paths of its volumes on this host. `parent` is what the new leaf stands on; ''
    for a kept leaf of which that is not on record."""

    switch: DiskSwitch
    old: str
    new: str
    parent: str

    @property
    def target(self) -> str:
        """Return the disk's target (`vda`)."""
        return self.switch.target


def pair_of(deps: Deps, switch: DiskSwitch) -> LeafPair:
    """Return a disk with its volumes' paths here. Raises NotReady or StorageError without its storage domain."""
    old, new = deps.storage.path_of(switch.old), deps.storage.path_of(switch.new)
    if switch.over is None:
        return LeafPair(switch=switch, old=old, new=new, parent="" if switch.kept else old)
    return LeafPair(switch=switch, old=old, new=new, parent=deps.storage.path_of(switch.over))


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a command speaks of: one vm with its disks, and between which moments of the Manager's clock."""

    vm: VmId
    issued_at: datetime
    deadline: datetime
    guest: Guest
    disks: tuple[LeafPair, ...]
    deps: Deps

    @property
    def remaining_ms(self) -> int:
        """Return the milliseconds until the deadline, never below 0."""
        left = self.deadline - self.deps.clock.now()
        return max(0, int(left / timedelta(milliseconds=1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(View):
    """One command that acts on a vm: who asked (job, step, attempt), and what it is about."""

    job: JobId
    step: StepId
    attempt: int


def work_on(envelope: Envelope, command: Pivot | Redefine | Probe | Repair, deps: Deps) -> Work:
    """Return the work that an envelope orders; nothing is touched.

    Raises MessageRejected when it names no job or vm, NotReady or StorageError when a storage domain is missing here,
    NotReady when libvirt is: so that what cannot begin is refused before the journal calls it begun.
    """
    is_whole = command.disks or isinstance(command, Probe)
    if isinstance(command, Pivot | Repair) and any(disk.is_branch for disk in command.disks):
        # A commit would carry what is on the new leaf into a snapshot.
        raise MessageRejected("message_rejected", f"{command.op} is not for a disk that leaves its branch")
    if envelope.job is None or envelope.vm != command.vm_id or envelope.attempt < 1 or not is_whole:
        raise MessageRejected("message_rejected", f"{command.op} needs a job, its vm, an attempt from 1 on and a disk")
    work = Work(
        vm=command.vm_id,
        job=envelope.job,
        step=envelope.step,
        attempt=envelope.attempt,
        issued_at=envelope.issued_at,
        deadline=envelope.deadline,
        guest=deps.guest_of(command.vm_id),
        disks=tuple(pair_of(deps, disk) for disk in command.disks),
        deps=deps,
    )
    work.guest.exists()
    return work


@contextmanager
def exclusive(view: View, wait: timedelta = LOCK_WAIT) -> Iterator[None]:
    """Hold the vm's lock, which all agent processes of the host share and which dies with its holder.

    A freeze of ours lives only inside it, hence whoever holds it may take every older intent to freeze for orphaned.
    Raises NotReady(vm_busy) if another command keeps it for so long.
    """
    give_up = view.deps.boottime_ms() + wait // timedelta(milliseconds=1)
    while True:
        with view.deps.vm_lock(view.vm) as held:
            if held:
                yield
                return
        if view.deps.boottime_ms() >= give_up:
            raise NotReady("vm_busy", f"another command on vm {view.vm} has been running for {wait.seconds} s")
        view.deps.pause(_LOCK_POLL_S)
