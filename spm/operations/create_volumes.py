"""Make one empty volume above each disk's leaf, or above a snapshot's volume, all or none."""

from dataclasses import dataclass, replace

from common import logs
from common.crashpoints import reach
from common.errors import LivesnapError, RequestRefused, StaleAttempt, StorageError
from common.images.chain import Backing
from common.images.layout import volume_path
from common.images.metadata import Legality, Origin, VolumeMetadata, VolumeState
from common.messaging.messages import CreateVolumes, DiskSwitch, Format, VolumeAt, VolumesCreated
from spm.backends.base import Backend, Shape
from spm.operations.adopt import adopted_chain, parent_of
from spm.operations.found import found
from spm.pool import Pool

_log = logs.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One volume to be made: its metadata as it will be, and the shape it takes over from its parent."""

    backend: Backend
    wanted: VolumeMetadata
    parent: VolumeAt
    shape: Shape


def create_volumes(command: CreateVolumes, attempt: int, pool: Pool, *, min_free_bytes: int) -> VolumesCreated:
    """Make the new leaf of every disk durable, with its metadata; safe to repeat.

    Raises StaleAttempt, NotReady (nothing touched), HeaderRefused, and StorageError: storage_full, volume_exists (same
    id, other parameters), volume_deleted (below a tombstone), and what storage says. After an error, what this call
    made and provably nobody uses is removed again; the rest is for DeleteVolumes. A crash leaves hidden temporary
    files, files without metadata (which doing it again completes), or finished volumes.
    """
    with pool.vm_lock(command.vm_id):
        for disk in command.disks:
            _require_address(disk)
        created = [_repeat(pool, command, disk, attempt) for disk in command.disks]
        plans: list[_Plan] = []
        news: dict[str, VolumeMetadata] = {}
        for disk, existing in zip(command.disks, created, strict=True):
            if existing is None:
                plan, adopted = _plan(pool, command, disk, attempt)
                _require_room(plan.backend, min_free_bytes)
                plans.append(plan)
                news.update({volume.volume.volume_id: volume for volume in adopted})
        _make_all(pool, plans)
        chains = [volume for disk in command.disks for volume in adopted_chain(pool, disk)]
        told = {volume.volume.volume_id: volume for volume in [*chains, *news.values()]}
    made = iter(plans)
    return VolumesCreated(
        created=tuple(found(existing or next(made).wanted) for existing in created),
        adopted=tuple(found(volume) for volume in told.values()),
    )


def _require_address(disk: DiskSwitch) -> None:
    """Refuse a command that no Manager of ours sends: the place of a new volume is not a matter of choice."""
    if disk.new.path != volume_path(disk.disk_id, disk.new.volume_id) or disk.new.format is not Format.QCOW2:
        raise RequestRefused("request_malformed", f"new volume {disk.new.volume_id} at {disk.new.path[:200]!r}")
    if disk.kept or disk.new.storage_domain_id != disk.parent.storage_domain_id:
        raise RequestRefused(
            "request_malformed",
            f"volume {disk.new.volume_id} is no new one, or on another storage domain than its parent",
        )


def _repeat(pool: Pool, command: CreateVolumes, disk: DiskSwitch, attempt: int) -> VolumeMetadata | None:
    """Return the volume if it exists as asked for; None if it is to be made. Raises what forbids both."""
    backend = pool.backend(disk.new.storage_domain_id)
    known = backend.load(disk.disk_id, disk.new.volume_id)
    if known is None:
        return None
    volume_id = disk.new.volume_id
    if attempt < known.generation:
        raise StaleAttempt(
            "attempt_stale", f"attempt {known.generation} has acted on volume {volume_id}", highest=known.generation
        )
    if known.state is VolumeState.DELETED or known.legality is Legality.ILLEGAL:
        raise StorageError("volume_deleted", f"volume {volume_id} was deleted, or its deletion has begun")
    same = (known.volume, known.vm_id, known.parent, known.snapshot_id)
    if same != (disk.new, command.vm_id, disk.parent, command.snapshot_id):
        raise StorageError("volume_exists", f"volume {volume_id} exists with other parameters")
    if not backend.exists(disk.new):
        raise StorageError("volume_not_found", f"volume {volume_id} is on record, but {disk.new.path} is not there")
    if attempt > known.generation:
        known = replace(known, generation=attempt)
        backend.store(known)
    return known


def _plan(
    pool: Pool, command: CreateVolumes, disk: DiskSwitch, attempt: int
) -> tuple[_Plan, tuple[VolumeMetadata, ...]]:
    parent = parent_of(pool, disk, command.vm_id, attempt)
    wanted = VolumeMetadata(
        volume=disk.new,
        disk_id=disk.disk_id,
        vm_id=command.vm_id,
        parent=disk.parent,
        size_bytes=parent.shape.size_bytes,
        generation=attempt,
        created_attempt=attempt,
        origin=Origin.CREATED,
        snapshot_id=command.snapshot_id,
    )
    backend = pool.backend(disk.new.storage_domain_id)
    return _Plan(backend=backend, wanted=wanted, parent=disk.parent, shape=parent.shape), parent.news


def _require_room(backend: Backend, min_free_bytes: int) -> None:
    free = backend.usage().free_bytes
    if free < min_free_bytes:
        raise StorageError(
            "storage_full",
            f"storage domain {backend.identity.name} has {free} bytes free, below the {min_free_bytes} of the settings",
        )


def _make_all(pool: Pool, plans: list[_Plan]) -> None:
    """Make all volumes; if one cannot be made, take back those that were, and raise the first error."""
    fresh: list[_Plan] = []
    outcomes = pool.each(lambda plan: _make(plan, fresh), plans)
    errors = [outcome for outcome in outcomes if outcome is not None]
    if errors:
        for plan in fresh:
            _take_back(plan)
        raise errors[0]


def _make(plan: _Plan, fresh: list[_Plan]) -> None:
    wanted, parent = plan.wanted, plan.parent
    if plan.backend.make(wanted.volume, parent, plan.shape):
        fresh.append(plan)
    else:
        _require_unfinished(plan, parent)
    reach("spm.create.linked")
    plan.backend.store(wanted, new=True)
    reach("spm.create.metadata_written")
    _log.info("volume.created", volume=wanted.volume.volume_id, disk=wanted.disk_id, parent=parent.volume_id)


def _require_unfinished(plan: _Plan, parent: VolumeAt) -> None:
    """Accept a file without metadata only if it is what an interrupted creation of this same volume leaves."""
    volume = plan.wanted.volume
    with plan.backend.hold(volume) as held:
        unused = held is not None and held.is_empty()
    shape = plan.backend.shape(volume)
    match shape.backing:
        case Backing(path=path, format=parent.format):
            on_parent = plan.backend.locate(path) == plan.backend.locate(plan.backend.path(parent))
        case _:
            on_parent = False
    same_shape = replace(shape, backing=None) == replace(plan.shape, backing=None)
    if not (unused and same_shape and on_parent):
        raise StorageError("volume_exists", f"{volume.path} is there without metadata, and is not what was asked for")


def _take_back(plan: _Plan) -> None:
    """Remove a volume that this call made, if provably nobody uses it. What fails here is left for DeleteVolumes."""
    volume = plan.wanted.volume
    try:
        with plan.backend.hold(volume) as held:
            if held is None or not held.is_empty():
                return
            # Metadata first: a file without it does not exist for anybody, and is completed or deleted later. Only
            # our own: a successor's tombstone stays.
            if plan.backend.load(plan.wanted.disk_id, volume.volume_id) == plan.wanted:
                plan.backend.forget(plan.wanted)
            held.remove()
    except LivesnapError as error:
        _log.warning("volume.left", volume=volume.volume_id, reason=str(error))
        return
    _log.info("volume.taken_back", volume=volume.volume_id)
