"""Find a disk's leaf on record, or adopt it with its whole chain, in place: no file is moved or written to.

Headers are read by our own parser only. Whatever was already a backing file when it was adopted is immutable (a cloud
image, a clone's base); the machine's own leaf is not, since a rollback and a later merge write into it.
"""

from dataclasses import dataclass, replace

from common import logs
from common.errors import HeaderRefused, StorageError
from common.ids import VmId
from common.images.chain import MAX_DEPTH, Backing
from common.images.metadata import Legality, Origin, VolumeMetadata, VolumeState
from common.messaging.messages import DiskSwitch, VolumeAt
from spm.backends.base import Backend, Shape
from spm.pool import Pool

_log = logs.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A leaf that a new volume can stand on, with the volumes that are news to the Manager, base first."""

    shape: Shape
    news: tuple[VolumeMetadata, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """One volume of a chain as its header shows it. `external_base`: it stands on a file outside."""

    backend: Backend
    volume: VolumeAt
    shape: Shape
    external_base: str = ""


def parent_of(pool: Pool, disk: DiskSwitch, vm: VmId, attempt: int) -> Parent:
    """Return the volume that a disk's new leaf is to stand on, adopted if it was not on record.

    Raises HeaderRefused for a header or a chain that is not as it must be, StorageError otherwise. A crash leaves some
    volumes of the chain adopted; doing it again adopts the rest.
    """
    backend = pool.backend(disk.parent.storage_domain_id)
    with pool.adopting:
        known = backend.find(disk.parent, disk.disk_id)
        if known is None:
            return _adopt(pool, disk, vm, attempt)
        _require_usable(known, disk.parent)
        shape = backend.shape(disk.parent)
        _require_on_record(pool, known, shape)
        shared = _share(backend, known, disk)
        return Parent(shape=shape, news=(shared,) if shared else ())


def adopted_chain(pool: Pool, disk: DiskSwitch) -> tuple[VolumeMetadata, ...]:
    """Return the adopted volumes that a disk's new leaf is to stand on, base first; () for a leaf of ours.

    Told with every answer, not only by the call that adopted them: an answer can be lost, and the work is not repeated.
    """
    chain: list[VolumeMetadata] = []
    volume: VolumeAt | None = disk.parent
    while volume is not None:
        known = pool.backend(volume.storage_domain_id).find(volume, disk.disk_id)
        if known is None or known.origin is not Origin.ADOPTED:
            break
        chain.append(known)
        volume = known.parent
    return tuple(reversed(chain))


def _adopt(pool: Pool, disk: DiskSwitch, vm: VmId, attempt: int) -> Parent:
    links = _walk(pool, disk.parent)
    news: list[VolumeMetadata] = []
    below: VolumeAt | None = None
    for link in reversed(links):
        known = link.backend.find(link.volume, disk.disk_id)
        if known is None:
            metadata = VolumeMetadata(
                volume=link.volume,
                disk_id=disk.disk_id,
                vm_id=vm,
                parent=below,
                size_bytes=link.shape.size_bytes,
                generation=attempt,
                created_attempt=attempt,
                origin=Origin.ADOPTED,
                immutable=link is not links[0],
                external_base=link.external_base,
            )
            link.backend.store(metadata, new=True)
            _log.info("volume.adopted", volume=link.volume.volume_id, disk=disk.disk_id, path=link.volume.path)
            news.append(metadata)
        else:
            _require_usable(known, link.volume)
            shared = _share(link.backend, known, disk)
            news.extend([shared] if shared else [])
        below = link.volume
    return Parent(shape=links[0].shape, news=tuple(news))


def _walk(pool: Pool, leaf: VolumeAt) -> list[_Link]:
    """Return the chain from the leaf down to its base, which has no backing file or stands on one outside."""
    links: list[_Link] = []
    seen: set[str] = set()
    backend, volume = pool.backend(leaf.storage_domain_id), leaf
    expected = backend.name_volume(leaf.path, leaf.format)
    if expected != leaf:
        raise StorageError("volume_not_found", f"volume {leaf.volume_id} at {leaf.path} is not on record")
    while True:
        _require_new_step(volume, seen)
        shape = backend.shape(volume)
        if shape.backing is None:
            return [*links, _Link(backend=backend, volume=volume, shape=shape)]
        place = pool.locate(shape.backing.path)
        if place is None:
            _require_sound_outside(backend, shape.backing)
            return [*links, _Link(backend=backend, volume=volume, shape=shape, external_base=shape.backing.path)]
        links.append(_Link(backend=backend, volume=volume, shape=shape))
        backend = pool.backend(place.storage_domain_id)
        volume = backend.name_volume(place.path, shape.backing.format)


def _require_sound_outside(backend: Backend, backing: Backing) -> None:
    """Follow a chain outside to its end: every file of it must be below a declared read-only base."""
    seen: set[str] = set()
    below: Backing | None = backing
    while below is not None:
        if below.path in seen or len(seen) >= MAX_DEPTH:
            raise HeaderRefused(
                "header_refused", f"the chain below {backing.path} is a loop or deeper than {MAX_DEPTH}"
            )
        seen.add(below.path)
        below = backend.outside(below.path, below.format)


def _require_new_step(volume: VolumeAt, seen: set[str]) -> None:
    key = f"{volume.storage_domain_id}/{volume.path}"
    if key in seen:
        raise HeaderRefused("header_refused", f"the chain comes back to {volume.path}: a loop")
    if len(seen) >= MAX_DEPTH:
        raise HeaderRefused("header_refused", f"the chain is deeper than {MAX_DEPTH} volumes at {volume.path}")
    seen.add(key)


def _require_usable(known: VolumeMetadata, asked: VolumeAt) -> None:
    if known.state is VolumeState.DELETED or known.legality is Legality.ILLEGAL:
        raise StorageError("volume_deleted", f"volume {asked.volume_id} is deleted, or its deletion has begun")
    if known.volume != asked:
        raise StorageError(
            "volume_not_found",
            f"volume {asked.volume_id} is on record at {known.volume.path} as {known.volume.format}, "
            f"not at {asked.path} as {asked.format}",
        )


def _require_on_record(pool: Pool, known: VolumeMetadata, shape: Shape) -> None:
    """Refuse a leaf whose header names another backing file than its metadata (P8: unexpected backing names)."""
    match known.parent, shape.backing:
        case None, None:
            as_recorded = not known.external_base
        case None, Backing(path=path):
            as_recorded = path == known.external_base
        case VolumeAt() as parent, Backing() as backing:
            as_recorded = pool.same_place(parent, backing)
        case _:
            as_recorded = False
    if not as_recorded:
        seen = shape.backing.path if shape.backing else "no backing file"
        expected = known.parent.path if known.parent else known.external_base or "none"
        raise HeaderRefused(
            "header_refused", f"the header of {known.volume.path} names {seen}; on record is {expected}"
        )


def _share(backend: Backend, known: VolumeMetadata, disk: DiskSwitch) -> VolumeMetadata | None:
    """Mark a volume immutable that now stands in another disk's chain too; return it if that is news."""
    if known.disk_id == disk.disk_id or known.immutable:
        return None
    shared = replace(known, immutable=True)
    backend.store(shared)
    _log.info("volume.shared", volume=known.volume.volume_id, disks=f"{known.disk_id},{disk.disk_id}")
    return shared
