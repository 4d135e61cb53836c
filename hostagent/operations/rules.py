"""What is looked at before a pivot, and by a check: one generator per subject, each line a refusal or a warning.

`prepare` raises the first refusal and keeps the warnings for the receipt; `check` tells them all. So a dry run cannot
say something else than a job. Nothing here touches anything; what cannot be looked at raises.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta

from common.eligibility import refusal
from common.errors import RequestRefused
from common.messaging.reports import DiskReport
from common.preflight import (
    Level,
    Limits,
    PreflightLine,
    fine,
    of_clock,
    of_depth,
    of_error_policy,
    of_space,
    refused,
    warning,
)
from hostagent.operations.deps import LeafPair, View
from hostagent.operations.observe import is_at
from hostagent.operations.others import of_others

_JOB_CODES = {"migration": "vm_migrating", "save": "vm_saving", "dump": "vm_dumping"}
"""What libvirt's jobs are refused as; every other one is `vm_busy`."""


def warnings_of(lines: Iterable[PreflightLine]) -> tuple[PreflightLine, ...]:
    """Return the warnings; raise RequestRefused at the first refusal, with nothing after it looked at."""
    kept = []
    for line in lines:
        if line.level is Level.REFUSAL:
            raise RequestRefused(line.code, line.message, line.hint)
        if line.level is Level.WARNING:
            kept.append(line)
    return tuple(kept)


def of_vm(view: View, *, is_active: bool) -> Iterator[PreflightLine]:
    """What libvirt holds of the vm, or does with it, that a new leaf would get in the way of."""
    guest, subject = view.guest, view.vm
    if count := guest.libvirt_snapshot_count():
        yield refused("vm_has_libvirt_snapshots", subject, f"vm {view.vm} has {count} snapshot(s) of libvirt's own")
    if is_active:
        yield from of_job(view)
    if is_active and (targets := guest.block_job_targets()):
        yield refused("vm_busy", subject, f"vm {view.vm} has a block job on {', '.join(targets)}")
    if count := guest.checkpoint_count():
        message = f"{count} checkpoint(s) of a backup tool: their bitmaps stay behind in the previous volumes"
        yield warning("backup_bitmaps", subject, message)


def of_job(view: View) -> Iterator[PreflightLine]:
    """Which of libvirt's jobs, or whose call, holds an active vm: a switch would wait for it. Does not wait itself."""
    if job := view.guest.job_running():
        what = "another call to libvirt holds" if job == "call" else f"libvirt runs a {job} job on"
        yield refused(_JOB_CODES.get(job, "vm_busy"), view.vm, f"{what} vm {view.vm}")


def of_disk(
    view: View, pair: LeafPair, report: DiskReport | None, limits: Limits, *, is_active: bool
) -> Iterator[PreflightLine]:
    """Whether a disk may be snapshotted, is on its old leaf in every definition that it is in, and has a sound chain.

    Raises HeaderRefused for a header of its chain, StorageError, NotReady.
    """
    if report is None:
        yield refused("disk_unknown", pair.target, f"vm {view.vm} has no disk {pair.target}")
        return
    if code := refusal(report):
        yield refused(code, pair.target, f"disk {pair.target} of vm {view.vm} ({report.source or 'empty'})")
        return
    sources = [report.source, *([report.persistent_source] if report.persistent_source else [])]
    wrong = [path for path in sources if not is_at(path, pair.old)]
    if wrong or report.format != pair.switch.old.format:
        found = f"{wrong[0]}" if wrong else f"format {report.format}"
        expected = f"{pair.old} ({pair.switch.old.format})"
        yield refused("chain_unexpected", pair.target, f"disk {pair.target} of vm {view.vm}: {found}, not {expected}")
        return
    yield from of_others(view, pair, is_active=is_active)
    yield from of_error_policy(report)
    chain = view.deps.storage.chain(pair.switch.old)
    yield fine(pair.target, f"{report.format}, {report.bus}; a chain of {len(chain)} volume(s)")
    yield from of_depth(pair.target, len(chain), limits)
    if chain[0].bitmaps:
        # Those made since QEMU opened the file are in its memory. libvirt's own are known as checkpoints; of others
        # only the monitor could tell, and asking it taints the vm.
        message = f"disk {pair.target}: {chain[0].bitmaps} persistent bitmap(s) stay behind in {chain[0].path}"
        yield warning("backup_bitmaps", pair.target, message)


def of_own_clock(view: View, limits: Limits) -> PreflightLine:
    """Whether this host's clock is behind: a command that was made later than now proves it."""
    behind = max(view.issued_at - view.deps.clock.now(), timedelta(0))
    return of_clock(view.deps.host_id, -behind, limits)


def of_space_left(view: View, limits: Limits) -> Iterator[PreflightLine]:
    """How much room the storage domains have for what the vm writes next."""
    for id_ in dict.fromkeys(pair.switch.new.storage_domain_id for pair in view.disks):
        yield of_space(id_, view.deps.storage.free_bytes(id_), limits)
