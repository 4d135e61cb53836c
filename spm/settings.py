"""The SPM's settings, beside those that every process shares."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from common.ids import PoolId
from common.settings import SharedSettings
from common.units import MIB


class SpmSettings(SharedSettings):
    """One SPM process of one pool. Several may run with the same settings: one is active, the others stand by."""

    pool: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")
    """The pool that this SPM serves; its queue is `spm.<pool>`. Change it when a fleet has several storage pools."""

    storage_domains: dict[str, Path] = Field(default_factory=dict)
    """Name and mount point of every storage domain of the pool, each made by `python -m spm.register`."""

    trash_grace_s: int = Field(default=86_400, ge=0)
    """How long a deleted volume stays in the trash (seconds; default a day). Raise it for more time to notice a
    mistake, lower it where room is short: a deleted volume is empty or its data was committed, so it is small or
    stands elsewhere. What a revert, commit or undo has given up is neither: until then it can still be had back. A
    volume that was never written does not wait where room is missing (`min_free_bytes`), or after a machine could not
    write to it."""

    purge_interval_s: int = Field(default=600, ge=1)
    """How often the trash is looked through (seconds)."""

    report_interval_s: int = Field(default=30, ge=1)
    """How often the Manager is told of room and problems of the storage domains (seconds)."""

    min_free_bytes: int = Field(default=64 * MIB, ge=0)
    """No volume is made on a storage domain with less room than this: a snapshot needs almost none, but what the
    machines write afterwards does, and one that finds no room is paused. Raise it for machines that write much, and
    with it the Manager's `low_space_bytes`, from which on a snapshot warns. The Manager is told of it."""

    @property
    def pool_id(self) -> PoolId:
        """Return the pool's name as an id."""
        return PoolId(self.pool)

    @property
    def trash_grace(self) -> timedelta:
        """Return how long a deleted volume stays in the trash."""
        return timedelta(seconds=self.trash_grace_s)

    @property
    def purge_interval(self) -> timedelta:
        """Return how often the trash is looked through."""
        return timedelta(seconds=self.purge_interval_s)

    @property
    def report_interval(self) -> timedelta:
        """Return how often the Manager is told how the storage domains stand."""
        return timedelta(seconds=self.report_interval_s)
