"""Describe every vm of this host for the comparison that `livesnap doctor` makes: definitions, freezes, the journal.

Reads only. QEMU itself is asked of the vms that the question names, since a monitor query taints them. A vm at work on
by a command of ours is shown as busy and left alone: a thaw waits behind any other call to the guest's agent.
"""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from common import logs
from common.errors import GuestAgentMissing, HypervisorError, LivesnapError
from common.ids import VmId
from common.messaging.reports import AgentState, VmState
from common.messaging.surveys import DiskSeen, HostSurveyed, LayerSeen, NodeSeen, Spot, SurveyHost, VmSeen
from hostagent import vm_xml
from hostagent.operations.deps import Deps
from hostagent.ports import Storage, VmListed

PAGE_BYTES: Final = 500_000
_LAYER_BYTES, _VM_BYTES = 500, 1_000
PAGE_S: Final = 2.0
"""Time for one page: who asks waits for some seconds, and a guest whose agent hangs costs a whole one."""
AGENT_LIMIT_MS: Final = 1_000

Listing = Callable[[Collection[VmId] | None], Collection[VmListed]]

_log = logs.get()


def survey(command: SurveyHost, deps: Deps, listing: Listing) -> HostSurveyed:
    """Return one page of the host's vms, or those whose QEMU is to be asked. Raises NotReady without libvirt."""
    asked = set(command.ask_qemu)
    waiting = sorted(listing(asked or None), key=lambda vm: vm.vm_id)
    marked = {vm for vm, _, _ in deps.journal.frozen_records()}
    seen: list[VmSeen] = []
    left, give_up, after = PAGE_BYTES, time.monotonic() + PAGE_S, command.after
    for vm in waiting:
        if vm.vm_id <= command.after:
            continue
        if seen and (left <= 0 or time.monotonic() > give_up):
            return HostSurveyed(vms=tuple(seen), following=after)
        found = _look(deps, vm, is_recorded=vm.vm_id in marked, ask_qemu=vm.vm_id in asked)
        seen.append(found)
        after = vm.vm_id
        layers = sum(len(disk.live) + len(disk.persistent) for disk in found.disks) + len(found.qemu or ())
        left -= _VM_BYTES + layers * _LAYER_BYTES
    return HostSurveyed(vms=tuple(seen))


def _look(deps: Deps, vm: VmListed, *, is_recorded: bool, ask_qemu: bool) -> VmSeen:
    row = deps.journal.current(vm.vm_id)
    live = vm.live_xml if vm_xml.is_active(vm.live_xml) else ""
    seen = VmSeen(
        vm_id=vm.vm_id,
        name=vm.name[:255],
        state=vm.state,
        is_active=bool(live),
        disks=_disks(deps.storage, live, vm.persistent_xml),
        is_marked=is_recorded or bool(vm_xml.frozen_mark(live)),
        attempt=row.attempt if row else 0,
        is_answered=row is None or row.answer is not None,
    )
    with deps.vm_lock(vm.vm_id) as held:
        if not held:
            return replace(seen, is_busy=True)
        frozen = _is_frozen(deps, vm) if vm.state is VmState.RUNNING else None
        return replace(seen, is_frozen=frozen, qemu=_qemu(deps, vm.vm_id) if ask_qemu and live else None)


def _disks(storage: Storage, live_xml: str, persistent_xml: str) -> tuple[DiskSeen, ...]:
    live, persistent = vm_xml.layers(live_xml), vm_xml.layers(persistent_xml)
    return tuple(
        DiskSeen(
            target=target,
            live=_chain(storage, live.get(target, ())),
            persistent=_chain(storage, persistent.get(target, ())),
        )
        for target in dict.fromkeys([*live, *persistent])
    )


def _chain(storage: Storage, chain: tuple[tuple[str, str], ...]) -> tuple[LayerSeen, ...]:
    return tuple(LayerSeen(path=path, format=form, spot=spot_of(storage, path)) for path, form in chain)


def spot_of(storage: Storage, path: str) -> Spot:
    """Return where a file lies; booted from a header, libvirt names a parent `.../images/x/../../y`."""
    found = storage.locate(path) or storage.locate(os.path.realpath(path))
    return Spot(storage_domain_id=found[0], path=found[1]) if found else Spot(storage_domain_id=None, path=path)


def _is_frozen(deps: Deps, vm: VmListed) -> bool | None:
    if vm_xml.agent_state(vm.live_xml) is not AgentState.CONNECTED:
        return None
    try:
        deps.guest_of(vm.vm_id).require_agent(AGENT_LIMIT_MS)
    except GuestAgentMissing:
        return None
    except HypervisorError as error:
        return True if error.code == "guest_frozen_by_others" else None
    return False


def _qemu(deps: Deps, vm: VmId) -> tuple[NodeSeen, ...] | None:
    _log.warning("qemu.asked", vm=vm, because="definitions and locks disagree")
    try:
        nodes = deps.guest_of(vm).qemu_nodes()
    except LivesnapError as silent:
        _log.warning("qemu.silent", vm=vm, error=str(silent))
        return None
    return tuple(
        NodeSeen(node_name=node.node_name, spot=spot_of(deps.storage, node.path), device=node.device, depth=node.depth)
        for node in nodes
    )
