"""Look at one vm: both definitions, the lock on each new file, and QEMU itself where these disagree (P3).

Changes nothing. What it costs a healthy vm is a handful of libvirt reads, about 1 ms; the monitor query, which taints
the vm, is made only when `judge.should_ask_qemu` says that the rest disagrees.
"""

import os
from dataclasses import dataclass, replace

from common import logs
from common.errors import HypervisorError
from common.messaging.messages import DiskObserved
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.operations.deps import LeafPair, Work
from hostagent.operations.judge import DiskFacts, Facts, Place, should_ask_qemu
from hostagent.ports import BlockNode

_log = logs.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look showed: `facts` to judge by, the rest to report. XML is '' where there is no such definition.

    `io_errors`: the disks of whose failed writes QEMU has told since the switch, if somebody watched.
    """

    facts: Facts
    disks: tuple[DiskObserved, ...] = ()
    runtime_id: str = ""
    state: VmState = VmState.OFF
    live_xml: str = ""
    persistent_xml: str = ""
    io_errors: tuple[str, ...] = ()


def look(work: Work) -> Seen:
    """Return what can be seen of the vm's leaves now.

    Raises NotReady or HypervisorError when libvirt cannot be asked; only a QEMU that does not answer its monitor is
    not an error here: its disks then stay unknown to the judge.
    """
    guest, commit_begun = work.guest, work.deps.journal.commit_was_begun(work.vm, work.job)
    if not guest.exists():
        return Seen(facts=Facts(here=False, active=False, disks=(), commit_begun=commit_begun))
    runtime_id = guest.runtime_id()
    live_xml = guest.live_xml() if runtime_id else ""
    seen = Seen(
        facts=Facts(
            here=True,
            active=bool(runtime_id),
            disks=(),
            block_job=bool(runtime_id) and not _targets(work).isdisjoint(guest.block_job_targets()),
            managed_save=not runtime_id and guest.has_managed_save(),
            commit_begun=commit_begun,
            elsewhere=not runtime_id and runs_elsewhere(work),
            migrating=bool(runtime_id) and is_migrating(work),
        ),
        runtime_id=runtime_id,
        state=guest.state(),
        live_xml=live_xml,
        persistent_xml=guest.persistent_xml(),
    )
    return _ask_qemu(work, _with_disks(work, seen))


def is_migrating(work: Work) -> bool:
    """Tell whether an active vm is on its way to or from another host. Waits for no job."""
    return work.guest.state() is VmState.PAUSED_MIGRATION or work.guest.job_running() == "migration"


def runs_elsewhere(work: Work) -> bool:
    """Tell whether a vm that is off here is known to be on another host: this definition is one that was left behind.

    libvirt remembers a migration until it is restarted; the disks' locks show whoever writes to them. Neither shows a
    vm that was paused when it migrated, has not run since, and whose former host has a new libvirtd.
    """
    if work.guest.has_moved_away():
        return True
    return any(
        work.deps.storage.is_written(volume) for pair in work.disks for volume in (pair.switch.old, pair.switch.new)
    )


def _targets(work: Work) -> set[str]:
    return {pair.target for pair in work.disks}


def _with_disks(work: Work, seen: Seen) -> Seen:
    live, persistent = vm_xml.chains(seen.live_xml), vm_xml.chains(seen.persistent_xml)
    facts, observed = [], []
    for pair in work.disks:
        live_chain, persistent_chain = live.get(pair.target, ()), persistent.get(pair.target, ())
        locked = work.deps.storage.is_locked(pair.switch.new)
        facts.append(
            DiskFacts(
                target=pair.target,
                live=_place(pair, live_chain),
                persistent=_place(pair, persistent_chain, header_vouches=True),
                new_is_locked=locked,
            )
        )
        observed.append(
            DiskObserved(
                target=pair.target,
                live=live_chain[0] if live_chain else "",
                live_chain=live_chain,
                persistent=persistent_chain[0] if persistent_chain else "",
                new_is_locked=locked,
            )
        )
    io_error = seen.state is VmState.PAUSED_IO_ERROR
    return replace(seen, facts=replace(seen.facts, disks=tuple(facts), io_error=io_error), disks=tuple(observed))


def is_at(path: str, expected: str) -> bool:
    """Tell whether two names are of one file: booted from a header, libvirt names a parent `.../images/x/../../y`."""
    return path == expected or os.path.realpath(path) == os.path.realpath(expected)


def _place(pair: LeafPair, chain: tuple[str, ...], *, header_vouches: bool = False) -> Place:
    """Return where this chain (top first) has the disk.

    `header_vouches`: a definition may leave the layers below its leaf to the file's header, which was checked before.
    """
    if not chain:
        return Place.ABSENT
    if not any(is_at(path, pair.new) for path in chain):
        return Place.OLD if is_at(chain[0], pair.old) else Place.ELSEWHERE
    if not is_at(chain[0], pair.new):
        return Place.ODD
    if not pair.parent:
        return Place.NEW  # a leaf that was kept, and never stood on anything that we know of
    if len(chain) == 1:
        return Place.NEW if header_vouches else Place.ODD
    return Place.NEW if is_at(chain[1], pair.parent) else Place.ODD


def _ask_qemu(work: Work, seen: Seen) -> Seen:
    if not should_ask_qemu(seen.facts):
        return seen
    _log.warning("qemu.asked", vm=work.vm, because="definitions and locks disagree")
    try:
        nodes = work.guest.qemu_nodes()
    except HypervisorError as silent:
        _log.warning("qemu.silent", vm=work.vm, error=str(silent))
        return seen
    chains = [_qemu_chain(pair, nodes) for pair in work.disks]
    facts = tuple(
        replace(disk, qemu=Place.ODD if loose(pair, nodes) else _place(pair, chain))
        for disk, pair, chain in zip(seen.facts.disks, work.disks, chains, strict=True)
    )
    observed = tuple(
        replace(disk, qemu=chain[0] if chain else "") for disk, chain in zip(seen.disks, chains, strict=True)
    )
    return replace(seen, facts=replace(seen.facts, disks=facts), disks=observed)


def _qemu_chain(pair: LeafPair, nodes: tuple[BlockNode, ...]) -> tuple[str, ...]:
    """Return the chain, top first, of the device that has either leaf of this disk open."""
    named = (node for path in (pair.new, pair.old) for node in nodes if node.device and is_at(node.path, path))
    device = next((node.device for node in named), "")
    # A layer has a format node and a storage node, both with its file.
    layers = {node.depth: node.path for node in nodes if device and node.device == device}
    return tuple(layers[depth] for depth in sorted(layers))


def loose(pair: LeafPair, nodes: tuple[BlockNode, ...]) -> tuple[BlockNode, ...]:
    """Return the block nodes that have this disk's new leaf open without belonging to any device (H2)."""
    return tuple(node for node in nodes if not node.device and is_at(node.path, pair.new))
