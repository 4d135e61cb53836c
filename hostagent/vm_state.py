"""libvirt's vm states, events and jobs in our words. Pure: the numbers are libvirt's ABI (virDomainState and so on)."""

from enum import StrEnum

from common.messaging.reports import VmState

_STATES = {
    1: VmState.RUNNING,
    2: VmState.RUNNING,  # "blocked on a resource": a state of Xen's
    3: VmState.PAUSED,
    4: VmState.STOPPING,
    5: VmState.OFF,
    6: VmState.CRASHED,
    7: VmState.PMSUSPENDED,
}
# virDomainPausedReason, where it changes what is allowed. After a resume libvirt leaves reason 5 behind, so a reason
# counts only together with its state.
_PAUSED = {
    2: VmState.PAUSED_MIGRATION,
    3: VmState.SAVING,
    4: VmState.DUMPING,
    5: VmState.PAUSED_IO_ERROR,
    8: VmState.STOPPING,
    10: VmState.CRASHED,
    11: VmState.STARTING,
    12: VmState.PAUSED_MIGRATION,
    13: VmState.PAUSED_MIGRATION,
}
_PAUSED_STATE = 3
_OFF_STATE, _OFF_MIGRATED = 5, 4
# virDomainJobOperation
_JOBS = {
    1: "start",
    2: "save",
    3: "restore",
    4: "migration",
    5: "migration",
    6: "snapshot",
    7: "snapshot-revert",
    8: "dump",
    9: "backup",
    10: "snapshot-delete",
}


class Lifecycle(StrEnum):
    """What a lifecycle event says of the run of a vm."""

    STARTED = "started"
    GUEST_SHUT_DOWN = "guest_shut_down"
    """The guest has powered itself off; QEMU is still there. A QEMU that somebody ended says something else."""
    HIBERNATED = "hibernated"
    """The guest has suspended itself to its disk, and will power off next."""
    ENDED_BY_SHUTDOWN = "ended_by_shutdown"
    """QEMU has ended after a shutdown, the guest's or its own."""
    ENDED = "ended"
    """QEMU has ended otherwise: destroyed, crashed, saved, migrated away, failed."""
    OTHER = "other"


# virDomainEventType and the details of its kinds; None stands for every detail.
_LIFECYCLE = {
    (2, 4): Lifecycle.OTHER,  # woken up: the same run
    (2, None): Lifecycle.STARTED,
    (5, 0): Lifecycle.ENDED_BY_SHUTDOWN,
    (5, None): Lifecycle.ENDED,
    (6, 1): Lifecycle.GUEST_SHUT_DOWN,
    (7, 1): Lifecycle.HIBERNATED,
    (8, None): Lifecycle.ENDED,  # the guest has crashed; QEMU may live on
}


def lifecycle(event: int, detail: int) -> Lifecycle:
    """Return what a lifecycle event says."""
    return _LIFECYCLE.get((event, detail)) or _LIFECYCLE.get((event, None), Lifecycle.OTHER)


def vm_state(state: int, reason: int) -> VmState:
    """Return the state in our words; UNKNOWN for what a newer libvirt may add."""
    known = _STATES.get(state, VmState.UNKNOWN)
    return _PAUSED.get(reason, known) if state == _PAUSED_STATE else known


def moved_away(state: int, reason: int) -> bool:
    """Tell whether a vm is off here because it was migrated to another host, and its definition was left behind."""
    return (state, reason) == (_OFF_STATE, _OFF_MIGRATED)


def job_kind(operation: int) -> str:
    """Return the kind of a libvirt job that runs; 'job' for what a newer libvirt may add."""
    return _JOBS.get(operation, "job")
