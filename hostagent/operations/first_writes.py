"""Watch what becomes of a guest's first writes to its new leaves: evidence of success, or the failure itself.

What QEMU and libvirt were seen to do (QEMU 7.2, libvirt 9.0) decides how: a layer's allocation is the highest offset
that QEMU *tried* to write, so it grows with a failed write too, and with qcow2's own tables before any data. A failure
pauses the machine (error policy `stop`) or is only told (any other), and both are heard some milliseconds later.
"""

from collections.abc import Mapping
from dataclasses import replace

from common import logs
from common.errors import LivesnapError
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.operations.deps import Work
from hostagent.operations.observe import Seen, is_at

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _SLOWER = 0.005, 0.02, 1.5
"""A guest writes 10 to 30 ms after its thaw, and the job waits for it. A look is three questions to libvirt (2 ms): one
that writes nothing is soon asked more seldom."""
_PAUSE_IS_HEARD_S = 0.005
"""After this, one more question to QEMU is answered after the event of a pause that it has sent before."""
_WORD_IS_HEARD_S = 0.1
"""What is only told comes by another connection, when that has its turn."""

_log = logs.get()


def written_at_ms(work: Work, first_data: Mapping[str, int]) -> int:
    """Return a moment (CLOCK_BOOTTIME) at which every new leaf had taken data, 0 if one has not, or nobody can tell.

    Asked right after the thaw, so that the time in which a failure is heard passes while the vm is looked at.
    """
    try:
        written = _written(work, first_data)
    except LivesnapError as gone:
        _log.info("first_write.not_yet_seen", vm=work.vm, error=str(gone))  # it is asked for again
        return 0
    return work.deps.boottime_ms() if len(written) == len(work.disks) else 0


def watch_first_writes(work: Work, seen: Seen, first_data: Mapping[str, int], *, since_ms: int = 0) -> Seen:
    """Watch a running guest until every new leaf has taken data, a write fails, or `verify_ms` are over.

    `first_data` is the offset behind which each new leaf's data begins (Storage.check_new_volume), `since_ms` what
    `written_at_ms` has said. A first write is evidence and no condition: ext4 writes its superblock when it thaws, XFS
    does not, an idle guest writes nothing.
    """
    policies = vm_xml.error_policies(seen.live_xml)
    only_stop = {policies.get(pair.target) for pair in work.disks} == {"stop"}
    heard_s = _PAUSE_IS_HEARD_S if only_stop else _WORD_IS_HEARD_S
    now_ms = work.deps.boottime_ms()
    give_up = now_ms + work.deps.verify_ms
    all_written, pause_s = since_ms > 0, _FIRST_PAUSE_S
    if all_written:
        work.deps.pause(max(0.0, heard_s - (now_ms - since_ms) / 1000))
    while True:
        try:
            seen = _looked(work, seen, first_data)
        except LivesnapError as gone:
            _log.warning("first_write.not_seen", vm=work.vm, error=str(gone))
            return seen
        if seen.facts.io_error or seen.io_errors or all_written or work.deps.boottime_ms() >= give_up:
            return seen
        all_written = all(disk.first_write_bytes for disk in seen.disks)
        work.deps.pause(heard_s if all_written else pause_s)
        pause_s = min(pause_s * _SLOWER, _LONGEST_PAUSE_S)


def _looked(work: Work, seen: Seen, first_data: Mapping[str, int]) -> Seen:
    # In this order: the state and what was told are at least as new as the statistics.
    written = _written(work, first_data)
    io_error = work.guest.state() is VmState.PAUSED_IO_ERROR
    return replace(
        seen,
        facts=replace(seen.facts, io_error=io_error),
        disks=tuple(replace(disk, first_write_bytes=written.get(disk.target, 0)) for disk in seen.disks),
        io_errors=work.guest.io_errors(),
    )


def _written(work: Work, first_data: Mapping[str, int]) -> dict[str, int]:
    """Return the allocation of each new leaf that has taken data."""
    layers = work.guest.layers()
    tops = {pair: next(iter(layers.get(pair.target, ())), None) for pair in work.disks}
    return {
        pair.target: top.allocation_bytes
        for pair, top in tops.items()
        if top and is_at(top.path, pair.new) and top.allocation_bytes > first_data[pair.target]
    }
