"""A hypervisor in memory: `FakeGuest` is the `Guest` of hostagent/ports.py over the state in tests/fakes/vm.py."""

from xml.etree import ElementTree

from common.errors import GuestAgentMissing, HypervisorError, NotReady, OutcomeUnknown
from common.ids import VmId
from common.messaging.reports import VmState
from hostagent import vm_xml
from hostagent.ports import BlockNode, Layer
from tests.fakes.vm import Agent, FakeVm, Switch, sources_of


class FakeGuest:
    """Behaves as libvirt 9.0, QEMU 7.2 and its agent were seen to."""

    def __init__(self, vm: FakeVm, *, is_known: bool = True) -> None:
        self.vm = vm
        self.is_known = is_known

    @property
    def vm_id(self) -> VmId:
        return self.vm.vm_id

    # ---- what libvirt knows -------------------------------------------------------------------------------------

    def _require(self, *, active: bool = False) -> None:
        if not self.vm.libvirt_is_up:
            raise NotReady("libvirt_unavailable", "libvirt is not connected")
        if not self.is_known:
            raise HypervisorError("vm_not_found", f"no vm {self.vm_id} here")
        if active and not self.vm.is_active:
            raise HypervisorError("vm_state_changed", f"vm {self.vm_id} is not running")

    def exists(self) -> bool:
        if not self.vm.libvirt_is_up:
            raise NotReady("libvirt_unavailable", "libvirt is not connected")
        return self.is_known

    def state(self) -> VmState:
        self._require()
        return self.vm.state

    def runtime_id(self) -> str:
        self._require()
        return f"4711.{self.vm.run}" if self.vm.is_active else ""

    def is_still(self, runtime_id: str) -> bool:
        return self.is_known and self.runtime_id() == runtime_id

    def has_managed_save(self) -> bool:
        self._require()
        return self.vm.managed_save

    def libvirt_snapshot_count(self) -> int:
        self._require()
        return self.vm.snapshots

    def checkpoint_count(self) -> int:
        self._require()
        return self.vm.checkpoints

    def job_running(self) -> str:
        self._require()
        return self.vm.job

    def has_moved_away(self) -> bool:
        self._require()
        return self.vm.moved_away

    def block_job_targets(self) -> tuple[str, ...]:
        self._require()
        return tuple(sorted(self.vm.block_jobs))

    def live_xml(self) -> str:
        self._require()
        return self.vm.xml() if self.vm.is_active else ""

    def persistent_xml(self) -> str:
        self._require()
        return self.vm.persistent

    def define(self, xml: str) -> None:
        self._require()
        try:
            sources_of(xml)
        except ElementTree.ParseError as error:
            raise HypervisorError("pivot_failed", f"not a definition: {error}") from error
        self.vm.persistent = xml

    # ---- the guest agent ----------------------------------------------------------------------------------------

    def require_agent(self, limit_ms: int) -> None:
        self._require(active=True)
        if self.vm.agent is Agent.MISSING:
            raise GuestAgentMissing("guest_agent_missing", f"vm {self.vm_id} has no agent connected")
        if self.vm.agent is Agent.FROZEN_BY_OTHERS or self.vm.is_frozen:
            raise HypervisorError("guest_frozen_by_others", f"the agent of vm {self.vm_id} says that it is frozen")

    def limit_agent(self, limit_ms: int) -> None:
        self._require(active=True)

    def freeze(self, limit_ms: int) -> int:
        self._require(active=True)
        if self.vm.state is not VmState.RUNNING:
            raise HypervisorError("vm_state_changed", "the vm is not running")
        if self.vm.agent is Agent.MISSING:
            raise OutcomeUnknown("pivot_unknown", "the agent is not connected")
        if self.vm.agent is Agent.FREEZE_FAILS:
            raise HypervisorError("freeze_failed", "fsfreeze hook has failed with status 3")
        if self.vm.agent is Agent.FREEZE_IS_LATE:
            self.vm.late_freeze = True
            raise OutcomeUnknown("pivot_unknown", "the agent is not available for now")
        if self.vm.is_frozen or self.vm.agent is Agent.FROZEN_BY_OTHERS:
            raise HypervisorError("guest_frozen_by_others", "the agent is in frozen state")
        self.vm.is_frozen = True
        return self.vm.filesystems

    def thaw(self, limit_ms: int) -> int:
        self._require(active=True)
        vm = self.vm
        if vm.state is not VmState.RUNNING:
            raise HypervisorError("vm_state_changed", "the vm is not running")
        if vm.agent is Agent.MISSING or vm.thaw_fails:
            vm.thaw_fails = max(0, vm.thaw_fails - 1)
            raise OutcomeUnknown("pivot_unknown", "the agent is not available for now")
        vm.is_frozen, vm.late_freeze = vm.is_frozen or vm.late_freeze, False
        count, vm.is_frozen = (vm.filesystems if vm.is_frozen else 0), False
        if not vm.guest_writes():
            vm.is_frozen = vm.thaw_is_stuck = True
            raise OutcomeUnknown("pivot_unknown", "the agent is not available for now")
        return count

    # ---- live metadata ------------------------------------------------------------------------------------------

    def _require_no_migration(self) -> None:
        if self.vm.job == "migration":
            raise HypervisorError("vm_migrating", f"vm {self.vm_id} is being migrated")

    def mark_frozen(self, token: str) -> None:
        self._require(active=True)
        self._require_no_migration()
        self.vm.mark = token

    def clear_frozen_mark(self) -> None:
        self._require(active=True)
        self._require_no_migration()
        self.vm.mark = ""

    def frozen_mark(self) -> str:
        self._require()
        return self.vm.mark

    def touch_modify_job(self) -> None:
        self._require()
        self._require_no_migration()
        if self.vm.in_flight is not None and self.vm.switch is Switch.HANGS:
            raise OutcomeUnknown("pivot_unknown", "cannot acquire state change lock")
        self.vm.end_call()

    # ---- disks --------------------------------------------------------------------------------------------------

    def switch_leaves(self, snapshot_xml: str) -> None:
        self._require(active=True)
        vm, new = self.vm, requested_leaves(snapshot_xml)
        if vm.state is VmState.PMSUSPENDED:
            raise HypervisorError("pivot_failed", "qemu doesn't support taking snapshots of PMSUSPENDED guests")
        vm.told.clear()
        if missing := [path for path in new.values() if path not in vm.files]:
            raise HypervisorError("pivot_failed", f"missing existing file: {missing[0]}")
        if vm.job == "migration":
            self._wait_for_the_migration()
        if not vm.is_active:
            # hypervisor.md H9: a call that has waited until the vm is off only redefines it, and reports success.
            vm.persistent = vm_xml.with_sources(
                vm.persistent, {target: (path, "qcow2") for target, path in new.items()}
            )
            return
        vm.was_frozen_at_switch = vm.is_frozen
        self._carry_out(vm.switch, new)
        if vm.switch in (Switch.IS_REFUSED, Switch.WORKS_BUT_FAILS, Switch.IS_PARTIAL):
            raise HypervisorError("pivot_failed", "blockdev-add: an error that tells nothing")
        if vm.switch is not Switch.WORKS:
            raise OutcomeUnknown("pivot_unknown", "End of file while reading data")

    def _wait_for_the_migration(self) -> None:
        if self.vm.job_ends is not None:
            self.vm.job_ends()
        if self.vm.job:
            raise OutcomeUnknown("pivot_unknown", "cannot acquire state change lock")
        self._require()

    def _carry_out(self, switch: Switch, new: dict[str, str]) -> None:
        vm = self.vm
        if switch in (Switch.WORKS, Switch.WORKS_BUT_FAILS, Switch.IS_LOST_AFTER):
            self._switch(new)
        elif switch is Switch.IS_PARTIAL:
            self._switch(dict(list(new.items())[:1]))
        elif switch is Switch.LIES:
            self._switch_in_qemu(new)
        elif switch is Switch.LEAKS:
            vm.loose = {f"libvirt-9{number}-format": path for number, path in enumerate(new.values())}
        elif switch in (Switch.IS_LATE, Switch.HANGS):
            vm.in_flight = lambda: self._switch(new)
        if switch in (Switch.IS_LOST_BEFORE, Switch.IS_LOST_AFTER, Switch.LIES, Switch.LEAKS):
            vm.restart_libvirtd()

    def _switch(self, new: dict[str, str]) -> None:
        """Switch in QEMU and in both definitions; the persistent one follows only where it was where QEMU was."""
        before = self.vm.tops()
        self._switch_in_qemu(new)
        for target, path in new.items():
            self.vm.disks[target].live.insert(0, path)
        self._follow(before)

    def _switch_in_qemu(self, new: dict[str, str]) -> None:
        for target, path in new.items():
            self.vm.disks[target].chain.insert(0, path)

    def _follow(self, before: dict[str, str]) -> None:
        vm = self.vm
        known = sources_of(vm.persistent) if vm.persistent else {}
        moved = {
            target: (top, "qcow2")
            for target, top in vm.tops().items()
            if top != before[target] and known.get(target) == before[target]
        }
        if moved:
            vm.persistent = vm_xml.with_sources(vm.persistent, moved)

    def io_errors(self) -> tuple[str, ...]:
        self._require()
        return tuple(sorted(self.vm.told))

    def layers(self) -> dict[str, tuple[Layer, ...]]:
        self._require(active=True)
        return {
            target: tuple(
                Layer(path=path, allocation_bytes=disk.first_write if self.vm.files[path].has_data else 0)
                for path in disk.live
            )
            for target, disk in self.vm.disks.items()
        }

    def qemu_nodes(self) -> tuple[BlockNode, ...]:
        self._require(active=True)
        if self.vm.monitor_is_dead:
            raise OutcomeUnknown("pivot_unknown", "cannot acquire state change lock")
        self.vm.taints += 1
        loose = [BlockNode(node_name=name, path=path, device="", depth=0) for name, path in self.vm.loose.items()]
        used = [
            BlockNode(node_name=f"{kind}-{target}-{depth}", path=path, device=target, depth=depth)
            for target, disk in self.vm.disks.items()
            for depth, path in enumerate(disk.chain)
            for kind in ("#storage", "format")
        ]
        return (*loose, *used)

    def drop_node(self, node_name: str) -> None:
        self._require(active=True)
        if node_name not in self.vm.loose:
            raise HypervisorError("repair_failed", f"node {node_name} is in use")
        del self.vm.loose[node_name]

    def commit_active(self, target: str, base_path: str, limit_ms: int) -> None:
        self._require(active=True)
        if self.vm.job:
            raise OutcomeUnknown("pivot_unknown", "cannot acquire state change lock")
        disk = self.vm.disks[target]
        if base_path not in disk.live[1:]:
            raise HypervisorError("repair_failed", f"libvirt knows no {base_path} below {target}")
        above = disk.chain[: disk.chain.index(base_path)]
        if self.vm.commit_fails or (self.vm.files[base_path].is_full and any(self.vm.files[p].has_data for p in above)):
            raise HypervisorError("repair_failed", f"active commit of {target} was not ready")
        before = self.vm.tops()
        self._commit(target, base_path)
        disk.live = disk.live[disk.live.index(base_path) :]
        self.vm.block_jobs.discard(target)
        self._follow(before)

    def commit_by_qemu(self, top_node: str, limit_ms: int) -> None:
        self._require(active=True)
        found = [target for target in self.vm.disks if top_node == f"format-{target}-0"]
        if not found or self.vm.commit_fails:
            raise HypervisorError("repair_failed", f"{top_node} cannot be committed")
        self._commit(found[0], self.vm.disks[found[0]].chain[1])

    def _commit(self, target: str, base_path: str) -> None:
        disk = self.vm.disks[target]
        depth = disk.chain.index(base_path)
        if any(self.vm.files[path].has_data for path in disk.chain[:depth]):
            self.vm.files[base_path].has_data = True
        disk.chain = disk.chain[depth:]

    def resume(self) -> None:
        self._require(active=True)
        vm = self.vm
        vm.state = VmState.RUNNING
        was_stuck = vm.thaw_is_stuck
        if was_stuck:
            # The write of the thaw that failed is tried again, and the agent's thaw goes on from there.
            vm.thaw_is_stuck = vm.is_frozen = False
        if not vm.guest_writes():
            vm.is_frozen = vm.thaw_is_stuck = was_stuck


def requested_leaves(snapshot_xml: str) -> dict[str, str]:
    """Return target to new leaf of a snapshot request."""
    found = {}
    for disk in ElementTree.fromstring(snapshot_xml).iterfind("./disks/disk"):
        source = disk.find("source")
        if disk.get("snapshot") == "external" and source is not None:
            found[disk.get("name", "")] = source.get("file", "")
    return found
