"""Which volume is merged into which when snapshots are deleted. Pure.

A snapshot's content is a volume B that the machine wrote to until the snapshot was taken. Deleting the snapshot means
that B is no point of its own any more:

- One volume C stands on B: C's data goes down into B, C vanishes, and what stood on C, or was C's content, stands on B
  or is B's. Down and not up, because C holds what was written since the snapshot, mostly less than B; because it is
  the one way that libvirt has for the middle of a running machine's chain; because the file that vanishes is always one
  of ours; and because B keeps its name and place, and so does a machine's first image.
- Nothing stands on B (the end of a branch that the machine left): B vanishes with its data.
- B is another snapshot's content as well: it stays, and only the record goes.

Never written to: an immutable volume, or one that another volume, disk or machine stands on as well (`volume_shared`).
Copying B's data up would be the safe way there, but it would free nothing, since B has to stay.

The machine's state is not asked here: whether QEMU or the SPM merges is found out when it is done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import RequestRefused
from common.ids import DiskId, SnapshotId, VolumeId
from common.messaging.merging import DiskMerge, Way
from common.messaging.volumes import VolumeAt
from manager.flows.delete_states import Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One volume on record."""

    at: VolumeAt
    disk_id: DiskId
    parent: VolumeId | None
    immutable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The volume that holds one disk of a snapshot."""

    target: str
    disk_id: DiskId
    volume: VolumeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A snapshot of the machine, with its content."""

    name: str
    disks: tuple[Content, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A machine's volumes, with whatever stands on them: other disks' and other machines' volumes too.

    `leaves` are the leaves on record of every disk that has one of these volumes as its leaf.
    """

    volumes: Mapping[VolumeId, Node]
    leaves: Mapping[DiskId, VolumeId]
    snapshots: Mapping[SnapshotId, Kept]

    def children(self, volume: VolumeId) -> tuple[Node, ...]:
        """Return what stands directly on a volume, in the order of the record."""
        return tuple(node for node in self.volumes.values() if node.parent == volume)

    def chain(self, disk: DiskId) -> Iterator[VolumeId]:
        """Yield the chain that a disk's machine runs on, leaf first."""
        volume, seen = self.leaves.get(disk), set[VolumeId]()
        while volume is not None and volume in self.volumes and volume not in seen:
            seen.add(volume)
            yield volume
            volume = self.volumes[volume].parent


def plan(tree: Tree, snapshots: Sequence[SnapshotId]) -> tuple[Round, ...]:
    """Return what deleting these snapshots, one after the other, does to the tree: one round for each.

    Raises RequestRefused (volume_shared, vm_off_chain) if one of them cannot be deleted; then none is.
    """
    rounds = []
    for snapshot in dict.fromkeys(snapshots):
        merges = tuple(merge for content in tree.snapshots[snapshot].disks for merge in _merge(tree, snapshot, content))
        rounds.append(Round(snapshot=snapshot, name=tree.snapshots[snapshot].name, disks=merges))
        tree = _after(tree, snapshot, merges)
    return tuple(rounds)


def _merge(tree: Tree, snapshot: SnapshotId, content: Content) -> Iterator[DiskMerge]:
    """Yield what happens on one disk; nothing if its volume is still wanted as it is."""
    own = tree.volumes.get(content.volume)
    if own is None:
        raise RequestRefused("vm_off_chain", f"volume {content.volume} of disk {content.target} is not on record")
    others = (kept.disks for id_, kept in tree.snapshots.items() if id_ != snapshot)
    if any(disk.volume == content.volume for disks in others for disk in disks):
        return
    on_it = tree.children(content.volume)
    if not on_it:
        yield from _discarded(tree, content, own)
    elif len(on_it) > 1:
        raise _shared(content, content.volume, f"{len(on_it)} volumes stand on it: each is a branch of its own")
    else:
        yield _committed(tree, content, own, on_it[0])


def _discarded(tree: Tree, content: Content, own: Node) -> Iterator[DiskMerge]:
    if content.volume in tree.leaves.values():
        return  # the machine writes to it: nothing was taken on top, so there is nothing to take away
    below = tree.volumes.get(own.parent) if own.parent else None
    if own.immutable or below is None:
        raise _shared(content, content.volume, "it was there before livesnap was, or is used elsewhere")
    yield DiskMerge(
        target=content.target, disk_id=content.disk_id, base=below.at, top=own.at, way=Way.DISCARD, leaf=False
    )


def _committed(tree: Tree, content: Content, base: Node, top: Node) -> DiskMerge:
    _require_own(tree, content, base)
    _require_own(tree, content, top)
    if base.at.storage_domain_id != top.at.storage_domain_id:
        raise _shared(content, base.at.volume_id, "it lies on another storage domain than the volume above it")
    above = tree.children(top.at.volume_id)
    in_chain = top.at.volume_id in tuple(tree.chain(content.disk_id))
    return DiskMerge(
        target=content.target,
        disk_id=content.disk_id,
        base=base.at,
        top=top.at,
        way=Way.CHAIN if in_chain else Way.BRANCH,
        leaf=tree.leaves.get(content.disk_id) == top.at.volume_id,
        above=tuple(node.at for node in above),
    )


def _require_own(tree: Tree, content: Content, node: Node) -> None:
    """Refuse a volume that is not this disk's alone: neither may it be written to, nor may it vanish."""
    volume = node.at.volume_id
    if node.immutable:
        raise _shared(content, volume, "it is immutable: it was a backing file when livesnap met it, or is shared")
    strangers = [other for other in (node, *tree.children(volume)) if other.disk_id != content.disk_id]
    if strangers:
        raise _shared(content, volume, f"disk {strangers[0].disk_id} stands on it")
    writer = next((disk for disk, leaf in tree.leaves.items() if leaf == volume and disk != content.disk_id), None)
    if writer is not None:
        raise _shared(content, volume, f"disk {writer} writes to it")


def _shared(content: Content, volume: VolumeId, why: str) -> RequestRefused:
    return RequestRefused("volume_shared", f"volume {volume} of disk {content.target} cannot be merged: {why}")


def _after(tree: Tree, snapshot: SnapshotId, merges: tuple[DiskMerge, ...]) -> Tree:
    """Return the tree as it is once these merges are done."""
    kept = {id_: each for id_, each in tree.snapshots.items() if id_ != snapshot}
    tree = replace(tree, snapshots=kept)
    for merge in merges:
        tree = _without(tree, merge.top.volume_id, merge.base.volume_id)
    return tree


def _without(tree: Tree, top: VolumeId, base: VolumeId) -> Tree:
    volumes = {
        id_: replace(node, parent=base) if node.parent == top else node
        for id_, node in tree.volumes.items()
        if id_ != top
    }
    leaves = {disk: base if leaf == top else leaf for disk, leaf in tree.leaves.items()}
    snapshots = {
        id_: replace(kept, disks=tuple(_moved(disk, top, base) for disk in kept.disks))
        for id_, kept in tree.snapshots.items()
    }
    return Tree(volumes=volumes, leaves=leaves, snapshots=snapshots)


def _moved(content: Content, top: VolumeId, base: VolumeId) -> Content:
    return replace(content, volume=base) if content.volume == top else content
