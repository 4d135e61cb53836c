"""libvirt's block jobs of one vm, by which QEMU merges volumes while the vm runs.

A call returns at once: the job goes on in QEMU, whoever asked for it. Its numbers and its end say nothing of the chain
(measured: they reach their end before it is ready, and a job that failed is simply gone): whoever wants to know looks
at the live definition. libvirt's numbers of types and flags are part of its interface (libvirt-domain.h).
"""

from collections.abc import Callable
from typing import Any, Final

from common.ids import VmId
from hostagent.connection import translating
from hostagent.merge_ports import BlockJob

_TYPE_COMMIT: Final = 3
_TYPE_ACTIVE_COMMIT: Final = 4
_COMMIT_ACTIVE: Final = 1 << 2
_COMMIT_RELATIVE: Final = 1 << 3
"""Else the header of the volume above gets an absolute name, which other hosts may not have."""
_COMMIT_BANDWIDTH_BYTES: Final = 1 << 4
_ABORT_PIVOT: Final = 1 << 1
_LARGEST: Final = (1 << 63) - 1


class LibvirtBlockJobs:
    """The block jobs of one vm; `handle` returns libvirt's handle of it."""

    def __init__(self, handle: Callable[[], Any], vm_id: VmId) -> None:
        """Remember whom to ask."""
        self._handle = handle
        self._vm_id = vm_id

    def find(self, target: str) -> BlockJob | None:
        """Return a disk's block job, None if there is none."""
        handle = self._handle()
        with translating("reading a block job", self._vm_id):
            told = handle.blockJobInfo(target, 0)
        if not told:
            return None
        is_commit = told["type"] in (_TYPE_COMMIT, _TYPE_ACTIVE_COMMIT)
        return BlockJob(is_commit=is_commit, done_bytes=int(told["cur"]), total_bytes=int(told["end"]))

    def begin_commit(self, target: str, base_path: str, top_path: str, *, active: bool, bytes_per_s: int) -> None:
        """Begin to commit the layer `top_path` into `base_path`, both by the names that libvirt has for them."""
        flags = _COMMIT_RELATIVE | _COMMIT_BANDWIDTH_BYTES | (_COMMIT_ACTIVE if active else 0)
        handle = self._handle()
        with translating("beginning a commit", self._vm_id, refused="merge_failed"):
            handle.blockCommit(target, base_path, None if active else top_path, min(bytes_per_s, _LARGEST), flags)

    def pivot(self, target: str) -> None:
        """Let the vm go on with the base of an active commit that is ready."""
        handle = self._handle()
        with translating("pivoting to the base", self._vm_id, refused="merge_failed"):
            handle.blockJobAbort(target, _ABORT_PIVOT)

    def abort(self, target: str) -> None:
        """End a block job; the chain is as before."""
        handle = self._handle()
        with translating("ending a block job", self._vm_id, refused="merge_failed"):
            handle.blockJobAbort(target, 0)
