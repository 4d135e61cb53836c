"""The storage domains of one pool as this SPM has them mounted: checked, leased, and looked up.

Before every change the mount's identity and the lease are checked again; a domain that is missing or leased elsewhere
is NotReady, whatever the settings say.
"""

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from common import logs
from common.errors import LivesnapError, NotReady, StorageError
from common.ids import PoolId, StorageDomainId, VmId
from common.images.chain import Backing
from common.images.identity import Identity, read_identity, require_identity
from common.images.overlays import Overlays
from common.messaging.messages import VolumeAt
from common.messaging.reports import MountReport
from spm import lease
from spm.backends.base import Backend
from spm.backends.file import FileBackend
from spm.lease import Lease

_log = logs.get()
_T = TypeVar("_T")
_R = TypeVar("_R")
_STRIPES = 64
# protocol.md B1: two threads are what pays for the queue hops of a machine with eight disks; more gain nothing.
_PARALLEL = 2


def _raise(lost: LivesnapError) -> NoReturn:
    raise lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an absolute path lies: the storage domain and the relative path below its root."""

    storage_domain_id: StorageDomainId
    path: str


class Pool:
    """One pool's storage domains. Safe to share between threads."""

    def __init__(
        self,
        pool: PoolId,
        mounts: Mapping[str, Path],
        *,
        on_lease_lost: Callable[[LivesnapError], NoReturn] = _raise,
    ) -> None:
        """Serve the storage domains named in `mounts`; `on_lease_lost` ends the process."""
        self.pool_id = pool
        self._mounts = dict(mounts)
        self._on_lease_lost = on_lease_lost
        self._overlays = Overlays()
        self._names: dict[StorageDomainId, str] = {}
        self._leases: dict[StorageDomainId, Lease] = {}
        self._lease_lock = threading.Lock()
        self._vm_locks = tuple(threading.Lock() for _ in range(_STRIPES))
        self._executor = ThreadPoolExecutor(max_workers=_PARALLEL, thread_name_prefix="volumes")
        self.adopting = threading.Lock()
        """Held while a chain is adopted: two disks must not both be the first to meet a base that they share."""

    @property
    def epoch(self) -> int:
        """Return the highest epoch that this SPM holds a lease with; 0 before it has any."""
        return max((held.epoch for held in tuple(self._leases.values())), default=0)

    def wait_for_leases(self) -> None:
        """Stand by until the lease of every mounted storage domain is ours. Raises StorageError.

        In the order of their ids, so that two SPMs never wait for each other.
        """
        found = [(self._identify(root), root) for root in self._mounts.values()]
        for identity, root in sorted(((i, r) for i, r in found if i), key=lambda pair: pair[0].storage_domain_id):
            if identity.storage_domain_id not in self._leases:
                self._leases[identity.storage_domain_id] = lease.wait_for(root, at_least=self.epoch)

    def backend(self, storage_domain_id: StorageDomainId) -> Backend:
        """Return a storage domain that is mounted, of this pool, and leased by us.

        Raises StorageError(storage_domain_unknown) if the settings have no such one, NotReady(storage_unavailable).
        """
        root = self._root_of(storage_domain_id)
        try:
            identity = require_identity(root, storage_domain_id)
        except NotReady:
            self._names.pop(storage_domain_id, None)  # it may come back below another of our mount points
            raise
        return self._serve(root, identity)

    def usable(self) -> tuple[Backend, ...]:
        """Return every storage domain that can be worked on now; the others are in the log."""
        found = []
        for name, root in self._mounts.items():
            try:
                found.append(self._serve(root, read_identity(root)))
            except LivesnapError as error:
                _log.warning("storage_domain.unusable", name=name, reason=error.message)
        return tuple(found)

    def locate(self, path: str) -> Place | None:
        """Return where an absolute path lies, links resolved; None if below no mounted storage domain of the pool."""
        for root in self._mounts.values():
            identity = self._identify(root)
            if identity is not None:
                inside = self._open(root, identity).locate(path)
                if inside is not None:
                    return Place(storage_domain_id=identity.storage_domain_id, path=inside)
        return None

    def same_place(self, volume: VolumeAt, backing: Backing) -> bool:
        """Tell whether a header's backing file is that volume."""
        return self.locate(self.backend(volume.storage_domain_id).path(volume)) == self.locate(backing.path)

    def mount_reports(self) -> tuple[MountReport, ...]:
        """Return how each storage domain of the settings stands."""
        return tuple(self._report(name, root) for name, root in self._mounts.items())

    def vm_lock(self, vm: VmId) -> threading.Lock:
        """Return the lock that keeps two handlers off the same vm (brokers deliver twice, at the same time)."""
        return self._vm_locks[hash(vm) % _STRIPES]

    def each(self, act: Callable[[_T], _R], items: Sequence[_T]) -> list[_R | LivesnapError]:
        """Act on all items in a few threads; return each one's result, or what went wrong with it, in order."""

        def guarded(item: _T) -> _R | LivesnapError:
            try:
                return act(item)
            except LivesnapError as error:
                return error

        if len(items) == 1:
            return [guarded(items[0])]
        futures = [self._executor.submit(contextvars.copy_context().run, guarded, item) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Let a standby take over."""
        self._executor.shutdown()
        with self._lease_lock:
            while self._leases:
                self._leases.popitem()[1].release()

    def _serve(self, root: Path, identity: Identity) -> Backend:
        self._require_pool(identity, root)
        self._require_lease(identity.storage_domain_id, root)
        return self._open(root, identity)

    def _open(self, root: Path, identity: Identity) -> Backend:
        """Return the backend of that kind of storage; files are the only kind so far."""
        may_change = partial(self._require_change, identity.storage_domain_id, root)
        return FileBackend(root, identity, may_change, self._overlays)

    def _root_of(self, storage_domain_id: StorageDomainId) -> Path:
        """Return the mount point, as last seen; look at all of them for one that was not seen yet."""
        if storage_domain_id not in self._names:
            seen = {name: self._identify(root) for name, root in self._mounts.items()}
            self._names.update({identity.storage_domain_id: name for name, identity in seen.items() if identity})
            if storage_domain_id not in self._names and None in seen.values():
                missing = ", ".join(name for name, identity in seen.items() if identity is None)
                raise NotReady(
                    "storage_unavailable", f"storage domain {storage_domain_id} may be {missing}: not mounted"
                )
        try:
            return self._mounts[self._names[storage_domain_id]]
        except KeyError:
            raise StorageError(
                "storage_domain_unknown",
                f"pool {self.pool_id} has no storage domain {storage_domain_id} in its settings",
            ) from None

    def _identify(self, root: Path) -> Identity | None:
        try:
            identity = read_identity(root)
            self._require_pool(identity, root)
        except NotReady as error:
            _log.warning("storage_domain.unusable", root=str(root), reason=error.message)
            return None
        return identity

    def _require_pool(self, identity: Identity, root: Path) -> None:
        if identity.pool != self.pool_id:
            raise NotReady("storage_unavailable", f"{root} belongs to pool {identity.pool}, not to {self.pool_id}")

    def _require_lease(self, storage_domain_id: StorageDomainId, root: Path) -> None:
        """Make sure that we hold the lease; take it now for a storage domain that was mounted after the start."""
        with self._lease_lock:
            held = self._leases.get(storage_domain_id)
            if held is None:
                held = lease.take(root, at_least=self.epoch)
                if held is None:
                    raise NotReady("storage_unavailable", f"another SPM holds the lease of {root}")
                self._leases[storage_domain_id] = held
            try:
                held.require()
            except NotReady:
                raise
            except LivesnapError:
                self._make_sure_of_loss(held, storage_domain_id, root)

    def _make_sure_of_loss(self, held: Lease, storage_domain_id: StorageDomainId, root: Path) -> None:
        """Tell a lease that is lost from a storage domain that was unmounted since its identity was read.

        Raises NotReady if it is not mounted (any more).
        """
        require_identity(root, storage_domain_id)
        try:
            held.require()
        except NotReady:
            raise
        except LivesnapError as lost:
            self._on_lease_lost(lost)

    def _require_change(self, storage_domain_id: StorageDomainId, root: Path) -> None:
        require_identity(root, storage_domain_id)
        self._require_lease(storage_domain_id, root)

    def _report(self, name: str, root: Path) -> MountReport:
        try:
            backend = self._serve(root, read_identity(root))
            usage = backend.usage()
        except LivesnapError as error:
            return MountReport(storage_domain_id=None, name=name, root=str(root), problem=error.message)
        return MountReport(
            storage_domain_id=backend.identity.storage_domain_id,
            name=name,
            root=str(root),
            free_bytes=usage.free_bytes,
            total_bytes=usage.total_bytes,
        )
