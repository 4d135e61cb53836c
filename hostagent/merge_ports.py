"""What the merging of volumes needs of libvirt, as a protocol; the real one is hostagent/block_jobs.py. Pure."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """A block job of a disk. Its numbers say nothing of its end."""

    is_commit: bool
    done_bytes: int
    total_bytes: int


class BlockJobs(Protocol):
    """The block jobs of one vm (hostagent/block_jobs.py). Errors as `Guest`'s."""

    def find(self, target: str) -> BlockJob | None:
        """Return a disk's block job, None if there is none."""
        ...

    def begin_commit(self, target: str, base_path: str, top_path: str, *, active: bool, bytes_per_s: int) -> None:
        """Begin to commit the layer `top_path` into `base_path`, by libvirt's own names; `active`: it is the leaf."""
        ...

    def pivot(self, target: str) -> None:
        """Let the vm go on with the base of an active commit that is ready."""
        ...

    def abort(self, target: str) -> None:
        """End a block job; the chain is as before."""
        ...
