"""Facts put together: which file lies where, which machine uses it, what stands on what, what is on record. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.ids import HostId, StorageDomainId, VmId, VolumeId, adopted_volume_id
from common.images.chain import MAX_DEPTH
from common.messaging.messages import Format, VolumeAt
from common.messaging.surveys import FileSeen, LayerSeen, MetadataSeen, Spot, StrayFile, VmSeen, VolumeSeen
from manager.doctor.facts import Facts, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a machine is: the host where it runs, or the only one that defines it."""

    host: HostId
    seen: VmSeen


class View:
    """Look-ups over one set of facts; made once and only read."""

    def __init__(self, facts: Facts) -> None:
        """Index the facts."""
        self.facts = facts
        self.record = facts.record
        self.volumes: dict[Key, VolumeSeen] = {}
        self.by_id: dict[VolumeId, tuple[Key, MetadataSeen]] = {}
        self.deleted: dict[VolumeId, MetadataSeen] = {}
        self.strays: dict[Key, StrayFile] = {}
        self.files: dict[Key, FileSeen] = {}
        for place, seen in facts.survey.storage.items():
            self._index(place, seen.volumes, seen.strays, seen.named)
        self.users: dict[Key, set[VmId]] = {}
        for vm in self.machines():
            for used in used_by(vm):
                self.users.setdefault(used, set()).add(vm.vm_id)
        self.reachable = self._reachable()
        self.owned = self._owned()
        self.owned_keys = {key_of(self.record.volumes[id_].volume) for id_ in self.owned if id_ in self.record.volumes}
        self.parents = {seen.metadata.parent_id for seen in self.volumes.values() if seen.metadata.parent_id}
        self.backed = {below for file in self.files.values() if (below := key_at(file.backing))}

    def _index(
        self,
        place: StorageDomainId,
        volumes: Iterable[VolumeSeen],
        strays: Iterable[StrayFile],
        named: Iterable[FileSeen],
    ) -> None:
        self.files.update({(place, file.path): file for file in named})
        for seen in volumes:
            metadata, key = seen.metadata, (place, seen.metadata.path)
            if metadata.is_deleted:
                self.deleted[metadata.volume_id] = metadata
                continue
            self.volumes[key] = seen
            self.by_id[metadata.volume_id] = (key, metadata)
            if seen.file is not None:
                self.files[key] = seen.file
        for stray in strays:
            at = (place, stray.file.path)
            if at not in self.volumes:
                self.strays[at] = stray
                self.files[at] = stray.file

    # ---- machines ---------------------------------------------------------------------------------------------------

    def machines(self) -> Iterator[VmSeen]:
        """Yield every machine on every host."""
        for seen in self.facts.survey.hosts.values():
            yield from seen

    def home(self, vm: VmId) -> Home | None:
        """Return where a machine is; None where it is nowhere, or off on several hosts."""
        places = [
            Home(host=host, seen=seen)
            for host, found in self.facts.survey.hosts.items()
            for seen in found
            if seen.vm_id == vm
        ]
        active = [place for place in places if place.seen.is_active]
        best = active or places
        return best[0] if len(best) == 1 else None

    def name(self, vm: VmId) -> str:
        """Return how people call a machine."""
        known = self.record.vms.get(vm)
        return known.name if known else str(vm)

    def is_settled(self, vm: VmId) -> bool:
        """Tell whether nothing of ours was at work on a machine meanwhile."""
        return vm not in self.facts.unsettled

    @property
    def all_answered(self) -> bool:
        """Tell whether every host and storage domain was seen."""
        return not self.facts.survey.silent

    # ---- volumes ----------------------------------------------------------------------------------------------------

    def below(self, key: Key) -> list[Key]:
        """Return the files that a file stands on, as the headers say, nearest first; their number is bounded."""
        found: list[Key] = []
        here: Key | None = key
        while here is not None and len(found) < MAX_DEPTH:
            file = self.files.get(here)
            here = key_at(file.backing) if file else None
            if here is not None:
                found.append(here)
        return found

    def volume_at(self, key: Key, image_format: str) -> VolumeAt | None:
        """Return the volume at a place: by its metadata, by the record, or as it would be adopted; None for a path or
        format that no command may carry."""
        if key in self.volumes:
            return volume_of(key[0], self.volumes[key].metadata)
        for known in self.record.volumes.values():
            if key_of(known.volume) == key:
                return known.volume
        volume_id = adopted_volume_id(*key)
        try:
            return VolumeAt(volume_id=volume_id, storage_domain_id=key[0], path=key[1], format=Format(image_format))
        except ValueError:
            return None

    def snapshots_on(self, volume: VolumeId) -> str:
        """Return the names of the snapshots whose content needs a volume."""
        names = [
            f"{self.name(snapshot.vm)}/{snapshot.name}"
            for snapshot in self.record.snapshots.values()
            if any(volume in self._line(content) for _, content, _ in snapshot.disks)
        ]
        return ", ".join(sorted(names))

    def _line(self, volume: VolumeId) -> set[VolumeId]:
        """Return a volume and everything below it, as on record."""
        line: set[VolumeId] = set()
        here: VolumeId | None = volume
        while here is not None and here not in line:
            line.add(here)
            known = self.record.volumes.get(here)
            here = known.parent if known else None
        return line

    def _owned(self) -> set[VolumeId]:
        roots = {disk.leaf for disk in self.record.disks.values()} | self.record.kept
        for snapshot in self.record.snapshots.values():
            roots |= {volume for _, content, made in snapshot.disks for volume in (content, made)}
        return {volume for root in roots for volume in self._line(root)}

    def _reachable(self) -> set[Key]:
        """Return every place in the chain of any machine: by its definitions, by the headers, and by the metadata."""
        found: set[Key] = set()
        waiting = list(self.users)
        while waiting:
            key = waiting.pop()
            if key in found:
                continue
            found.add(key)
            waiting += self.below(key)
            parent = self.volumes[key].metadata.parent_id if key in self.volumes else None
            if parent in self.by_id:
                waiting.append(self.by_id[parent][0])
        return found


def key_of(volume: VolumeAt) -> Key:
    """Return where a volume lies."""
    return volume.storage_domain_id, volume.path


def key_at(spot: Spot | None) -> Key | None:
    """Return where a file lies; None outside of every storage domain."""
    return (spot.storage_domain_id, spot.path) if spot and spot.storage_domain_id is not None else None


def keys_of(chain: Iterable[LayerSeen]) -> list[Key | None]:
    """Return where the layers of a chain lie."""
    return [key_at(layer.spot) for layer in chain]


def used_by(vm: VmSeen) -> Iterator[Key]:
    """Yield every place that a machine's definitions name, and that its QEMU has in a disk's chain."""
    for disk in vm.disks:
        yield from (key for key in keys_of((*disk.live, *disk.persistent)) if key is not None)
    for node in vm.qemu or ():
        key = key_at(node.spot)
        if node.device and key is not None:
            yield key


def volume_of(place: StorageDomainId, metadata: MetadataSeen) -> VolumeAt:
    """Return the volume that a document describes."""
    return VolumeAt(
        volume_id=metadata.volume_id,
        storage_domain_id=place,
        path=metadata.path,
        format=Format(metadata.format),
    )
