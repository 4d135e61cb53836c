"""Where each machine writes, against the record: chains, definitions, freezes, what its host's journal has. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from common.ids import DiskId, PoolId, SnapshotId, VmId
from common.messaging.messages import Adoption, DiskSwitch, Format, VolumeAt
from common.messaging.surveys import DiskSeen, LayerSeen
from manager.doctor.facts import DiskRecord, Key
from manager.doctor.findings import Finding, FoundSnapshot, Mend
from manager.doctor.view import Home, View, key_of, keys_of
from manager.flows.mend_states import Found, Plan

FOUND: Final = "found"
"""Why a snapshot that somebody else took is crash-consistent: nobody can say whether anything was frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """One disk: its leaf on record, and its chain as it is, leaf first; `None` lies outside of every storage domain."""

    target: str
    disk: DiskId
    leaf: VolumeAt
    live: tuple[Key | None, ...]
    saved: tuple[Key | None, ...]
    chain: tuple[Key | None, ...]
    layers: tuple[LayerSeen, ...]

    @property
    def leaf_key(self) -> Key:
        """Return where the leaf on record lies."""
        return key_of(self.leaf)

    @property
    def is_on_record(self) -> bool:
        """Tell whether it is on the leaf on record."""
        return self.chain[:1] == (self.leaf_key,)

    @property
    def above(self) -> tuple[Key | None, ...]:
        """Return what stands above the leaf on record, top first; everything if that is not in the chain."""
        return self.chain[: self.chain.index(self.leaf_key)] if self.leaf_key in self.chain else self.chain


def of_machines(view: View) -> Iterator[Finding]:
    """Yield what is to be said of every machine that is settled, where it is."""
    for vm in view.record.vms:
        home = view.home(vm)
        if home is None or not view.is_settled(vm):
            continue
        stands = stands_of(view, home)
        yield from _chains(view, home, stands)
        yield from _freezes(view, home)
    for job in view.record.jobs:
        yield Finding(code="job_waiting", subject=job.vm_name, seen=f"job {job.id} waits for {job.waiting_for}")


def stands_of(view: View, home: Home) -> tuple[Stand, ...]:
    """Return the disks of a machine that are on record and that it still has."""
    seen = {disk.target: disk for disk in home.seen.disks}
    known = [(id_, disk) for id_, disk in view.record.disks.items() if disk.vm == home.seen.vm_id]
    return tuple(
        _stand(view, home, (id_, disk), seen[disk.target])
        for id_, disk in sorted(known, key=lambda pair: pair[1].target)
        if disk.target in seen and disk.leaf in view.record.volumes
    )


def _stand(view: View, home: Home, disk: tuple[DiskId, DiskRecord], seen: DiskSeen) -> Stand:
    layers = seen.live if home.seen.is_active else seen.persistent
    chain = keys_of(layers)
    if chain and chain[-1] is not None and not home.seen.is_active:
        chain += view.below(chain[-1])  # a definition may leave what is below its leaf to the headers
    return Stand(
        target=disk[1].target,
        disk=disk[0],
        leaf=view.record.volumes[disk[1].leaf].volume,
        live=tuple(keys_of(seen.live)),
        saved=tuple(keys_of(seen.persistent)),
        chain=tuple(chain),
        layers=layers,
    )


# ---- chains -----------------------------------------------------------------------------------------------------


def _chains(view: View, home: Home, stands: tuple[Stand, ...]) -> Iterator[Finding]:
    moved = [stand for stand in stands if stand.chain and not stand.is_on_record]
    if moved:
        yield _moved(view, home, moved)
    for stand in stands:
        if stand.is_on_record and home.seen.is_active:
            yield from _definition(view, home, stand)
        yield from _headers(view, home, stand)


def _moved(view: View, home: Home, moved: list[Stand]) -> Finding:
    """Return what a machine that is not on its leaves on record is to be done with: all of its disks, or none."""
    vm, name = home.seen.vm_id, view.name(home.seen.vm_id)
    where = "; ".join(f"{stand.target} is on {_shown(stand)}, on record is {stand.leaf.path}" for stand in moved)
    if any(stand.leaf_key not in stand.chain for stand in moved):
        return Finding(code="leaf_elsewhere", subject=name, seen=f"on host {home.host} {where}", vm=vm)
    problems = [problem for stand in moved for problem in _unsound(view, home, stand)]
    if problems:
        seen = f"on host {home.host} {where}: {'; '.join(problems)}"
        return Finding(code="leaf_unsound", subject=name, seen=seen, vm=vm)
    mend = _adoption(view, home, moved)
    return Finding(code="leaf_foreign", subject=name, seen=f"on host {home.host} {where}", vm=vm, mend=mend)


def _shown(stand: Stand) -> str:
    return stand.layers[0].path if stand.layers else "nothing"


def _unsound(view: View, home: Home, stand: Stand) -> Iterator[str]:
    """Yield why what stands above the leaf on record is not simply a snapshot that somebody took."""
    for place, (key, below) in enumerate(zip(stand.above, stand.chain[1:], strict=False)):
        layer = stand.layers[place] if place < len(stand.layers) else None
        if layer is not None and layer.format != Format.QCOW2.value:
            yield f"{layer.path} is used as {layer.format or 'no format'}"
        if key is None or key not in view.files:
            yield f"{layer.path if layer else 'a layer'} was not seen on storage"
        else:
            yield from _unsound_file(view, home, stand, (key, below))
    if home.seen.is_active and stand.saved and stand.saved[0] not in (stand.chain[0], stand.leaf_key):
        yield f"the persistent definition names {stand.saved[0][1] if stand.saved[0] else 'a file elsewhere'}"


def _unsound_file(view: View, home: Home, stand: Stand, pair: tuple[Key, Key | None]) -> Iterator[str]:
    """Yield what is wrong with one file that stands above the leaf on record, and what should be below it."""
    key, below = pair
    file, leaf = view.files[key], view.files.get(stand.leaf_key)
    if view.volume_at(key, Format.QCOW2.value) is None:
        yield f"{key[1]!a} is no name that a command may carry"
    if file.problem:
        yield f"{key[1]}: {file.problem}"
    elif (file.backing and (file.backing.storage_domain_id, file.backing.path)) != below:
        yield f"the header of {key[1]} names {file.backing.path if file.backing else 'no backing file'}"
    elif leaf is None or leaf.problem or file.size_bytes != leaf.size_bytes:
        yield f"{key[1]} is {file.size_bytes} bytes, the volume on record {leaf.size_bytes if leaf else 'not seen'}"
    if view.users.get(key, set()) - {home.seen.vm_id} or key in view.owned_keys:
        yield f"{key[1]} belongs to another machine or snapshot too"
    if home.seen.is_active != file.is_locked:
        yield f"{key[1]} is {'open' if file.is_locked else 'not open'} although the machine is {home.seen.state}"


def _adoption(view: View, home: Home, moved: list[Stand]) -> Mend:
    """Return the plan: one snapshot for each layer that was put on, from below, with the disks that have it."""
    ladders = {stand.target: _ladder(view, stand) for stand in moved}
    vm, levels = home.seen.vm_id, max(len(ladder) for ladder in ladders.values())
    snapshots, adopt = [], []
    for level in range(levels):
        disks = tuple(ladder[level] for ladder in ladders.values() if len(ladder) > level)
        snapshot = SnapshotId(view.facts.make_id())
        snapshots.append(FoundSnapshot(id=snapshot, name=found_name(view, vm, level), disks=disks))
        adopt += [
            Adoption(volume=disk.new, disk_id=disk.disk_id, parent=disk.old, snapshot_id=snapshot) for disk in disks
        ]
    tops = tuple(ladder[-1] for ladder in ladders.values())
    plan = Plan(
        vm=vm,
        pool=pool_of(view, tops[0].new),
        what=f"adopt the volumes that {view.name(vm)} writes to",
        hosts=(home.host,),
        disks=tops,
        want="on_new",
        adopt=tuple(adopt),
        found=tuple(Found(snapshot=each.id, reason=FOUND) for each in snapshots),
        leaves=tuple((disk.disk_id, disk.new.volume_id) for disk in tops),
    )
    return Mend(plan=plan, snapshots=tuple(snapshots))


def _ladder(view: View, stand: Stand) -> list[DiskSwitch]:
    """Return the steps from the leaf on record up to where the disk is now."""
    steps, old = [], stand.leaf
    for key in reversed(stand.above):
        new = view.volume_at(key, Format.QCOW2.value) if key is not None else None
        if new is not None:
            steps.append(DiskSwitch(target=stand.target, disk_id=stand.disk, old=old, new=new))
            old = new
    return steps


def found_name(view: View, vm: VmId, level: int) -> str:
    """Return a name that no snapshot of the machine has."""
    taken = {snapshot.name for snapshot in view.record.snapshots.values() if snapshot.vm == vm}
    name = f"found-{view.facts.now:%Y%m%d-%H%M%S}" + (f"-{level + 1}" if level else "")
    while name in taken:
        name += "x"
    return name


def pool_of(view: View, volume: VolumeAt) -> PoolId:
    """Return the pool of a volume; a storage domain that no SPM has reported has none ('')."""
    known = view.record.storage.get(volume.storage_domain_id)
    return known.pool if known else PoolId("")


def _definition(view: View, home: Home, stand: Stand) -> Iterator[Finding]:
    """Compare the persistent definition of a running machine that is where it should be."""
    if not stand.saved or stand.saved[0] == stand.leaf_key:
        return
    vm, name = home.seen.vm_id, view.name(home.seen.vm_id)
    saved = stand.saved[0]
    seen = (
        f"on host {home.host} {stand.target} is on {stand.leaf.path}, its definition names"
        f" {saved[1] if saved else 'a file outside'}"
    )
    below = view.below(stand.leaf_key)
    is_below = saved is not None and below[:1] == [saved]
    parent = view.volume_at(saved, view.files[stand.leaf_key].backing_format) if saved and is_below else None
    if parent is None:
        yield Finding(code="definition_differs", subject=name, seen=seen, vm=vm)
        return
    plan = Plan(
        vm=vm,
        pool=pool_of(view, stand.leaf),
        what=f"set the definition of {name} to what it writes to",
        hosts=(home.host,),
        disks=(DiskSwitch(target=stand.target, disk_id=stand.disk, old=parent, new=stand.leaf),),
        want="on_new",
    )
    yield Finding(code="definition_behind", subject=name, seen=seen, vm=vm, mend=Mend(plan=plan))


def _headers(view: View, home: Home, stand: Stand) -> Iterator[Finding]:
    """Compare what a running machine has below each layer with what that layer's header says."""
    chain = stand.live[stand.live.index(stand.leaf_key) :] if stand.leaf_key in stand.live else ()
    for key, below in pairwise(chain):
        file = view.files.get(key) if key else None
        if key is None or below is None or file is None or file.problem:
            continue
        named = file.backing
        if named is None or (named.storage_domain_id, named.path) != below:
            seen = f"{stand.target} on host {home.host}: {key[1]} has {below[1]} below it, its header names"
            seen += f" {named.path if named else 'no backing file'}"
            yield Finding(code="header_differs", subject=view.name(home.seen.vm_id), seen=seen, vm=home.seen.vm_id)


# ---- freezes, the journal ---------------------------------------------------------------------------------------


def _freezes(view: View, home: Home) -> Iterator[Finding]:
    seen = home.seen
    if seen.is_busy:
        return
    vm, name, where = seen.vm_id, view.name(seen.vm_id), f"on host {home.host}"
    ask = Plan(vm=vm, pool=PoolId(""), what=f"thaw {name}", hosts=(home.host,))
    if seen.is_marked:
        how = {True: "its agent says that it is frozen", False: "it is not frozen", None: "its agent does not answer"}
        said = f"{where} it carries an intent to freeze; {how[seen.is_frozen]}"
        yield Finding(code="guest_frozen_by_us", subject=name, seen=said, vm=vm, mend=Mend(plan=ask))
    elif seen.is_frozen:
        said = f"{where} its agent says that it is frozen"
        yield Finding(code="guest_frozen_by_others", subject=name, seen=said, vm=vm)
    if not seen.is_answered and not seen.is_marked:
        said = f"attempt {seen.attempt} {where}"
        plan = replace(ask, what=f"end the open attempt of {name}")
        yield Finding(code="attempt_unanswered", subject=name, seen=said, vm=vm, mend=Mend(plan=plan))
