"""One vm through libvirt, QEMU and the guest agent: the real `Guest` of hostagent/ports.py.

Facts about libvirt 9.0, QEMU 7.2 and its agent, all measured, decide the details; each stands where it matters. With
hostagent/connection.py the only module that speaks libvirt; every libvirt error is translated here.
"""

import json
import time
from typing import Any

import libvirt
import libvirt_qemu

from common import logs
from common.errors import GuestAgentMissing, HypervisorError, OutcomeUnknown
from common.ids import VmId
from common.messaging.reports import AgentState, VmState
from hostagent import processes, vm_xml
from hostagent.block_nodes import Reply, block_nodes, parent_node
from hostagent.connection import Connection, described, translating
from hostagent.io_errors import IoErrors
from hostagent.libvirt_errors import AGENT_UNRESPONSIVE, ARGUMENT_UNSUPPORTED, translated
from hostagent.limits import whole_seconds, within
from hostagent.ports import BlockNode, Layer
from hostagent.vm_state import job_kind, moved_away, vm_state

AGENT_SETTLES_S = 2.0
"""A restarted libvirtd needs up to 0.5 s to find an agent again. Until then "not connected" proves nothing, whether its
XML says so or, still from before the restart, that the agent is connected."""
AGENT_RETRY_S = 0.05
BUSY_PATIENCE_MS = 200
"""How long a call of somebody else may hold the vm's lock and count as passing by; the guest may be frozen meanwhile.
The calls of reports and sweeps take 1 to 10 ms."""

_SWITCH_FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)
_FREEZE_COMMAND = "guest-fsfreeze-freeze"
_BARRIER_NAMESPACE = "urn:livesnap:barrier:1"


class LibvirtGuest:
    """One vm of this host. Cheap to make: nothing is asked before the first call."""

    def __init__(self, connection: Connection, vm_id: VmId, io_errors: IoErrors | None = None) -> None:
        """Remember whom to ask for which vm; without `io_errors` none is ever told of."""
        self._connection = connection
        self._vm_id = vm_id
        self._io_errors = io_errors or IoErrors()
        self._switched = self._io_errors.mark()
        self._found: tuple[libvirt.virConnect, libvirt.virDomain] | None = None
        self._limited_ms = 0

    @property
    def vm_id(self) -> VmId:
        """Return the libvirt UUID."""
        return self._vm_id

    def handle(self) -> libvirt.virDomain:
        """Return libvirt's handle, looked up once per connection (a handle is bound to the UUID, not to the run)."""
        raw = self._connection.raw()
        if self._found is None or self._found[0] is not raw:
            with translating("look-up", self._vm_id):
                self._found = (raw, raw.lookupByUUIDString(self._vm_id))
        return self._found[1]

    # ---- what it is -------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether libvirt here knows the vm now."""
        try:
            self.state()
        except HypervisorError as error:
            if error.code == "vm_not_found":
                self._found = None
                return False
            raise
        return True

    def state(self) -> VmState:
        """Return the state; never blocks behind a running call (below 1 ms, measured)."""
        handle = self.handle()
        with translating("reading the state", self._vm_id):
            state, reason = handle.state()
        return vm_state(state, reason)

    def runtime_id(self) -> str:
        """Return `PID.START` of the QEMU process; '' when the vm is not active."""
        handle = self.handle()
        with translating("reading the state", self._vm_id):
            if not handle.isActive():
                return ""
            name = handle.name()
        return processes.qemu_run(self._vm_id, self._connection.pid_files(name))

    def is_still(self, runtime_id: str) -> bool:
        """Tell whether that run goes on; of a running vm only the kernel is asked (0.03 ms; `runtime_id` takes 0.4)."""
        return processes.is_running(runtime_id) if runtime_id else self.runtime_id() == ""

    def has_managed_save(self) -> bool:
        """Tell whether a managed save image would be used at the next start."""
        handle = self.handle()
        with translating("reading managed save", self._vm_id):
            return bool(handle.hasManagedSaveImage(0))

    def libvirt_snapshot_count(self) -> int:
        """Return the number of snapshots that libvirt itself manages."""
        handle = self.handle()
        with translating("counting snapshots", self._vm_id):
            return int(handle.snapshotNum(0))

    def checkpoint_count(self) -> int:
        """Return the number of libvirt's checkpoints."""
        handle = self.handle()
        with translating("listing checkpoints", self._vm_id):
            return len(handle.listAllCheckpoints(0))

    def job_running(self) -> str:
        """Return '' or the kind of job; 'call' while some call holds the vm's lock for longer than BUSY_PATIENCE_MS.

        libvirt's job statistics tell, but wait for that lock: they are asked for only when controlInfo, which waits for
        nothing, says that it is free. controlInfo alone would not do: a migration holds the lock only while it talks to
        QEMU, and was seen by it in 4 of 790 looks.
        """
        handle = self.handle()
        try:
            with translating("reading the job", self._vm_id, refused="vm_migrating"):
                if not within(BUSY_PATIENCE_MS, lambda: handle.controlInfo(0)[0] == libvirt.VIR_DOMAIN_CONTROL_OK):
                    return "call"
                statistics = handle.jobStats(0)
        except HypervisorError as said:
            if said.code == "vm_state_changed":
                return ""  # it is not active
            if said.code == "vm_migrating":
                return "migration"  # this is its destination: "statistics are available only on the source host"
            raise
        if statistics.get("type", 0) == libvirt.VIR_DOMAIN_JOB_NONE:
            return ""
        return job_kind(int(statistics.get("operation", 0)))

    def has_moved_away(self) -> bool:
        """Tell whether libvirt says that the vm is off because it was migrated; a restarted libvirtd has forgotten."""
        handle = self.handle()
        with translating("reading the state", self._vm_id):
            return moved_away(*handle.state())

    def block_job_targets(self) -> tuple[str, ...]:
        """Return the targets with a block job."""
        handle = self.handle()
        sources = vm_xml.sources(self.live_xml())
        with translating("reading block jobs", self._vm_id):
            return tuple(target for target, source in sources.items() if source and handle.blockJobInfo(target, 0))

    def live_xml(self) -> str:
        """Return the live definition, '' when the vm is not active."""
        handle = self.handle()
        with translating("reading the live definition", self._vm_id):
            xml = handle.XMLDesc(0)
        # Asked of a vm that has just stopped, libvirt answers with the persistent definition.
        return xml if vm_xml.is_active(xml) else ""

    def persistent_xml(self) -> str:
        """Return the persistent definition, '' if there is none; without passwords."""
        handle = self.handle()
        with translating("reading the persistent definition", self._vm_id):
            return str(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if handle.isPersistent() else ""

    def define(self, xml: str) -> None:
        """Replace the persistent definition.

        Where it holds passwords (graphics), which `persistent_xml` leaves out, only the disks' leaves are taken from
        `xml`, so that no password is lost.
        """
        handle, raw = self.handle(), self._connection.raw()
        with translating("defining", self._vm_id):
            shown = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            whole = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
            if whole != shown:
                present = vm_xml.leaves(shown)
                wanted = vm_xml.leaves(xml)
                xml = vm_xml.with_sources(whole, {t: wanted[t] for t in wanted if wanted[t] != present.get(t)})
            raw.defineXMLFlags(xml, 0)

    # ---- the guest agent --------------------------------------------------------------------------------------

    def require_agent(self, limit_ms: int) -> None:
        """Raise GuestAgentMissing unless an agent is connected, answers, and offers freezing.

        One `guest-info` tells all of it, and is allowed while frozen; every other way needs a freeze to find out.
        """
        while True:
            try:
                self._require_agent_now(limit_ms)
                return
            except GuestAgentMissing as missing:
                no_channel = vm_xml.agent_state(self.live_xml()) is AgentState.NO_CHANNEL
                if no_channel or self._connection.age_s() > AGENT_SETTLES_S:
                    raise
                logs.get().info("agent_not_yet", vm=self._vm_id, seen=missing.message)
            time.sleep(AGENT_RETRY_S)

    def _require_agent_now(self, limit_ms: int) -> None:
        state = vm_xml.agent_state(self.live_xml())
        if state is not AgentState.CONNECTED:
            raise GuestAgentMissing("guest_agent_missing", f"the agent of vm {self._vm_id} is {state}")
        offered = self._agent("guest-info", limit_ms)["supported_commands"]
        if any(command["name"] == _FREEZE_COMMAND and command["enabled"] for command in offered):
            return
        # A frozen agent disables freezing as well.
        if self._agent("guest-fsfreeze-status", limit_ms) == "frozen":
            raise HypervisorError("guest_frozen_by_others", f"the agent of vm {self._vm_id} says that it is frozen")
        raise GuestAgentMissing("guest_agent_missing", f"the agent of vm {self._vm_id} does not offer freezing")

    def _agent(self, command: str, limit_ms: int) -> Any:
        handle = self.handle()
        try:
            self._limit_agent(handle, limit_ms)
            text = libvirt_qemu.qemuAgentCommand(handle, json.dumps({"execute": command}), whole_seconds(limit_ms), 0)
        except libvirt.libvirtError as error:
            said = described(error)
            found = translated(said, action=command, vm=self._vm_id, refused="guest_agent_missing")
            silent = said.number in (AGENT_UNRESPONSIVE, ARGUMENT_UNSUPPORTED)
            raise GuestAgentMissing("guest_agent_missing", found.message) if silent else found from error
        return json.loads(text)["return"]

    @staticmethod
    def _limit_agent(handle: libvirt.virDomain, limit_ms: int) -> None:
        """Bound the next agent call: by default libvirt waits for ever (a stopped agent: over 136 s, measured)."""
        handle.agentSetResponseTimeout(whole_seconds(limit_ms), 0)

    def limit_agent(self, limit_ms: int) -> None:
        """Give the next freeze or thaw its limit beforehand: 1 ms, in which libvirt writes the vm's state to a file."""
        with translating("limiting the agent", self._vm_id, refused="freeze_failed"):
            self._limit_agent(self.handle(), limit_ms)
        self._limited_ms = limit_ms

    def _limit_unless_done(self, handle: libvirt.virDomain, limit_ms: int) -> None:
        limited_ms, self._limited_ms = self._limited_ms, 0  # once: others set the machine's limit, too
        if limited_ms != limit_ms:
            self._limit_agent(handle, limit_ms)

    def freeze(self, limit_ms: int) -> int:
        """Freeze every file system, return how many. After OutcomeUnknown the freeze may still complete: thaw."""
        handle = self.handle()
        try:
            with translating("freezing", self._vm_id, refused="freeze_failed"):
                self._limit_unless_done(handle, limit_ms)
                return int(handle.fsFreeze())
        except HypervisorError as error:
            if "agent is in frozen state" in error.message:
                raise HypervisorError("guest_frozen_by_others", error.message) from error
            raise

    def thaw(self, limit_ms: int) -> int:
        """Thaw, return how many file systems this call thawed. It queues behind a freeze that is still running."""
        handle = self.handle()
        with translating("thawing", self._vm_id, refused="freeze_failed"):
            self._limit_unless_done(handle, limit_ms)
            return int(handle.fsThaw())

    # ---- live metadata ----------------------------------------------------------------------------------------

    def mark_frozen(self, token: str) -> None:
        """Put our intent to freeze into the live metadata; survives libvirtd and travels with a migration.

        Like every call that sets metadata it raises HypervisorError(vm_migrating) at once during a migration.
        """
        self._set_metadata(vm_xml.frozen_element(token), vm_xml.METADATA_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def clear_frozen_mark(self) -> None:
        """Remove that intent."""
        self._set_metadata(None, vm_xml.METADATA_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def frozen_mark(self) -> str:
        """Return the token of an intent of ours, '' if there is none."""
        return vm_xml.frozen_mark(self.live_xml())

    def touch_modify_job(self) -> None:
        """Remove metadata that nobody sets: it needs libvirt's job lock and changes nothing."""
        self._set_metadata(None, _BARRIER_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CURRENT)

    def _set_metadata(self, element: str | None, namespace: str, flags: int) -> None:
        if self.job_running() == "migration":
            # It would wait for the migration's lock: 30 s, or until the vm is gone.
            raise HypervisorError("vm_migrating", f"metadata of vm {self._vm_id}: it is being migrated")
        handle = self.handle()
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        with translating("setting metadata", self._vm_id):
            handle.setMetadata(kind, element, "livesnap", namespace, flags)

    # ---- disks ------------------------------------------------------------------------------------------------

    def switch_leaves(self, snapshot_xml: str) -> None:
        """Put all disks on their new leaves in one call. Neither its success nor its failure proves anything (P3)."""
        handle = self.handle()
        self._switched = self._io_errors.mark()
        with translating("switching leaves", self._vm_id, refused="pivot_failed"):
            handle.snapshotCreateXML(snapshot_xml, _SWITCH_FLAGS)

    def io_errors(self) -> tuple[str, ...]:
        """Return the targets of the disks whose I/O errors QEMU told of since `switch_leaves`."""
        devices = self._io_errors.since(self._vm_id, self._switched)
        by_alias = {alias: target for target, alias in vm_xml.aliases(self.live_xml()).items()} if devices else {}
        return tuple(by_alias.get(device, device) for device in devices)

    def layers(self) -> dict[str, tuple[Layer, ...]]:
        """Return per target the live chain, top first, with each layer's highest written offset."""
        handle, raw = self.handle(), self._connection.raw()
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        with translating("reading block statistics", self._vm_id):
            found = raw.domainListGetStats([handle], libvirt.VIR_DOMAIN_STATS_BLOCK, flags)
        statistics = found[0][1] if found else {}
        layers: dict[str, tuple[Layer, ...]] = {}
        for number in range(statistics.get("block.count", 0)):
            target, path = statistics[f"block.{number}.name"], statistics.get(f"block.{number}.path", "")
            allocation = statistics.get(f"block.{number}.allocation")
            if not path:
                continue
            if allocation is None:
                # While another call holds the vm's job, libvirt leaves out what only QEMU knows, and says nothing.
                raise OutcomeUnknown("pivot_unknown", f"QEMU did not answer for {target} of vm {self._vm_id}")
            layers[target] = (*layers.get(target, ()), Layer(path=path, allocation_bytes=int(allocation)))
        return layers

    def qemu_nodes(self) -> tuple[BlockNode, ...]:
        """Ask QEMU for its block nodes. Taints the vm."""
        named: Reply = self._monitor("query-named-block-nodes", flat=True)
        devices: Reply = self._monitor("query-block")
        return block_nodes(named, devices, vm_xml.aliases(self.live_xml()))

    def drop_node(self, node_name: str) -> None:
        """Detach a block node that no device uses; QEMU refuses any other."""
        self._monitor("blockdev-del", **{"node-name": node_name})

    def commit_active(self, target: str, base_path: str, limit_ms: int) -> None:
        """Commit everything above `base_path` into it and pivot back; a job that runs already is carried on with.

        Raises HypervisorError(repair_failed) when the job failed, or was not ready in time and is aborted; the chain is
        then as before. A crash leaves the job to libvirtd.
        """
        handle = self.handle()
        with translating("active commit", self._vm_id, refused="repair_failed"):
            if vm_xml.mirror(self.live_xml(), target) is None:
                handle.blockCommit(target, base_path, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
            # A job that fails (the base is full, too) is gone, and the chain is as before.
            if not within(limit_ms, lambda: vm_xml.mirror(self.live_xml(), target) in ("yes", None)):
                handle.blockJobAbort(target, 0)
                raise self._repair_failed(f"active commit of {target} was not ready within {limit_ms} ms")
            if vm_xml.mirror(self.live_xml(), target) is None:
                raise self._repair_failed(f"active commit of {target} into {base_path} failed")
            handle.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        if not within(limit_ms, lambda: vm_xml.sources(self.live_xml()).get(target) == base_path):
            raise self._repair_failed(f"{target} is not on {base_path} after its active commit")

    def commit_by_qemu(self, top_node: str, limit_ms: int) -> None:
        """Commit a leaf that libvirt does not know of into its parent and detach it. Taints the vm.

        Raises HypervisorError(repair_failed) when the job was not ready in time; QEMU then goes on with it, and a
        repetition carries on from there.
        """
        job = f"livesnap-{top_node}"
        if not self._qemu_job(job):
            # Without a base QEMU commits through the whole chain, into the deepest layer.
            base = parent_node(self.qemu_nodes(), top_node)
            if not base:
                raise self._repair_failed(f"QEMU has no node {top_node} with a parent")
            self._monitor("block-commit", **{"job-id": job, "device": top_node, "base-node": base})
        if not within(limit_ms, lambda: self._qemu_job(job) == "ready"):
            raise self._repair_failed(f"QEMU's commit of {top_node} was not ready within {limit_ms} ms")
        self._monitor("job-complete", id=job)
        if not within(limit_ms, lambda: not self._qemu_job(job)):
            raise self._repair_failed(f"QEMU's commit of {top_node} did not end within {limit_ms} ms")
        self.drop_node(top_node)

    def resume(self) -> None:
        """Resume a paused vm."""
        handle = self.handle()
        with translating("resuming", self._vm_id):
            handle.resume()

    # ---- helpers ----------------------------------------------------------------------------------------------

    def _qemu_job(self, job: str) -> str:
        jobs: Reply = self._monitor("query-jobs")
        return next((str(found["status"]) for found in jobs if found["id"] == job), "")

    def _monitor(self, command: str, **arguments: Any) -> Any:
        handle = self.handle()
        with translating(command, self._vm_id, refused="repair_failed"):
            text = libvirt_qemu.qemuMonitorCommand(handle, json.dumps({"execute": command, "arguments": arguments}), 0)
        reply = json.loads(text)
        if "error" in reply:
            raise self._repair_failed(f"{command}: QEMU said: {reply['error'].get('desc')}")
        return reply["return"]

    def _repair_failed(self, seen: str) -> HypervisorError:
        return HypervisorError("repair_failed", f"vm {self._vm_id}: {seen}")
