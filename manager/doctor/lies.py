"""Locks that no definition explains: whom to ask for QEMU's own word, and what that word means. Pure.

After libvirtd was killed in a switch, its definitions can name the old leaf while QEMU writes to the new one, and block
nodes can stay open that belong to no disk. Both show as a lock on a file that is in no chain.
"""

from collections.abc import Iterator, Mapping

from common.ids import HostId, VmId
from common.messaging.messages import DiskSwitch
from common.messaging.surveys import NodeSeen
from manager.doctor.facts import Key
from manager.doctor.findings import Finding, Mend
from manager.doctor.machines import Stand, pool_of, stands_of
from manager.doctor.view import Home, View, key_at, key_of
from manager.flows.mend_states import Plan


def whom_to_ask(view: View) -> Mapping[HostId, frozenset[VmId]]:
    """Return the running machines that may have an unexplained file open, by host: those on whose chain it stands, and
    the one that its metadata names. Only these are worth the taint that asking QEMU leaves."""
    wanted: dict[HostId, set[VmId]] = {}
    for key in unexplained(view):
        vms = {vm for below in view.below(key) for vm in view.users.get(below, ())}
        if key in view.volumes:
            vms.add(view.volumes[key].metadata.vm_id)
        for vm in vms:
            home = view.home(vm)
            if home is not None and home.seen.is_active and view.is_settled(vm):
                wanted.setdefault(home.host, set()).add(vm)
    return {host: frozenset(vms) for host, vms in wanted.items()}


def unexplained(view: View) -> list[Key]:
    """Return the files that somebody has open and no machine's definition leads to."""
    return [key for key, file in sorted(view.files.items()) if file.is_locked and key not in view.reachable]


def of_qemu(view: View) -> Iterator[Finding]:
    """Yield where QEMU itself says otherwise than its definitions, for the machines that were asked."""
    explained: set[Key] = set()
    for vm in view.record.vms:
        home = view.home(vm)
        if home is None or home.seen.qemu is None or not view.is_settled(vm):
            continue
        stands = stands_of(view, home)
        for stand in stands:
            yield from _lie(view, home, stand)
        yield from _leaks(view, home, stands)
    for seen in view.machines():
        explained |= {key for node in seen.qemu or () if (key := key_at(node.spot))}
    for key in unexplained(view) if view.all_answered else ():
        if key not in explained and not _is_unsettled(view, key):
            subject = key[1]
            yield Finding(code="lock_unexplained", subject=subject, seen="somebody holds QEMU's image lock on it")


def _is_unsettled(view: View, key: Key) -> bool:
    """Tell whether a job may have opened the file while we looked."""
    owners = {vm for below in view.below(key) for vm in view.users.get(below, ())}
    if key in view.volumes:
        owners.add(view.volumes[key].metadata.vm_id)
    return bool(owners & view.facts.unsettled)


def open_by_qemu(view: View) -> set[Key]:
    """Return the files that QEMU was seen to have open: what becomes of them is said with their machine."""
    return {key for seen in view.machines() for node in seen.qemu or () if (key := key_at(node.spot))}


# ---- the live definition is wrong ------------------------------------------------------------------------------------


def _lie(view: View, home: Home, stand: Stand) -> Iterator[Finding]:
    chain = _chain(home.seen.qemu or (), stand.target)
    if not chain or not stand.live or chain[0] == stand.live[0]:
        return
    vm, name = home.seen.vm_id, view.name(home.seen.vm_id)
    seen = (
        f"on host {home.host} the definition of {stand.target} names {stand.layers[0].path},"
        f" QEMU writes to {chain[0][1] if chain[0] else 'a file outside'}"
    )
    top = chain[0]
    is_right_above = stand.live[0] == stand.leaf_key and chain[1:2] == [stand.leaf_key]
    known = view.record.volumes[stand.leaf.volume_id]
    new = view.volume_at(top, "qcow2") if top else None
    if new is None or not is_right_above or known.is_immutable or top in view.owned_keys:
        yield Finding(code="xml_lies_unsound", subject=name, seen=seen, vm=vm)
        return
    disk = DiskSwitch(target=stand.target, disk_id=stand.disk, old=stand.leaf, new=new)
    yield Finding(code="xml_lies", subject=name, seen=seen, vm=vm, mend=_commit_back(view, home, disk))


def _chain(nodes: tuple[NodeSeen, ...], target: str) -> list[Key | None]:
    """Return one disk's chain as QEMU has it, leaf first. A layer has two nodes (format and storage) of one file."""
    layers = {node.depth: key_at(node.spot) for node in nodes if node.device == target}
    return [layers[depth] for depth in sorted(layers)]


def _commit_back(view: View, home: Home, disk: DiskSwitch) -> Mend:
    """Return the plan by which QEMU lets go of a volume: its data goes down, then the volume to the trash if ours."""
    key, name = key_of(disk.new), view.name(home.seen.vm_id)
    is_ours = key in view.volumes and view.volumes[key].metadata.is_created and key not in view.owned_keys
    others = tuple(host for host in view.record.hosts if host != home.host) if is_ours else ()
    plan = Plan(
        vm=home.seen.vm_id,
        pool=pool_of(view, disk.old),
        what=f"take {name} off {disk.new.path}",
        hosts=(*others, home.host),
        disks=(disk,),
        commit_back=True,
        want="off_new",
        delete=(disk,) if is_ours and view.all_answered else (),
    )
    return Mend(plan=plan)


# ---- leaked nodes ------------------------------------------------------------------------------------------------


def _leaks(view: View, home: Home, stands: tuple[Stand, ...]) -> Iterator[Finding]:
    vm, name = home.seen.vm_id, view.name(home.seen.vm_id)
    loose = {key for node in home.seen.qemu or () if not node.device and (key := key_at(node.spot))}
    for key in sorted(loose - view.reachable):
        seen = f"QEMU on host {home.host} has {key[1]} open for no disk"
        disk = _beside(view, stands, key)
        mend = _commit_back(view, home, disk) if disk else None
        yield Finding(code="node_leaked", subject=name, seen=seen, vm=vm, mend=mend)


def _beside(view: View, stands: tuple[Stand, ...], key: Key) -> DiskSwitch | None:
    """Return a leaked volume as the new leaf of the disk on whose chain it stands; None if it is no such volume."""
    below, file = view.below(key), view.files.get(key)
    for stand in stands:
        if below and file and below[0] in stand.live:
            old, new = view.volume_at(below[0], file.backing_format), view.volume_at(key, "qcow2")
            if old is not None and new is not None:
                return DiskSwitch(target=stand.target, disk_id=stand.disk, old=old, new=new)
    return None
