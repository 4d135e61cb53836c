"""Move new leaves to the trash, each only with the proofs of P1.

Every step stands where a model checker found that it must (`protocol.md`, part A, section 5): the generation first,
so that an old message can no longer act; the illegal mark before anything else, and taken back before the SPM says
that it keeps a volume; the image lock *held* while the file is moved.
"""

from dataclasses import replace

from common import logs
from common.clock import Clock
from common.crashpoints import reach
from common.errors import LivesnapError, RequestRefused, StaleAttempt, StorageError
from common.images.layout import volume_path
from common.images.metadata import Legality, Origin, VolumeMetadata, VolumeState
from common.messaging.messages import DeleteVolumes, DiskSwitch, Kept, KeptVolume, VolumesDeleted
from spm.backends.base import Backend, HeldVolume, Holds, Trashed
from spm.operations.purge import remove
from spm.pool import Pool

_log = logs.get()


def delete_volumes(command: DeleteVolumes, attempt: int, pool: Pool, clock: Clock) -> VolumesDeleted:
    """Delete the new leaf of every disk, or say why it is kept; safe to repeat.

    Raises StaleAttempt and NotReady (nothing touched), StorageError if one volume could not be dealt with (the others
    were). A crash leaves a volume marked illegal, or in the trash without its tombstone; doing it again goes on there.
    A leaf that was never written, although a host has committed it, does not wait in the trash. One that the user has
    abandoned does, with its data: it is the last way back.
    """
    with pool.vm_lock(command.vm_id):
        for disk in command.disks:
            _require_current(pool.backend(disk.new.storage_domain_id), disk, attempt)
        deletions = [_Deletion(pool, command, disk, attempt=attempt, clock=clock) for disk in command.disks]
        outcomes = pool.each(_Deletion.run, deletions)
    errors = [outcome for outcome in outcomes if isinstance(outcome, LivesnapError)]
    if errors:
        raise errors[0]
    ids = [disk.new.volume_id for disk in command.disks]
    pairs = list(zip(ids, outcomes, strict=True))
    return VolumesDeleted(
        gone=tuple(volume_id for volume_id, why in pairs if why is None),
        kept=tuple(KeptVolume(volume_id=volume_id, why=why) for volume_id, why in pairs if isinstance(why, Kept)),
    )


def _require_current(backend: Backend, disk: DiskSwitch, attempt: int) -> None:
    """Refuse what an earlier attempt asks, and a place that is not the volume's own, before anything is touched."""
    known = backend.load(disk.disk_id, disk.new.volume_id)
    if known is not None and attempt < known.generation:
        raise StaleAttempt(
            "attempt_stale",
            f"attempt {known.generation} has acted on volume {disk.new.volume_id}",
            highest=known.generation,
        )
    place = known.volume.path if known is not None else volume_path(disk.disk_id, disk.new.volume_id)
    if disk.new.path != place:
        raise RequestRefused(
            "request_malformed", f"volume {disk.new.volume_id} lies at {place}, not at {disk.new.path[:200]!r}"
        )


class _Deletion:
    """The deletion of one volume."""

    def __init__(self, pool: Pool, command: DeleteVolumes, disk: DiskSwitch, *, attempt: int, clock: Clock) -> None:
        self._pool = pool
        self._backend = pool.backend(disk.new.storage_domain_id)
        self._vm = command.vm_id
        self._disk = disk
        self._volume = disk.new
        self._committed = disk.new.volume_id in command.committed
        self._abandoned = disk.new.volume_id in command.abandoned
        self._attempt = attempt
        self._clock = clock
        self._never_written: Trashed | None = None

    def run(self) -> Kept | None:
        """Return why the volume is kept, None when it is gone. A full storage domain gets its reserve back first."""
        reach("spm.delete.begun")
        try:
            return self._run()
        except StorageError as full:
            if full.code != "storage_full":
                raise
            self._backend.release_reserve()
            return self._run()

    def _run(self) -> Kept | None:
        known = self._backend.load(self._disk.disk_id, self._volume.volume_id)
        if known is not None and known.state is VolumeState.DELETED:
            if self._attempt > known.generation:
                self._backend.store(replace(known, generation=self._attempt))
            return None
        marked = replace(known or self._unknown(), generation=self._attempt, legality=Legality.ILLEGAL)
        if self._backend.exists(self._volume):
            self._backend.store(marked, new=known is None)
            reach("spm.delete.marked")
            why = self._trash_or_unmark(marked)
            if why is not None:
                _log.warning("volume.kept", volume=self._volume.volume_id, why=why)
                return why
            reach("spm.delete.trashed")
            known = marked
        # Never made, or moved by a run that crashed here: the tombstone is what is missing.
        self._backend.store(replace(marked, state=VolumeState.DELETED), new=known is None)
        reach("spm.delete.tombstoned")
        _log.info("volume.deleted", volume=self._volume.volume_id, committed=self._committed, abandoned=self._abandoned)
        if self._never_written is not None:
            remove(self._backend, self._never_written)
        return None

    def _trash_or_unmark(self, marked: VolumeMetadata) -> Kept | None:
        """Move the volume to the trash; otherwise it is legal again before anybody is told, errors included."""
        try:
            why = self._trash(marked)
        except LivesnapError:
            self._unmark_if_there(marked)
            raise
        if why is not None:
            self._backend.store(replace(marked, legality=Legality.LEGAL))
        return why

    def _trash(self, marked: VolumeMetadata) -> Kept | None:
        if not self._backend.locking_is_proven():
            return Kept.LOCKING_UNPROVEN
        with self._backend.hold(self._volume) as held:
            if held is None:
                return Kept.IN_USE
            return self._trash_held(marked, held)

    def _trash_held(self, marked: VolumeMetadata, held: HeldVolume) -> Kept | None:
        if marked.immutable or self._stands_below_others():
            return Kept.IN_USE
        empty = held.is_empty()
        if not empty and not (self._committed or self._abandoned):
            return Kept.NOT_EMPTY
        if self._abandoned and self._is_somebodys_base():  # an empty one too: a clone cannot open without it
            return Kept.IN_USE
        holds = Holds.NOTHING if empty else Holds.COMMITTED if self._committed else Holds.ABANDONED
        trashed = held.to_trash(self._clock.now(), holds)
        if empty and self._committed:
            # The vm could not write to it and was put back: most likely room is what is missing, and there is nothing
            # in it that could be wanted back, by two proofs.
            self._never_written = trashed
        return None

    def _unmark_if_there(self, marked: VolumeMetadata) -> None:
        """After an error: storage that is gone altogether must not hide the first error behind a second one."""
        try:
            if self._backend.exists(self._volume):
                self._backend.store(replace(marked, legality=Legality.LEGAL))
        except LivesnapError as error:
            _log.warning("volume.left_illegal", volume=self._volume.volume_id, reason=str(error))

    def _stands_below_others(self) -> bool:
        """Tell whether volumes of this disk stand on this one: nobody need have it open for that. (Where another
        disk's do, it was made immutable.)"""
        return any(
            other.parent is not None
            and other.parent.volume_id == self._volume.volume_id
            and other.state is VolumeState.EXISTS
            for other in self._backend.of_disk(self._disk.disk_id)
        )

    def _is_somebodys_base(self) -> bool:
        """Tell whether a file that livesnap need not know of stands on this volume: somebody's clone, off just now."""
        path = self._backend.path(self._volume)
        above = [found for backend in self._pool.usable() if (found := backend.standing_on(path))]
        if above:
            _log.warning("volume.stood_on", volume=self._volume.volume_id, by=above)
        return bool(above)

    def _unknown(self) -> VolumeMetadata:
        """Return the metadata of a volume that has none: never made, or its creation was interrupted (then its size
        stays 0 here until it is deleted; nobody was told that it exists)."""
        return VolumeMetadata(
            volume=self._volume,
            disk_id=self._disk.disk_id,
            vm_id=self._vm,
            parent=self._disk.parent,
            size_bytes=0,
            generation=self._attempt,
            created_attempt=self._attempt,
            origin=Origin.CREATED,
        )
