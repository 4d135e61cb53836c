"""From what was seen to what may be said. Pure: no I/O, one total function.

Every value of `Outcome` is a claim that the Manager acts on, and NONE leads to a deletion. So the strict ones are
proven from every source of truth, and whatever is left over is BAD (seen, and wrong) or UNKNOWN (not seen).
Sources: protocol.md, part A, amendments A2, A3, A5, A6; hypervisor.md H1 (the live definition can be wrong after
libvirtd was killed) and H2 (a killed libvirtd leaves block nodes open).
"""

from dataclasses import dataclass
from enum import StrEnum

from common.messaging.messages import Outcome


class Place(StrEnum):
    """Where one source of truth has one disk."""

    OLD = "old"
    """On the old leaf; the new one is nowhere in it."""
    ELSEWHERE = "elsewhere"
    """On some other volume; the new leaf is nowhere in it."""
    ABSENT = "absent"
    """This source does not have the disk, or does not exist."""
    NEW = "new"
    """On the new leaf, directly above the old one."""
    ODD = "odd"
    """The new leaf is there, but not so: below another layer, above another parent, or open and attached to nothing."""


_CLEAR = frozenset({Place.OLD, Place.ELSEWHERE, Place.ABSENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One disk: its live and persistent definition, the lock on the new file, and QEMU's own word if it was asked."""

    target: str
    live: Place
    persistent: Place
    new_is_locked: bool
    qemu: Place | None = None

    @property
    def truth(self) -> Place:
        """Return where QEMU has the disk, as far as it is known."""
        return self.live if self.qemu is None else self.qemu

    @property
    def agrees(self) -> bool:
        """Tell whether all that was seen without asking QEMU says the same."""
        if self.live is Place.NEW:
            return self.persistent in (Place.NEW, Place.ABSENT) and self.new_is_locked
        return self.live in _CLEAR and self.persistent in _CLEAR and not self.new_is_locked

    @property
    def is_known(self) -> bool:
        """Tell whether this is enough to speak of this disk."""
        return self.qemu is not None or self.agrees

    @property
    def is_on_new(self) -> bool:
        """Tell whether QEMU and both definitions are on the new leaf, above the old one."""
        return {self.truth, self.live} == {Place.NEW} and self.persistent in (Place.NEW, Place.ABSENT)

    @property
    def is_clear(self) -> bool:
        """Tell whether the new leaf is nowhere."""
        return {self.truth, self.live, self.persistent} <= _CLEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One vm. `commit_begun`: this job has begun to commit a new leaf into its old one, which may hold newer data.

    `elsewhere`: it is off here, but on another host it is not. `migrating`: it is on its way, and takes along the
    persistent definition of the migration's beginning, whatever is defined here since (measured: set back to the old
    leaf meanwhile, it arrived with the new one). So until the end only ALL_NEW can be claimed.
    """

    here: bool
    active: bool
    disks: tuple[DiskFacts, ...]
    io_error: bool = False
    block_job: bool = False
    managed_save: bool = False
    commit_begun: bool = False
    elsewhere: bool = False
    migrating: bool = False


def should_ask_qemu(facts: Facts) -> bool:
    """Tell whether the evidence disagrees, so that a monitor query is worth the taint."""
    return facts.active and not all(disk.agrees for disk in facts.disks)


def judge(facts: Facts) -> Outcome:
    """Return the strongest claim that these facts prove, given that no call of ours is in flight (barrier.py)."""
    if not facts.here:
        return Outcome.NOT_HERE
    return _judge_active(facts) if facts.active else _judge_stopped(facts)


def _judge_active(facts: Facts) -> Outcome:
    outcome = _as_it_stands(facts)
    return Outcome.UNKNOWN if facts.migrating and outcome is not Outcome.ALL_NEW else outcome


def _as_it_stands(facts: Facts) -> Outcome:
    if not all(disk.is_known for disk in facts.disks):
        return Outcome.UNKNOWN
    if all(disk.is_clear for disk in facts.disks):
        # A rollback is not over before its vm runs again, thawed.
        return Outcome.BAD if facts.commit_begun and facts.io_error else _none(facts)
    if facts.io_error or facts.commit_begun or not all(disk.is_on_new for disk in facts.disks):
        return Outcome.BAD
    # Somebody else's block job: it may be one that writes into the old leaf. It ends, and then more can be said.
    return Outcome.UNKNOWN if facts.block_job else Outcome.ALL_NEW


def _judge_stopped(facts: Facts) -> Outcome:
    """A stopped vm is where its persistent definition says, unless a managed save image is used at its next start; or
    unless it is on another host: then the definition was left behind, and says nothing."""
    if facts.elsewhere:
        return Outcome.NOT_HERE
    if all(disk.persistent in _CLEAR for disk in facts.disks):
        # Someone has the new file open although the vm is off here: it may run elsewhere, and this is a leftover.
        return Outcome.NOT_HERE if any(disk.new_is_locked for disk in facts.disks) else _none(facts)
    if all(disk.persistent is Place.NEW for disk in facts.disks):
        return Outcome.BAD if facts.managed_save or facts.commit_begun else Outcome.ALL_NEW
    return Outcome.BAD


def _none(facts: Facts) -> Outcome:
    """QEMU leaves a new leaf only by our commit, so a vm that is clear of it after one began has its data below."""
    return Outcome.NONE_ROLLED_BACK if facts.commit_begun else Outcome.NONE


def reason(facts: Facts) -> tuple[str, str]:
    """Return code and message for an outcome that is neither ALL_NEW nor explained by an error of its own."""
    if not facts.here or facts.elsewhere:
        known = f"the vm is off here, and on another host it is not: {describe(facts)}"
        return "vm_not_found", known if facts.here else "libvirt here does not know the vm"
    if facts.migrating:
        return "vm_migrating", f"the vm is being migrated, and a definition of ours with it: {describe(facts)}"
    clear = all(disk.is_clear for disk in facts.disks)
    if facts.commit_begun:
        return _reason_after_commit(facts, clear=clear)
    if facts.managed_save:
        return "vm_managed_save", f"the vm is off with a managed save image: {describe(facts)}"
    if facts.io_error and any(disk.truth is Place.NEW for disk in facts.disks):
        return "vm_paused_io_error", f"paused by an I/O error: {describe(facts)}"
    if facts.active and not all(disk.is_known for disk in facts.disks):
        return "pivot_unknown", f"QEMU does not answer: {describe(facts)}"
    if clear:
        return "pivot_interrupted", f"the new volumes are in use nowhere here: {describe(facts)}"
    if any(Place.ODD in (disk.truth, disk.live, disk.persistent) for disk in facts.disks):
        return "chain_unexpected", f"a new volume is not where it should be: {describe(facts)}"
    if all(disk.is_on_new for disk in facts.disks):
        return "vm_busy", f"a block job runs on the new volumes: {describe(facts)}"
    return "pivot_failed", f"the disks are on mixed volumes: {describe(facts)}"


def _reason_after_commit(facts: Facts, *, clear: bool) -> tuple[str, str]:
    if clear and not facts.io_error:
        return "pivot_failed", f"a commit has brought the vm back to its previous volumes: {describe(facts)}"
    where = "paused by an I/O error on" if clear else "half-way back to"
    return "repair_failed", f"{where} its previous volumes: {describe(facts)}"


def describe(facts: Facts) -> str:
    """Return one line with what each source of truth says of each disk."""
    return "; ".join(
        f"{disk.target} live={disk.live} persistent={disk.persistent} qemu={disk.qemu or 'not asked'}"
        f" new file {'locked' if disk.new_is_locked else 'free'}"
        for disk in facts.disks
    )
