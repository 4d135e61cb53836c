"""One vm as QEMU, libvirt, its guest and its agent have it: the state behind tests/fakes/guest.py.

QEMU's chains are the truth; libvirt's live and persistent definition are what libvirt believes. The three may differ,
as they do after libvirtd was killed. Every behaviour here was measured on the real thing (hypervisor.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from common.ids import VmId
from common.messaging.reports import VmState
from tests.fakes.storage import FakeFile


class Agent(StrEnum):
    """How the guest agent behaves."""

    NORMAL = "normal"
    MISSING = "missing"
    FREEZE_FAILS = "freeze_fails"
    """A hook fails: nothing is frozen, and an error says so."""
    FREEZE_IS_LATE = "freeze_is_late"
    """The freeze outlives its time limit and completes afterwards; the next thaw waits behind it."""
    FROZEN_BY_OTHERS = "frozen_by_others"


class Switch(StrEnum):
    """How the next snapshot call goes."""

    WORKS = "works"
    IS_REFUSED = "is_refused"
    """QEMU says no; nothing has happened."""
    WORKS_BUT_FAILS = "works_but_fails"
    """Done, and yet an error is returned."""
    IS_PARTIAL = "is_partial"
    """Only the first disk is switched, and an error is returned."""
    IS_LOST_BEFORE = "is_lost_before"
    """libvirtd dies before it did anything."""
    IS_LOST_AFTER = "is_lost_after"
    """libvirtd dies after the switch, with its definitions written."""
    LIES = "lies"
    """libvirtd dies after QEMU switched and before it noted so: its live definition stays on the old leaves."""
    LEAKS = "leaks"
    """libvirtd dies after QEMU opened the new files and before it switched."""
    IS_LATE = "is_late"
    """The connection is lost while the call waits in libvirtd, which carries it out afterwards."""
    HANGS = "hangs"
    """As IS_LATE, and the call does not end for as long as the test lasts."""


@dataclass(slots=True)
class FakeDisk:
    """One disk of a vm; `chain` is QEMU's, top first."""

    chain: list[str]
    live: list[str]
    format: str = "qcow2"
    device: str = "disk"
    flags: tuple[str, ...] = ()
    first_write: int = 393216
    error_policy: str = "stop"


@dataclass(slots=True)
class FakeVm:
    """The whole state of one vm; tests set what they need."""

    vm_id: VmId
    files: dict[str, FakeFile]
    disks: dict[str, FakeDisk] = field(default_factory=dict)
    state: VmState = VmState.RUNNING
    run: int = 1
    persistent: str = ""
    loose: dict[str, str] = field(default_factory=dict)
    agent: Agent = Agent.NORMAL
    filesystems: int = 1
    is_frozen: bool = False
    late_freeze: bool = False
    thaw_fails: int = 0
    thaw_is_stuck: bool = False
    mark: str = ""
    managed_save: bool = False
    snapshots: int = 0
    checkpoints: int = 0
    job: str = ""
    job_ends: Callable[[], None] | None = None
    """What becomes of a migration while a call waits for it; None: it outlasts the 30 s that libvirt waits."""
    moved_away: bool = False
    holds_locks: bool = True
    """False for a vm that was paused when it arrived here and has not run since."""
    block_jobs: set[str] = field(default_factory=set)
    switch: Switch = Switch.WORKS
    commit_fails: bool = False
    monitor_is_dead: bool = False
    libvirtd: int = 1
    libvirt_is_up: bool = True
    in_flight: Callable[[], None] | None = None
    taints: int = 0
    was_frozen_at_switch: bool = False
    told: set[str] = field(default_factory=set)
    """Disks of whose I/O errors QEMU has told since the last switch."""

    @property
    def is_active(self) -> bool:
        return self.state is not VmState.OFF

    def add_disk(self, target: str, *chain: str, **options: str) -> None:
        """Plug a disk in whose chain is `chain`, top first, on every definition."""
        self.disks[target] = FakeDisk(chain=list(chain), live=list(chain), **options)  # type: ignore[arg-type]
        for path, parent in zip(chain, [*chain[1:], ""], strict=True):
            self.files.setdefault(path, FakeFile(parent=parent, has_data=True))
        self.persistent = self._xml(live=False)

    def xml(self) -> str:
        """Return the live definition, as libvirt believes it."""
        return self._xml(live=True)

    def _xml(self, *, live: bool) -> str:
        number = f" id='{self.run}'" if live else ""
        mark = f"<l:frozen xmlns:l='urn:livesnap:freeze:1' token={quoteattr(self.mark)}/>" if live and self.mark else ""
        disks = "".join(_disk_xml(target, disk) for target, disk in self.disks.items())
        return (
            f"<domain type='kvm'{number}><name>fake</name><uuid>{self.vm_id}</uuid><metadata>{mark}</metadata>"
            f"<devices>{disks}</devices></domain>"
        )

    def open_paths(self) -> set[str]:
        """Return every file that QEMU has open."""
        if not self.is_active or not self.holds_locks:
            return set()
        return {path for disk in self.disks.values() for path in disk.chain} | set(self.loose.values())

    def leaves(self) -> set[str]:
        """Return every file that QEMU has open for writing."""
        return set(self.tops().values()) & self.open_paths()

    def tops(self) -> dict[str, str]:
        """Return the file that each disk's writes go to."""
        return {target: disk.chain[0] for target, disk in self.disks.items()}

    def boot(self) -> None:
        """Start a new run from the persistent definition, with the chains that the files' headers name."""
        self.run += 1
        self.state, self.is_frozen, self.loose, self.mark = VmState.RUNNING, False, {}, ""
        self.moved_away, self.holds_locks = False, True
        for target, source in sources_of(self.persistent).items():
            self.disks[target].chain = self._backing_chain(source)
            self.disks[target].live = list(self.disks[target].chain)

    def power_off(self) -> None:
        self.state, self.is_frozen, self.late_freeze, self.loose, self.mark = VmState.OFF, False, False, {}, ""

    def restart_libvirtd(self) -> None:
        """Let libvirtd be another process; a call that was in flight dies with the old one."""
        self.libvirtd += 1
        self.in_flight = None

    def end_call(self) -> None:
        """Let a call that is held up inside libvirtd be carried out now."""
        call, self.in_flight = self.in_flight, None
        if call is not None:
            call()

    def guest_writes(self) -> bool:
        """Let the guest write to every disk, if it can; return False if a full volume has paused it.

        With another error policy than `stop` the guest hears of it and goes on.
        """
        if self.state is not VmState.RUNNING or self.is_frozen:
            return True
        for target, disk in self.disks.items():
            if not self.files[disk.chain[0]].is_full:
                self.files[disk.chain[0]].has_data = True
                self.files[disk.chain[0]].writes += 1
                continue
            self.told.add(target)
            if disk.error_policy == "stop":
                self.state = VmState.PAUSED_IO_ERROR
                return False
        return True

    def _backing_chain(self, top: str) -> list[str]:
        chain = [top]
        while parent := self.files[chain[-1]].parent:
            chain.append(parent)
        return chain


def sources_of(xml: str) -> dict[str, str]:
    """Return target to source of a definition, nothing for ''."""
    found: dict[str, str] = {}
    if not xml:
        return found
    for disk in ElementTree.fromstring(xml).iterfind("./devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None:
            found[target.get("dev", "")] = source.get("file", "")
    return found


def _disk_xml(target: str, disk: FakeDisk) -> str:
    below = "<backingStore/>"
    for path in reversed(disk.live[1:]):
        below = (
            f"<backingStore type='file'><format type='qcow2'/><source file={quoteattr(path)}/>{below}</backingStore>"
        )
    flags = "".join(f"<{flag}/>" for flag in disk.flags)
    return (
        f"<disk type='file' device='{disk.device}'>"
        f"<driver name='qemu' type='{disk.format}' error_policy='{disk.error_policy}'/>"
        f"<source file={quoteattr(disk.live[0])}/>{below}<target dev='{target}' bus='virtio'/>{flags}</disk>"
    )
