"""Keys, a clock and plain messages for the tests of the messaging package."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common.ids import DiskId, JobId, StepId, StorageDomainId, VmId, VolumeId, derived_id, new_id
from common.messaging.keys import Keyring, SigningKey, write_public
from common.messaging.messages import DiskSwitch, Format, LeavesObserved, Outcome, Pivot, VolumeAt
from common.messaging.wire import Envelope

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
VM = VmId(derived_id("vm"))


@dataclass
class Clock:
    """A clock that a test sets."""

    at: datetime = NOW

    def now(self) -> datetime:
        """Return the time that the test set."""
        return self.at


@dataclass
class Parties:
    """The private keys of some senders, and the one ring that trusts them all."""

    folder: Path
    keys: dict[str, SigningKey] = field(default_factory=dict)

    def key(self, sender: str) -> SigningKey:
        """Return `sender`'s key; made and trusted at its first use."""
        if sender not in self.keys:
            self.keys[sender] = SigningKey.generate(self.folder / f"{sender}.key", sender)
            write_public(self.folder, self.keys[sender])
        return self.keys[sender]

    @property
    def ring(self) -> Keyring:
        """Return a ring over the folder of public keys."""
        return Keyring(self.folder)


def volume(name: str) -> VolumeAt:
    """Return a volume with ids derived from its name."""
    return VolumeAt(
        volume_id=VolumeId(derived_id(name)),
        storage_domain_id=StorageDomainId(derived_id("storage domain")),
        path=f"images/{name}.qcow2",
        format=Format.QCOW2,
    )


def pivot() -> Pivot:
    """Return a command for one disk."""
    disk = DiskSwitch(target="vda", disk_id=DiskId(derived_id("disk")), old=volume("old"), new=volume("new"))
    return Pivot(vm_id=VM, disks=(disk,), quiesce=True, require_quiesce=False, freeze_limit_ms=5000, held_limit_ms=3000)


def observed() -> LeavesObserved:
    """Return an answer to it."""
    return LeavesObserved(outcome=Outcome.ALL_NEW, boot_id="b", runtime_id="r")


def envelope(**changes: Any) -> Envelope:
    """Return the Manager's pivot command to host h1, changed as told."""
    plain = Envelope(
        v=1,
        sender="manager",
        to="host.h1",
        job=JobId(new_id()),
        vm=VM,
        step=StepId(new_id()),
        attempt=3,
        issued_at=NOW,
        deadline=NOW + timedelta(minutes=1),
        body=pivot(),
    )
    return replace(plain, **changes)
