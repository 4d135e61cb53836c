"""Have QEMU merge volumes while their machine runs, and say how far that is. Each command returns within a moment.

Why the definition is changed last here, and not first as by a pivot: until libvirt has switched, only `top` has all the
data, and a boot from it is right; `base` alone is right only afterwards. libvirt sets the persistent definition itself
when it switches; where it died in between, the next look does (the machine runs on then, and nothing was lost).
"""

from collections.abc import Callable
from dataclasses import replace

from common import logs
from common.crashpoints import reach
from common.errors import HypervisorError, LivesnapError
from common.messaging.merging import CheckMerge, DiskMergeSeen, MergeDisks, MergeSeen, MergeState, Way, furthest
from common.messaging.messages import LeavesObserved, Outcome, Probe
from common.messaging.wire import Envelope
from common.units import MIB
from hostagent import vm_xml
from hostagent.merge_ports import BlockJobs
from hostagent.operations.barrier import call_in_flight
from hostagent.operations.deps import Deps, Work, exclusive, work_on
from hostagent.operations.freeze import clear_intents, thaw_orphans
from hostagent.operations.merge_judge import Job, judge
from hostagent.operations.merge_look import DiskLooked, Looked, Merging, look
from hostagent.operations.observe import is_at

_log = logs.get()

_HARDLY_ANY = MIB
"""With less room than this on its storage domain, a commit that failed has failed for want of room."""


def merge(envelope: Envelope, command: MergeDisks, deps: Deps, jobs: BlockJobs) -> MergeSeen:
    """Begin a commit for each disk whose machine runs, where none runs and none is needed any more; then look.

    Looks only, when this very command was begun before: whoever wants another try counts another attempt. Raises
    StaleAttempt, NotReady (libvirt, a storage domain), StorageError; once it has begun, it is answered by what is seen.
    A crash leaves jobs running in QEMU, which the next look finds.
    """

    def act(merging: Merging, *, first: bool) -> MergeSeen:
        trouble = _begin(merging, command.bytes_per_s) if first else None
        return _conclude(merging, trouble)

    return _carry_out(envelope, command, deps, jobs, act=act)


def check_merge(envelope: Envelope, command: CheckMerge, deps: Deps, jobs: BlockJobs) -> MergeSeen:
    """Complete what is ready, bring the definition in line, and say how far each disk is; or end what runs.

    Raises as `merge`. A crash leaves every disk whole on one side.
    """

    def act(merging: Merging, *, first: bool) -> MergeSeen:
        if command.abort:
            return _conclude(merging, _abort(merging), complete=False)
        return _conclude(merging, None)

    return _carry_out(envelope, command, deps, jobs, act=act)


def _carry_out(
    envelope: Envelope,
    command: MergeDisks | CheckMerge,
    deps: Deps,
    jobs: BlockJobs,
    *,
    act: Callable[..., MergeSeen],
) -> MergeSeen:
    """Fence every lower attempt, act, and settle the attempt: one command of a vm at a time."""
    switches = tuple(disk.switch for disk in command.disks)
    work = work_on(envelope, Probe(vm_id=command.vm_id, disks=switches), deps)
    merging = Merging(work=work, merges=command.disks, jobs=jobs, begun=command.begun)
    with exclusive(work):
        before = deps.journal.begin(work.vm, work.attempt, work.job, work.step)
        reach("host.merge.begun")
        thawed = thaw_orphans(work)
        try:
            held = call_in_flight(work)
            seen = _unknown(held.message, held.code) if held else act(merging, first=before is None)
        except LivesnapError as blind:
            seen = _unknown(f"the vm cannot be looked at: {blind.message}", blind.code)
        # The vm may have left in the meantime: whoever has it now can tell what came of it only if it knows this.
        seen = replace(seen, begun=seen.begun or merging.began_here)
        if seen.state is not MergeState.UNKNOWN:
            clear_intents(work, thawed)
        deps.journal.done(work.vm, work.attempt, _settled(work, seen))
    _log.info("merge.seen", vm=work.vm, attempt=work.attempt, state=seen.state.value, message=seen.message)
    return seen


def _settled(work: Work, seen: MergeSeen) -> LeavesObserved:
    """Return what the journal keeps of it: whether a call may still be in flight. It is never replayed."""
    outcome = Outcome.UNKNOWN if seen.state is MergeState.UNKNOWN else Outcome.NONE
    return LeavesObserved(outcome=outcome, boot_id=work.deps.boot_id, runtime_id="", message=seen.message)


def _unknown(why: str, code: str) -> MergeSeen:
    return MergeSeen(state=MergeState.UNKNOWN, code=code, message=why)


# ---- acting -----------------------------------------------------------------------------------------------------


def _begin(merging: Merging, bytes_per_s: int) -> HypervisorError | None:
    """Begin the commits that are missing; return what the first that could not begin was refused with."""
    work, seen = merging.work, look(merging)
    if seen.unsure or any(disk.facts.job is Job.FOREIGN for disk in seen.disks):
        return None
    for disk in seen.disks:
        facts = disk.facts
        if not (facts.is_on_top and facts.job is Job.NONE):
            continue
        work.deps.journal.commit_begun(work.vm, work.job)
        base, top = (_named(disk, path) for path in (disk.pair.old, disk.pair.new))
        try:
            _issued(work)
            merging.jobs.begin_commit(
                disk.merge.target, base, top, active=is_at(disk.chain[0], disk.pair.new), bytes_per_s=bytes_per_s
            )
        except HypervisorError as refused:
            return refused
        reach("host.merge.started")
        _log.info("merge.begun", vm=work.vm, target=disk.merge.target, top=top, base=base)
    return None


def _named(disk: DiskLooked, path: str) -> str:
    """Return libvirt's own name of a layer: it knows them by no other."""
    return next((name for name in disk.chain if is_at(name, path)), path)


def _issued(work: Work) -> None:
    deps = work.deps
    deps.journal.call_issued(work.vm, work.attempt, deps.boottime_ms(), deps.libvirtd_instance())


def _abort(merging: Merging) -> HypervisorError | None:
    """End the jobs that are ours; one that has ended by itself meanwhile is no error."""
    trouble = None
    for disk in look(merging).disks:
        if disk.facts.job in (Job.RUNNING, Job.READY):
            try:
                merging.jobs.abort(disk.merge.target)
            except HypervisorError as refused:
                trouble = refused
            _log.info("merge.ended", vm=merging.work.vm, target=disk.merge.target)
    return trouble


def _complete(merging: Merging, seen: Looked) -> HypervisorError | None:
    """Let the machine go on with the bases, once every disk of which it writes to the `top` is ready."""
    waiting = [disk for disk in seen.disks if disk.merge.leaf and disk.facts.job is not Job.NONE]
    if not waiting or any(disk.facts.job is not Job.READY for disk in waiting):
        return None
    reach("host.merge.ready")
    for disk in waiting:
        try:
            merging.work.deps.journal.pivot_begun(merging.work.vm, merging.work.job, disk.merge.target)
            _issued(merging.work)
            merging.jobs.pivot(disk.merge.target)
        except HypervisorError as refused:
            return refused
        reach("host.merge.pivoted")
        _log.info("merge.pivoted", vm=merging.work.vm, target=disk.merge.target, base=disk.pair.old)
    return None


def _align(merging: Merging, seen: Looked) -> bool:
    """Set the persistent definition to what is so; tell whether anything was changed."""
    leaves: dict[str, tuple[str, str]] = {}
    present = vm_xml.leaves(seen.persistent_xml)
    for disk in seen.disks:
        if not disk.facts.is_to_redefine or disk.merge.target not in present:
            continue
        is_moved = disk.facts.persistent_on_top or disk.facts.oddly_named
        leaf = (disk.pair.old, disk.merge.base.format) if is_moved else present[disk.merge.target]
        leaves[disk.merge.target] = leaf
    if not leaves:
        return False
    merging.work.guest.define(vm_xml.with_sources(seen.persistent_xml, leaves))
    reach("host.merge.aligned")
    _log.info("definition.aligned", vm=merging.work.vm, leaves={target: path for target, (path, _) in leaves.items()})
    return True


# ---- concluding -------------------------------------------------------------------------------------------------


def _conclude(merging: Merging, trouble: HypervisorError | None, *, complete: bool = True) -> MergeSeen:
    """Look, do what is due, look again, and say what is proven."""
    seen = look(merging)
    _settle(merging, seen)
    if not seen.unsure and complete:
        trouble = _complete(merging, seen) or trouble
        seen = look(merging)
    if not seen.unsure and _align(merging, seen):
        seen = look(merging)
    if seen.unsure:
        return _unknown(seen.unsure, seen.code)
    _settle(merging, seen)
    return _answer(merging, seen, trouble)


def _settle(merging: Merging, seen: Looked) -> None:
    """Clear the record of each pivot of which it is seen what came of it: the barrier says that no call is in flight.

    It stays until both definitions agree: a machine that stops before that is torn.
    """
    for disk in seen.disks:
        if disk.facts.pivoting and (disk.facts.is_on_top or judge(disk.facts)[0] is MergeState.MERGED):
            merging.work.deps.journal.pivot_settled(merging.work.vm, disk.merge.target)


def _answer(merging: Merging, seen: Looked, trouble: HypervisorError | None) -> MergeSeen:
    judged = [(disk, *judge(disk.facts)) for disk in seen.disks]
    state = furthest(tuple(state for _, state, _ in judged))
    told = tuple(
        DiskMergeSeen(
            target=disk.merge.target,
            state=state,
            done_bytes=disk.job.done_bytes if disk.job else 0,
            total_bytes=disk.job.total_bytes if disk.job else 0,
        )
        for disk, state, _ in judged
    )
    committed = tuple(
        disk.merge.top.volume_id
        for disk, state, _ in judged
        if state is MergeState.MERGED and disk.facts.way is Way.CHAIN and disk.facts.begun and not disk.facts.empty
    )
    answer = MergeSeen(
        state=state,
        disks=told,
        begun=any(disk.facts.begun for disk, _, _ in judged),
        committed=committed,
    )
    if state in (MergeState.MERGED, MergeState.RUNNING, MergeState.COLD):
        return answer
    why = "; ".join(f"{disk.merge.target}: {why}" for disk, _, why in judged if why)
    return replace(answer, code=_code(merging, seen, trouble), message=_told(why, trouble))


def _told(why: str, trouble: HypervisorError | None) -> str:
    return f"{trouble.message}; {why}" if trouble else why


def _code(merging: Merging, seen: Looked, trouble: HypervisorError | None) -> str:
    storage = merging.work.deps.storage
    written = {disk.merge.base.storage_domain_id for disk in seen.disks}
    if any(storage.free_bytes(id_) < _HARDLY_ANY for id_ in written):
        return "storage_full"
    if any(disk.facts.job is Job.FOREIGN for disk in seen.disks):
        return "vm_busy"
    if any(disk.facts.is_torn for disk in seen.disks):
        return "merge_torn"
    if any(disk.facts.managed_save for disk in seen.disks):
        return "vm_managed_save"
    return trouble.code if trouble else "merge_failed"
