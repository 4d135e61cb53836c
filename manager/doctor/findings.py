"""What a difference is called, what it means, and what follows. Pure.

A code is stable, like those of errors. `safe` plans carry a `Mend`, which becomes a job; for the rest a person decides.
"""

from dataclasses import dataclass
from typing import Final

from common.ids import SnapshotId, VmId
from common.messaging.messages import DiskSwitch
from manager.flows.mend_states import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a code says, whatever it is about; `plan` is what to do."""

    means: str
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSnapshot:
    """A snapshot that goes on record with the repair."""

    id: SnapshotId
    name: str
    disks: tuple[DiskSwitch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """A repair of one machine that is provably safe: the plan of its job, and the snapshots that it puts on record."""

    plan: Plan
    snapshots: tuple[FoundSnapshot, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One difference. `subject` names it for people, `seen` says what was seen where."""

    code: str
    subject: str
    seen: str
    vm: VmId | None = None
    mend: Mend | None = None

    @property
    def meaning(self) -> Meaning:
        """Return what its code says."""
        return MEANINGS[self.code]


_ASK = "For a person to decide: livesnap changes nothing."

MEANINGS: Final[dict[str, Meaning]] = {
    "not_seen": Meaning(
        means="A host or a storage domain could not be asked, so that nothing is known of what is there.",
        plan="Bring it back and ask again; until then no volume that nobody owns is moved to the trash.",
    ),
    "leaf_foreign": Meaning(
        means="Somebody else took a snapshot: the machine writes to a volume right above the one on record.",
        plan="Adopt it: that volume becomes the leaf on record, what is below it a crash-consistent snapshot.",
    ),
    "leaf_unsound": Meaning(
        means="The machine writes to a volume above the one on record, but not everything agrees on the chain.",
        plan=f"{_ASK} Put the chain in order (`virsh blockcommit`, or a corrected definition), then ask again.",
    ),
    "leaf_elsewhere": Meaning(
        means="The machine is on a volume that does not stand on the one on record: snapshots above would be wrong.",
        plan=f"{_ASK} Find out who changed the chain; put the machine back on the volume on record.",
    ),
    "definition_behind": Meaning(
        means="QEMU and the record agree, but the persistent definition names the volume below: a reboot would lose"
        " what was written since.",
        plan="Set the persistent definition to the volume that QEMU writes to.",
    ),
    "definition_differs": Meaning(
        means="QEMU and the record agree, but the persistent definition names another volume, which the next start"
        " would use.",
        plan=f"{_ASK} The live definition is right: correct the persistent one (`virsh edit`) before the next start.",
    ),
    "header_differs": Meaning(
        means="A volume's header names another backing file than the machine has below it now: the next start would"
        " see other data.",
        plan=f"{_ASK} Do not restart the machine before the header is right (`qemu-img rebase -u`, machine off).",
    ),
    "xml_lies": Meaning(
        means="libvirt's definitions name one volume while QEMU writes to another (libvirtd was killed in a switch).",
        plan="Commit what QEMU has written into the leaf on record and detach the other volume; nothing is lost.",
    ),
    "xml_lies_unsound": Meaning(
        means="libvirt's definitions name one volume while QEMU writes to another, which is not right above the leaf"
        " on record.",
        plan=f"{_ASK} Do not stop or migrate the machine; commit by QEMU's monitor what it writes to.",
    ),
    "node_leaked": Meaning(
        means="QEMU has a volume open that belongs to no disk (libvirtd was killed in a switch).",
        plan="Detach it; if livesnap made it and it is empty, move it to the trash.",
    ),
    "lock_unexplained": Meaning(
        means="Somebody has a volume open, and no machine that was seen has it in a chain.",
        plan=f"{_ASK} Find the process that has it open, on every host that mounts the storage domain.",
    ),
    "guest_frozen_by_us": Meaning(
        means="An intent of ours to freeze the guest is left whose owner is gone; the guest may be frozen.",
        plan="Thaw it and clear the intent.",
    ),
    "guest_frozen_by_others": Meaning(
        means="The guest is frozen, and not by livesnap: a backup tool, or somebody by hand.",
        plan=f"{_ASK} If it is not wanted: `virsh domfsthaw`.",
    ),
    "attempt_unanswered": Meaning(
        means="A command was begun on the host and never answered, and no job waits for it: the host does not report"
        " the machine's volumes meanwhile.",
        plan="Ask the host what is so; this ends it.",
    ),
    "job_waiting": Meaning(
        means="A job waits, and holds its machine.", plan="See to what it waits for; `livesnap job show` has the story."
    ),
    "volume_orphan": Meaning(
        means="A volume that livesnap made is in no chain and no snapshot; it is empty and nobody has it open.",
        plan="Ask every host to prove that it is nowhere, then move it to the trash.",
    ),
    "volume_unowned": Meaning(
        means="A volume is in no chain and no snapshot, but may hold data, or is not ours.",
        plan=f"{_ASK} Look at it; remove it by hand if nobody needs it.",
    ),
    "volume_illegal": Meaning(
        means="A volume in use is marked as being deleted (a deletion was interrupted): no snapshot can stand on it.",
        plan="Take the mark back.",
    ),
    "volume_missing": Meaning(
        means="A volume on record, or one that has metadata, has no file.",
        plan=f"{_ASK} Restore the file from the trash or a backup; without it these machines and snapshots are broken.",
    ),
    "volume_deleted": Meaning(
        means="A volume that the record needs is marked as deleted on storage.",
        plan=f"{_ASK} It may still be in the trash; these machines and snapshots are broken without it.",
    ),
    "tombstone_missing": Meaning(
        means="A volume is in the trash, but its metadata does not say so: its deletion was interrupted.",
        plan="End the deletion.",
    ),
    "metadata_missing": Meaning(
        means="A volume on record has no metadata on storage: no snapshot can be taken above it.",
        plan="Write the metadata anew, from the record and the volume's own header.",
    ),
    "metadata_broken": Meaning(
        means="A document on storage cannot be read as a volume's metadata.",
        plan=f"{_ASK} If its volume is on record, move the document away: then it is written anew.",
    ),
    "file_unknown": Meaning(
        means="A file lies among the volumes that nobody knows.", plan=f"{_ASK} It is never touched by livesnap."
    ),
    "file_unfinished": Meaning(
        means="A creation was interrupted and left a temporary file.", plan="None: it is removed with the next purges."
    ),
    "record_lost": Meaning(
        means="The database knows less of this machine's volumes than storage does: it was lost, or is an old copy.",
        plan="Put its volumes and snapshots back on record, from their metadata.",
    ),
}
