"""Look at the disks of a merge: both definitions, block jobs, locks and headers. Changes nothing."""

from dataclasses import dataclass

from common.errors import StorageError
from common.messaging.merging import DiskMerge, Way
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.merge_ports import BlockJob, BlockJobs
from hostagent.operations.deps import LeafPair, Work
from hostagent.operations.merge_judge import Job, MergeFacts, Spot
from hostagent.operations.observe import is_at, is_migrating, runs_elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLooked:
    """One disk: the facts to judge by, its block job, and the live chain by libvirt's own names, top first."""

    merge: DiskMerge
    pair: LeafPair
    facts: MergeFacts
    job: BlockJob | None
    chain: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """One look at a vm. `unsure`: why nothing that is seen here may be believed, '' if it may; `code` is its code."""

    disks: tuple[DiskLooked, ...] = ()
    persistent_xml: str = ""
    unsure: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """The work of one command: the disks, in the order of `work.disks`, and the vm's block jobs. `begun`: the Manager
    says that this job's commit was begun on a host from which the vm may have come."""

    work: Work
    merges: tuple[DiskMerge, ...]
    jobs: BlockJobs
    begun: bool = False

    @property
    def began_here(self) -> bool:
        """Tell whether a commit of this job was begun on this host: then the block jobs are its own."""
        return self.work.deps.journal.commit_was_begun(self.work.vm, self.work.job)


def look(merging: Merging) -> Looked:
    """Return what can be seen now. Raises NotReady or HypervisorError when libvirt cannot be asked, StorageError."""
    work = merging.work
    guest = work.guest
    if not guest.exists():
        return Looked(unsure=f"libvirt here does not know vm {work.vm}", code="vm_not_found")
    active = bool(guest.runtime_id())
    if active and is_migrating(work):
        return Looked(unsure=f"vm {work.vm} is being migrated", code="vm_migrating")
    if not active and _moved(merging):
        return Looked(unsure=f"vm {work.vm} is off here, and on another host it is not", code="vm_not_found")
    live_xml = guest.live_xml() if active else ""
    persistent_xml = guest.persistent_xml()
    disks = tuple(
        _look_at(merging, merge, pair, (live_xml, persistent_xml))
        for merge, pair in zip(merging.merges, work.disks, strict=True)
    )
    return Looked(disks=disks, persistent_xml=persistent_xml)


def _moved(merging: Merging) -> bool:
    """Tell whether a vm that is off here runs elsewhere; an SPM that merges writes to its volumes as well."""
    work = merging.work
    if work.guest.has_moved_away():
        return True
    leaves = [merge.top for merge in merging.merges if merge.leaf]
    return any(work.deps.storage.is_written(leaf) for leaf in leaves) and runs_elsewhere(work)


def _look_at(merging: Merging, merge: DiskMerge, pair: LeafPair, xml: tuple[str, str]) -> DiskLooked:
    live_xml, persistent_xml = xml
    work, storage = merging.work, merging.work.deps.storage
    chain = vm_xml.chains(live_xml).get(merge.target, ())
    persistent = vm_xml.chains(persistent_xml).get(merge.target, ())
    job = merging.jobs.find(merge.target) if chain else None
    began_here = merging.began_here
    facts = MergeFacts(
        way=merge.way,
        leaf=merge.leaf,
        active=bool(live_xml),
        live=_spot(pair, chain),
        persistent=_spot(pair, persistent),
        persistent_on_top=bool(persistent) and is_at(persistent[0], pair.new),
        locked=storage.is_locked(merge.top),
        job=_kind(job, live_xml, merge, begun=began_here),
        begun=began_here or merging.begun,
        empty=_is_empty(work, merge),
        lifted=_is_lifted(work, merge, pair),
        pivoting=work.deps.journal.pivot_was_begun(work.vm, work.job, merge.target),
        oddly_named=merge.leaf and _is_odd(pair.old, persistent),
        managed_save=not live_xml and work.guest.state() is VmState.OFF and work.guest.has_managed_save(),
    )
    return DiskLooked(merge=merge, pair=pair, facts=facts, job=job, chain=chain)


def _is_odd(path: str, chain: tuple[str, ...]) -> bool:
    """Tell whether that file is the leaf by another name."""
    return bool(chain) and chain[0] != path and is_at(chain[0], path)


def _spot(pair: LeafPair, chain: tuple[str, ...]) -> Spot:
    tops = [number for number, path in enumerate(chain) if is_at(path, pair.new)]
    if not tops:
        return Spot.BASE if any(is_at(path, pair.old) for path in chain) else Spot.NEITHER
    below = chain[tops[0] + 1 : tops[0] + 2]
    # A definition may leave the layers below to the file's header, which storage has checked before.
    return Spot.BOTH if not below or is_at(below[0], pair.old) else Spot.ODD


def _kind(job: BlockJob | None, live_xml: str, merge: DiskMerge, *, begun: bool) -> Job:
    if job is None:
        return Job.NONE
    if not (job.is_commit and begun):
        return Job.FOREIGN
    return Job.READY if merge.leaf and vm_xml.mirror(live_xml, merge.target) == "yes" else Job.RUNNING


def _is_empty(work: Work, merge: DiskMerge) -> bool:
    """Tell whether `top` is proven to hold nothing: legal, directly above `base`, without data; or gone.

    Gone is one that an SPM has deleted, which it does only when its data is in `base`: it left a tombstone, and no file
    is there. A file without metadata is no proof of anything, nor is the want of both.
    """
    if merge.way is Way.DISCARD:
        return False
    try:
        work.deps.storage.check_new_volume(merge.top, merge.base)
    except StorageError as refused:
        return refused.code == "volume_deleted" and not work.deps.storage.exists(merge.top)
    return True


def _is_lifted(work: Work, merge: DiskMerge, pair: LeafPair) -> bool:
    """Tell whether the header of some volume that stood on `top` names `base`: QEMU writes it when it has committed."""
    if merge.way is not Way.CHAIN or merge.leaf:
        return False
    for volume in merge.above:
        files = work.deps.storage.chain(volume)
        if len(files) > 1 and is_at(files[1].path, pair.old):
            return True
    return False
