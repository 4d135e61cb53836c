"""What lies on storage, against the record and the machines: orphans, marks, missing files, strangers. Pure."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from common.ids import StorageDomainId, VmId, VolumeId
from common.messaging.messages import Adoption, DiskSwitch
from common.messaging.surveys import VolumeSeen
from manager.doctor.facts import Key, VolumeRecord
from manager.doctor.findings import Finding, Mend
from manager.doctor.lies import open_by_qemu
from manager.doctor.machines import pool_of
from manager.doctor.view import View, key_of, volume_of
from manager.flows.mend_states import Plan

LITTER_AGE: Final = timedelta(hours=1)
"""As the purge has it: what is younger may belong to a creation that runs."""


def of_storage(view: View) -> Iterator[Finding]:
    """Yield what is to be said of every volume and file, those of machines that a job holds left out."""
    opened = open_by_qemu(view)
    for key, seen in sorted(view.volumes.items()):
        if view.is_settled(seen.metadata.vm_id):
            yield from _volume(view, key, seen, is_open=key in opened)
    for id_ in sorted(view.owned):
        known = view.record.volumes.get(id_)
        if known is not None and view.is_settled(_vm_of(view, known)):
            yield from _on_record(view, id_, known)
    yield from _files(view, opened)


def _vm_of(view: View, known: VolumeRecord) -> VmId:
    disk = view.record.disks.get(known.disk)
    return disk.vm if disk else VmId("")


# ---- volumes that have metadata ---------------------------------------------------------------------------------


def _volume(view: View, key: Key, seen: VolumeSeen, *, is_open: bool) -> Iterator[Finding]:
    metadata = seen.metadata
    is_needed = metadata.volume_id in view.owned or key in view.owned_keys or key in view.reachable
    if seen.file is None:
        yield _without_file(view, key, seen, is_needed=is_needed)
        return
    if metadata.is_illegal and is_needed:
        yield _illegal(view, key, seen)
    if not is_needed and not is_open:
        yield _unowned(view, key, seen)


def _without_file(view: View, key: Key, seen: VolumeSeen, *, is_needed: bool) -> Finding:
    metadata = seen.metadata
    trash = [each for each in view.facts.survey.storage[key[0]].trash if each.volume_id == metadata.volume_id]
    if trash and not is_needed:
        what = f"end the deletion of {key[1]}"
        mend = _removal(view, key, seen, what)
        said = f"it is in the trash as {trash[0].path}"
        return Finding(code="tombstone_missing", subject=key[1], seen=said, vm=metadata.vm_id, mend=mend)
    return Finding(code="volume_missing", subject=key[1], seen=_needed_by(view, metadata.volume_id, trash != []))


def _needed_by(view: View, volume: VolumeId, is_in_trash: bool = False) -> str:
    snapshots = view.snapshots_on(volume)
    leaves = [view.name(disk.vm) for disk in view.record.disks.values() if disk.leaf == volume]
    parts = [f"snapshots: {snapshots}"] if snapshots else []
    parts += [f"it is the leaf of {', '.join(leaves)}"] if leaves else []
    parts += ["a volume of that id is in the trash"] if is_in_trash else []
    return "; ".join(parts) or "nothing on record needs it"


def _illegal(view: View, key: Key, seen: VolumeSeen) -> Finding:
    metadata = seen.metadata
    said = f"marked illegal by attempt {metadata.generation}; {_needed_by(view, metadata.volume_id)}"
    mend = _adoption(view, key, seen, f"take the mark off {key[1]}")
    return Finding(code="volume_illegal", subject=key[1], seen=said, vm=metadata.vm_id, mend=mend)


def _adoption(view: View, key: Key, seen: VolumeSeen, what: str) -> Mend | None:
    metadata = seen.metadata
    parent = view.by_id.get(metadata.parent_id) if metadata.parent_id else None
    if metadata.vm_id not in view.record.vms or (metadata.parent_id and parent is None):
        return None
    volume = volume_of(key[0], metadata)
    above = volume_of(parent[0][0], parent[1]) if parent else None
    plan = Plan(
        vm=metadata.vm_id,
        pool=pool_of(view, volume),
        what=what,
        adopt=(Adoption(volume=volume, disk_id=metadata.disk_id, parent=above),),
    )
    return Mend(plan=plan)


def _unowned(view: View, key: Key, seen: VolumeSeen) -> Finding:
    """Decide whether a volume that nobody needs may go: only with every proof that can be had from outside."""
    metadata, file = seen.metadata, seen.file
    against = [] if metadata.is_created else ["livesnap did not make it"]
    against += [] if file and file.is_empty else ["it may hold data"]
    against += ["somebody has it open"] if file and file.is_locked else []
    if metadata.volume_id in view.parents or key in view.backed:
        against.append("another volume stands on it")
    whose = f"made for {view.name(metadata.vm_id)}"
    mend = None if against else _removal(view, key, seen, f"move {key[1]} to the trash")
    if not against and mend is None:
        against.append("not every host and storage domain could be asked, or its machine is not known")
    if mend is not None:
        seen_as = f"{whose}; it is empty and free"
        return Finding(code="volume_orphan", subject=key[1], seen=seen_as, vm=metadata.vm_id, mend=mend)
    return Finding(code="volume_unowned", subject=key[1], seen=f"{whose}; {'; '.join(against)}")


def _removal(view: View, key: Key, seen: VolumeSeen, what: str) -> Mend | None:
    """Return the plan to delete a volume: every host proves that it is nowhere, the machine's own last."""
    metadata = seen.metadata
    parent = view.by_id.get(metadata.parent_id) if metadata.parent_id else None
    proven = view.facts.survey.storage[key[0]].locking_is_proven
    if parent is None or metadata.vm_id not in view.record.vms or not (view.all_answered and proven):
        return None
    targets = [disk.target for id_, disk in view.record.disks.items() if id_ == metadata.disk_id]
    home = view.home(metadata.vm_id)
    hosts = [host for host in view.record.hosts if home is None or host != home.host]
    if not targets or not (hosts or home):
        return None
    disk = DiskSwitch(
        target=targets[0],
        disk_id=metadata.disk_id,
        old=volume_of(parent[0][0], parent[1]),
        new=volume_of(key[0], metadata),
    )
    plan = Plan(
        vm=metadata.vm_id,
        pool=pool_of(view, disk.new),
        what=what,
        hosts=(*hosts, *([home.host] if home else [])),
        disks=(disk,),
        want="off_new",
        delete=(disk,),
    )
    return Mend(plan=plan)


# ---- volumes on record ------------------------------------------------------------------------------------------


def _on_record(view: View, id_: VolumeId, known: VolumeRecord) -> Iterator[Finding]:
    key = key_of(known.volume)
    storage = view.facts.survey.storage.get(key[0])
    if storage is None or key in view.volumes:
        return
    if id_ in view.deleted:
        yield Finding(code="volume_deleted", subject=key[1], seen=_needed_by(view, id_))
    elif key not in view.files:
        yield Finding(code="volume_missing", subject=key[1], seen=_needed_by(view, id_))
    elif known.is_created:
        mend = _rewritten(view, known)
        said = _needed_by(view, id_)
        yield Finding(code="metadata_missing", subject=key[1], seen=said, vm=_vm_of(view, known), mend=mend)


def _rewritten(view: View, known: VolumeRecord) -> Mend | None:
    """Return the plan to write a volume's metadata anew, if record and header agree on what it stands on."""
    parent = view.record.volumes.get(known.parent) if known.parent else None
    vm, key = _vm_of(view, known), key_of(known.volume)
    if parent is None or vm not in view.record.vms or view.below(key)[:1] != [key_of(parent.volume)]:
        return None
    made = [
        id_
        for id_, snapshot in view.record.snapshots.items()
        if any(new == known.volume.volume_id for _, _, new in snapshot.disks)
    ]
    adoption = Adoption(
        volume=known.volume, disk_id=known.disk, parent=parent.volume, snapshot_id=made[0] if made else None
    )
    what = f"write the metadata of {key[1]} anew"
    return Mend(plan=Plan(vm=vm, pool=pool_of(view, known.volume), what=what, adopt=(adoption,)))


# ---- everything else --------------------------------------------------------------------------------------------


def _files(view: View, opened: set[Key]) -> Iterator[Finding]:
    for key, stray in sorted(view.strays.items()):
        if stray.is_temporary:
            if view.facts.now - stray.file.modified_at > LITTER_AGE:
                since = f"{stray.file.stored_bytes} bytes, since {stray.file.modified_at:%Y-%m-%d %H:%M}"
                yield Finding(code="file_unfinished", subject=key[1], seen=since)
        elif key not in view.reachable | view.owned_keys and key not in opened and not _is_being_made(view, key):
            said = f"{stray.file.stored_bytes} bytes, {'open' if stray.file.is_locked else 'not open'}"
            yield Finding(code="file_unknown", subject=key[1], seen=said)
    for place, storage in sorted(view.facts.survey.storage.items()):
        for broken in storage.broken:
            yield Finding(code="metadata_broken", subject=broken.path, seen=f"{_name(view, place)}: {broken.problem}")


def _is_being_made(view: View, key: Key) -> bool:
    """Tell whether the file lies in the folder of a disk whose machine a job holds: a volume is there before its
    metadata is."""
    folder = key[1].split("/")[1:2]
    return any(id_ in folder and not view.is_settled(disk.vm) for id_, disk in view.record.disks.items())


def _name(view: View, place: StorageDomainId) -> str:
    known = view.record.storage.get(place)
    return known.name if known else place
