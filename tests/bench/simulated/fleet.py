"""Which simulated hosts there are, with which machines, and who speaks as whom."""

from dataclasses import dataclass
from pathlib import Path

from common.ids import HostId
from common.messaging.keys import SigningKey, write_public
from common.messaging.queues import MANAGER, host_queue, spm_queue
from tests.integration.manager_kit import POOL

SPM = spm_queue(POOL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """So many hosts, and so many machines in all, dealt out in turn."""

    hosts: int
    vms: int

    @property
    def host_ids(self) -> tuple[HostId, ...]:
        """Return the hosts' ids."""
        return tuple(HostId(f"sim{number}") for number in range(self.hosts))

    @property
    def senders(self) -> tuple[str, ...]:
        """Return everybody who has a key."""
        return (MANAGER, SPM, *(host_queue(host) for host in self.host_ids))

    def names(self) -> tuple[str, ...]:
        """Return the machines' names."""
        return tuple(f"vm{number}" for number in range(self.vms))

    def names_on(self, number: int) -> tuple[str, ...]:
        """Return the names of the machines of one host, by its number."""
        return self.names()[number :: self.hosts]


def make_keys(folder: Path, size: Size) -> None:
    """Give everybody a key; all public halves lie in `folder`, which everybody reads."""
    for sender in size.senders:
        write_public(folder, SigningKey.generate(folder / f"{sender}.key", sender))
