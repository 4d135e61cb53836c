"""Merge volumes that no machine has open, and what comes before and after every merge on storage."""

from contextlib import ExitStack
from dataclasses import replace

from common import logs
from common.clock import Clock
from common.crashpoints import reach
from common.errors import StorageError
from common.ids import VolumeId
from common.images.metadata import Legality, VolumeMetadata, VolumeState
from common.messaging.merging import (
    DiskMerge,
    DiskMergeSeen,
    FinishMerge,
    MarkMerge,
    MergeSeen,
    MergeState,
    MergeVolumes,
    Way,
    furthest,
)
from common.messaging.messages import DeleteVolumes, Kept, KeptVolume, VolumeAt, VolumesDeleted
from spm.backends.base import Backend, HeldVolume
from spm.merges import BRIEFLY, Merges, Running
from spm.operations import merge_checks
from spm.operations.delete_volumes import delete_volumes
from spm.pool import Pool

_log = logs.get()


def mark_merge(command: MarkMerge, attempt: int, pool: Pool, *, min_free_bytes: int) -> MergeSeen:
    """Check every disk, then mark the volumes illegal that vanish from a machine's chain; safe to repeat.

    Only there two volumes can hold the newest data in turn; any other is marked when it is deleted. Raises what
    forbids a merge, with nothing marked by then: StaleAttempt, NotReady, HeaderRefused, StorageError (chain_unexpected,
    volume_shared, storage_full, …). A crash leaves some marked.
    """
    with pool.vm_lock(command.vm_id):
        found = [(disk, merge_checks.current(_backend(pool, disk), disk, attempt)) for disk in command.disks]
        known = [(disk, metadata) for disk, metadata in found if metadata is not None]
        for disk, metadata in known:
            if not command.undo:
                merge_checks.require_mergeable(pool, disk, metadata)
                merge_checks.require_room(_backend(pool, disk), disk, min_free_bytes=min_free_bytes)
        for disk, metadata in known:
            illegal = disk.way is Way.CHAIN and not command.undo
            legality = Legality.ILLEGAL if illegal else Legality.LEGAL
            _backend(pool, disk).store(replace(metadata, generation=attempt, legality=legality))
            reach("spm.merge.marked")
    return MergeSeen(state=MergeState.IDLE)


def merge_volumes(command: MergeVolumes, attempt: int, pool: Pool, merges: Merges, *, min_free_bytes: int) -> MergeSeen:
    """Begin or go on to merge disk after disk; return how far it is. Waits a moment for what has little to copy.

    Each step stands where a crash leaves something that the next one goes on from: a `top` that is not empty is
    committed (again), an empty one is done. Both image locks are held meanwhile, by the process that copies too.
    Raises StaleAttempt, NotReady, HeaderRefused, StorageError; then the disks before are merged, and this one is as it
    was.
    """
    seen: list[DiskMergeSeen] = []
    begun = False
    with pool.vm_lock(command.vm_id):
        for disk in command.disks:
            work = _Merge(pool, merges, command, disk, attempt=attempt)
            begun = begun or work.is_running
            try:
                seen.append(work.stop() if command.abort else work.go_on(min_free_bytes))
            except StorageError as failed:
                if work.begun or begun:
                    return _failed(seen, disk, failed)
                raise
            begun = begun or work.begun
            if seen[-1].state in (MergeState.RUNNING, MergeState.IN_USE):
                break
    return MergeSeen(state=furthest(tuple(disk.state for disk in seen)), disks=tuple(seen), begun=begun)


def _failed(seen: list[DiskMergeSeen], disk: DiskMerge, failed: StorageError) -> MergeSeen:
    here = DiskMergeSeen(target=disk.target, state=MergeState.IDLE)
    return MergeSeen(
        state=MergeState.IDLE,
        disks=(*seen, here),
        begun=True,
        code="storage_full" if failed.code == "storage_full" else "merge_failed",
        message=failed.message,
        hint=failed.hint,
    )


class _Merge:
    """The merge of one disk's volumes. `begun`: this call has let data go into the base."""

    def __init__(self, pool: Pool, merges: Merges, command: MergeVolumes, disk: DiskMerge, *, attempt: int) -> None:
        self._pool = pool
        self._merges = merges
        self._disk = disk
        self._attempt = attempt
        self._vm = command.vm_id
        self._bytes_per_s = command.bytes_per_s
        self._backend = _backend(pool, disk)
        self.begun = False

    @property
    def is_running(self) -> bool:
        """Tell whether a commit of this disk was begun by this process."""
        return self._merges.find(self._disk.top.volume_id) is not None

    def stop(self) -> DiskMergeSeen:
        """End what runs; the fence against every earlier command is durable then."""
        known = merge_checks.current(self._backend, self._disk, self._attempt)
        if known is not None:
            self._backend.store(replace(known, generation=self._attempt))
        running = self._merges.find(self._disk.top.volume_id)
        if running is not None:
            running.commit.stop()
            self._merges.forget(self._disk.top.volume_id)
            self.begun = True
            _log.info("merge.stopped", top=self._disk.top.volume_id)
        return self._seen(MergeState.IDLE)

    def go_on(self, min_free_bytes: int) -> DiskMergeSeen:
        """Return the disk's state after this step."""
        known = merge_checks.current(self._backend, self._disk, self._attempt)
        if known is None or self._disk.way is Way.DISCARD:
            return self._seen(MergeState.MERGED)
        reach("spm.merge.begun")
        running = self._merges.find(self._disk.top.volume_id)
        if running is None:
            return self._begin(known, min_free_bytes)
        return self._look(running)

    def _begin(self, known: VolumeMetadata, min_free_bytes: int) -> DiskMergeSeen:
        with ExitStack() as locks:
            held = [locks.enter_context(self._backend.hold(volume)) for volume in (self._disk.top, self._disk.base)]
            top, base = held
            if top is None or base is None:
                return self._seen(MergeState.IN_USE)
            if top.is_empty():
                # Legal again, so that its host believes that it is empty.
                self._backend.store(replace(known, generation=self._attempt, legality=Legality.LEGAL))
                return self._seen(MergeState.MERGED)
            merge_checks.require_mergeable(self._pool, self._disk, known)
            # No machine runs on it, so no switch can be under way: it is the one with the newest data, and legal. (A
            # look at a commit that runs writes nothing: it must not fail where the commit has taken the last room.)
            self._backend.store(replace(known, generation=self._attempt, legality=Legality.LEGAL))
            total = merge_checks.require_room(self._backend, self._disk, min_free_bytes=min_free_bytes)
            running = self._start(top, base, locks.pop_all(), total)
        self.begun = True
        reach("spm.merge.started")
        return self._look(running)

    def _start(self, top: HeldVolume, base: HeldVolume, locks: ExitStack, total: int) -> Running:
        """Start the commit, which holds the locks from now on, and lets go of ours when it is over."""
        disk = self._disk

        def ended() -> None:
            locks.close()
            self._merges.on_end(self._vm)

        with ExitStack() as unless_started:
            unless_started.push(locks)
            commit = self._backend.begin_commit(
                disk.top, disk.base, (top.fd, base.fd), bytes_per_s=self._bytes_per_s, ended=ended
            )
            unless_started.pop_all()
        running = Running(commit=commit, total_bytes=total)
        self._merges.add(disk.top.volume_id, running)
        _log.info("merge.begun", top=disk.top.volume_id, base=disk.base.volume_id, bytes=total)
        return running

    def _look(self, running: Running) -> DiskMergeSeen:
        if not running.commit.wait(BRIEFLY):
            return self._seen(MergeState.RUNNING, running)
        self._merges.forget(self._disk.top.volume_id)
        self.begun = True
        reach("spm.merge.committed")
        failed = running.commit.error()
        if failed is not None:
            raise failed
        # Not its word counts: that the volume is empty is what proves that its data stands below.
        with self._backend.hold(self._disk.top) as held:
            if held is None:
                return self._seen(MergeState.IN_USE)
            if held.is_empty():
                _log.info("merge.done", top=self._disk.top.volume_id)
                return self._seen(MergeState.MERGED, running)
        raise StorageError("merge_failed", f"{self._disk.top.path} still holds data after its commit")

    def _seen(self, state: MergeState, running: Running | None = None) -> DiskMergeSeen:
        total = running.total_bytes if running else 0
        done = total if state is MergeState.MERGED else (running.done_bytes if running else 0)
        return DiskMergeSeen(target=self._disk.target, state=state, done_bytes=done, total_bytes=total)


# ---- afterwards -------------------------------------------------------------------------------------------------


def finish_merge(command: FinishMerge, attempt: int, pool: Pool, clock: Clock) -> VolumesDeleted:
    """Let what stands on each merged volume stand on its base, then delete it with the proofs of P1; safe to repeat.

    A volume whose data is neither seen committed nor gone is kept, and so is what stands on it: NOT_EMPTY; one that
    somebody has open: IN_USE. Raises StaleAttempt, NotReady, HeaderRefused, StorageError. A crash leaves some volumes
    above with their new parent in the header, or in header and metadata; both show the same.
    """
    kept: dict[VolumeId, Kept] = {}
    for disk in command.disks:
        with pool.vm_lock(command.vm_id):
            known = merge_checks.current(_backend(pool, disk), disk, attempt)
            if known is not None and disk.way is not Way.DISCARD:
                why = _lift(pool, disk, committed=disk.top.volume_id in command.committed)
                if why is not None:
                    kept[disk.top.volume_id] = why
    going = tuple(disk for disk in command.disks if disk.top.volume_id not in kept)
    discarded = tuple(disk.top.volume_id for disk in going if disk.way is Way.DISCARD)
    deletion = DeleteVolumes(
        vm_id=command.vm_id,
        disks=tuple(disk.switch for disk in going),
        committed=command.committed,
        abandoned=discarded,
    )
    deleted = delete_volumes(deletion, attempt, pool, clock) if going else VolumesDeleted(gone=())
    stayed = tuple(KeptVolume(volume_id=volume_id, why=why) for volume_id, why in kept.items())
    return replace(deleted, kept=(*deleted.kept, *stayed))


def _lift(pool: Pool, disk: DiskMerge, *, committed: bool) -> Kept | None:
    """Let every volume that stands on `top` stand on `base`; return why `top` must stay, None if nothing needs it."""
    backend = _backend(pool, disk)
    above = [
        other
        for other in backend.of_disk(disk.disk_id)
        if other.parent == disk.top and other.state is VolumeState.EXISTS
    ]
    if not committed and above:
        with backend.hold(disk.top) as held:
            if held is None:
                return Kept.IN_USE
            if not held.is_empty():
                return Kept.NOT_EMPTY
    for other in above:
        if not _stands_on(pool, backend, other.volume, disk.base):
            with backend.hold(other.volume) as held:
                if held is None:
                    return Kept.IN_USE
                backend.change_backing(other.volume, disk.base)
                reach("spm.merge.rebased")
        backend.store(replace(other, parent=disk.base))
        reach("spm.merge.recorded")
        _log.info("volume.lifted", volume=other.volume.volume_id, parent=disk.base.volume_id)
    return None


def _stands_on(pool: Pool, backend: Backend, volume: VolumeAt, base: VolumeAt) -> bool:
    backing = backend.shape(volume).backing
    return backing is not None and pool.same_place(base, backing)


def _backend(pool: Pool, disk: DiskMerge) -> Backend:
    if disk.base.storage_domain_id != disk.top.storage_domain_id:
        raise StorageError("volume_shared", f"volumes {disk.top.volume_id} and its base lie on two storage domains")
    return pool.backend(disk.top.storage_domain_id)
