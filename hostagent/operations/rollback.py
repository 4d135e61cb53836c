"""Bring a vm back to its old leaves without losing a write: by active commit, never otherwise (hypervisor.md 4).

Once a commit has begun, the old leaf may hold data that is newer than the snapshot: that is written down first, and no
later observation of this job may then claim ALL_NEW.
"""

from collections.abc import Iterable
from dataclasses import replace

from common import logs
from common.crashpoints import reach
from common.errors import HypervisorError, LivesnapError, NotReady, OutcomeUnknown, StorageError
from common.messaging.messages import LeavesObserved, Outcome
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.operations.deps import LeafPair, Work
from hostagent.operations.freeze import clear_intents, thaw_orphans
from hostagent.operations.judge import Place
from hostagent.operations.observe import Seen, is_at, look, loose
from hostagent.operations.settle import align_definition, conclude, require_empty
from hostagent.ports import BlockNode

COMMIT_FLOOR_MS = 10_000
"""Time for one disk's commit even when the command's deadline is near: half a rollback is worse than a late one."""
_WATCH_PAUSE_S = 0.02
_WAY_OUT = (
    "The machine stays paused with its chain whole, and every volume is kept. Give the storage room, or repair it; then"
    " resume the machine and resolve the job: livesnap looks again."
)
_RESTORE_IT = "Start the machine, which restores it from its save image, and resolve the job: livesnap looks again."
_TOLD = (
    "Give the storage room, or repair it. Look at the guest: it was told that writes have failed. With"
    " error_policy='stop' it would have waited instead."
)
_START_IT = "Start the machine, whose chain is whole, and resolve the job: data is committed only while it runs."

_log = logs.get()


def roll_back(work: Work, seen: Seen) -> LeavesObserved:
    """Take a vm that cannot write to its new leaves back to the old ones, resume and thaw it."""
    return bring_back(work, _not_writable(work, seen))


def _not_writable(work: Work, seen: Seen) -> HypervisorError:
    """Say what became of the writes that failed: a paused vm still has them, any other has been told of the failure."""
    if seen.facts.io_error:
        where = "new" if any(disk.truth is Place.NEW for disk in seen.facts.disks) else "previous"
        return HypervisorError("volume_not_writable", f"vm {work.vm} was paused by an I/O error on its {where} volumes")
    policies = vm_xml.error_policies(seen.live_xml)
    which = ", ".join(f"{target} (error policy {policies.get(target) or 'default'})" for target in seen.io_errors)
    message = f"QEMU could not write for vm {work.vm} to {which}, and told the guest so instead of pausing it"
    return HypervisorError("volume_not_writable", message, _TOLD)


def bring_back(work: Work, why: LivesnapError | None = None) -> LeavesObserved:
    """Commit every new leaf that QEMU uses into its old one, detach loose nodes, align the definition; observe.

    `why` explains it, if not simply that the vm was found paused by an I/O error. Safe to repeat. A crash between two
    disks leaves each of them whole on one side, and its definition there too. A stopped vm is only redefined, and only
    if its new leaves are empty.
    """
    try:
        seen = look(work)
        if why is None and seen.facts.io_error:
            why = _not_writable(work, seen)
        if seen.facts.active:
            _commit(work, seen)
            _go_on(work, seen)
        elif seen.facts.here:
            _redefine_empty(work, seen)
    except LivesnapError as failed:
        _log.warning("repair.failed", vm=work.vm, attempt=work.attempt, error=str(failed))
        left = conclude(work, failed)
        if isinstance(failed, OutcomeUnknown | NotReady):
            return left  # libvirt went away in the middle: that says nothing of the old leaves, and can be repeated
    else:
        left = conclude(work, why, call_returned=True)
    return _with_way_out(left, why)


def _with_way_out(left: LeavesObserved, why: LivesnapError | None) -> LeavesObserved:
    """Tell what to do about a vm that cannot write on its old leaves either, or could not be brought back to them."""
    if left.outcome is not Outcome.BAD or why is None or why.code != "volume_not_writable":
        return left
    message = left.message if why.message in left.message else f"{why.message}; {left.message}"
    return replace(left, code=why.code, message=message, hint=_WAY_OUT)


def _commit(work: Work, seen: Seen) -> None:
    """Commit disk by disk. Raises HypervisorError at the first that does not go; what was done stays done."""
    if seen.facts.block_job and not seen.facts.commit_begun:
        # To carry on with it could mean to complete somebody else's copy.
        raise HypervisorError("vm_busy", f"vm {work.vm} has a block job that is not ours")
    nodes = work.guest.qemu_nodes() if any(disk.qemu is not None for disk in seen.facts.disks) else ()
    for pair, disk, observed in zip(work.disks, seen.facts.disks, seen.disks, strict=True):
        if Place.NEW in (disk.live, disk.truth):
            work.deps.journal.commit_begun(work.vm, work.job)
            if disk.live is Place.NEW:
                # libvirt knows the old leaf only by the name that it has in its own chain.
                work.guest.commit_active(pair.target, observed.live_chain[1], _commit_limit_ms(work))
            else:
                _commit_by_qemu(work, pair, nodes)
            _log.info("leaf.committed", vm=work.vm, target=pair.target, new=pair.new, old=pair.old)
            reach("host.repair.committed")
            align_definition(work, look(work))
        if loose(pair, nodes):
            _drop_loose(work, pair)


def _commit_limit_ms(work: Work) -> int:
    return max(work.remaining_ms, COMMIT_FLOOR_MS)


def _commit_by_qemu(work: Work, pair: LeafPair, nodes: tuple[BlockNode, ...]) -> None:
    """Commit by QEMU's monitor what only QEMU knows to be on the new leaf (H1)."""
    tops = [node for node in nodes if node.device and node.depth == 0 and is_at(node.path, pair.new)]
    work.guest.commit_by_qemu(_formats_first(tops)[0].node_name, _commit_limit_ms(work))


def _drop_loose(work: Work, pair: LeafPair) -> None:
    """Detach one node after the other, asking anew each time: a format node may take its storage node with it."""
    while nodes := loose(pair, work.guest.qemu_nodes()):
        node = _formats_first(nodes)[0]
        work.guest.drop_node(node.node_name)
        _log.info("node.dropped", vm=work.vm, node=node.node_name, path=node.path)


def _formats_first(nodes: Iterable[BlockNode]) -> list[BlockNode]:
    """Order nodes so that those which others stand on come last: libvirt's `...-storage`, QEMU's own `#block123`."""
    return sorted(nodes, key=lambda node: node.node_name.endswith("-storage") or node.node_name.startswith("#"))


def _go_on(work: Work, before: Seen) -> None:
    """Resume a vm that an I/O error has paused, thaw it, and see whether it can write where it is now."""
    paused = work.guest.state() is VmState.PAUSED_IO_ERROR
    resumable = paused and before.state in (VmState.RUNNING, VmState.PAUSED_IO_ERROR)
    if resumable:
        work.guest.resume()
        _log.info("vm.resumed", vm=work.vm)
    clear_intents(work, thaw_orphans(work))
    give_up = work.deps.boottime_ms() + work.deps.verify_ms
    while resumable and work.guest.state() is VmState.RUNNING and work.deps.boottime_ms() < give_up:
        work.deps.pause(_WATCH_PAUSE_S)


def _redefine_empty(work: Work, seen: Seen) -> None:
    """Set a stopped vm's definition back. What a new leaf holds can be committed only while the vm runs; and a managed
    save image has a definition of its own, which no redefinition reaches: it may name a new leaf that would be deleted.
    """
    behind = [pair for pair, disk in zip(work.disks, seen.facts.disks, strict=True) if disk.persistent is Place.NEW]
    if behind and seen.facts.managed_save:
        saved = f"vm {work.vm} is off with a managed save image, which may name its new volumes"
        raise HypervisorError("vm_managed_save", saved, _RESTORE_IT)
    for pair in behind:
        try:
            require_empty(work, pair)
        except StorageError as refused:
            raise StorageError(refused.code, f"vm {work.vm} is off and {refused.message}", _START_IT) from refused
    if behind:
        leaves = {pair.target: (pair.old, pair.switch.old.format) for pair in behind}
        work.guest.define(vm_xml.with_sources(seen.persistent_xml, leaves))
