"""What goes into the API. What comes out are the documents of manager/views.py."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_DESCRIPTION = 4096
# PostgreSQL cannot store NUL, and no other control character than tab and newline has a place in a description.
Description = Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
Target = Annotated[str, StringConstraints(min_length=1, max_length=16)]


class Strict(BaseModel):
    """A body of which every field is known and of the right type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SnapshotBody(Strict):
    """Ask for a live snapshot of a machine."""

    name: str | None = Field(default=None, description="1 to 255 printable characters, unique for the machine.")
    description: Description = ""
    disks: list[Target] = Field(default=[], max_length=256, description="Targets (vda); empty: every one that can be.")
    quiesce: str = Field(default="auto", description="auto, require, best-effort or never.")
    dry_run: bool = Field(default=False, description="Only check: the answer is a list of findings.")


class PreviewBody(Strict):
    """Show a snapshot for trial."""

    disks: list[Target] = Field(default=[], max_length=256, description="Targets (vda); empty: all of the snapshot's.")


class RevertBody(PreviewBody):
    """Go back to a snapshot for good."""

    dry_run: bool = Field(default=False, description="Only say what would be given up.")


class NothingBody(Strict):
    """Nothing more is to be said."""


class DeleteBody(Strict):
    """Delete snapshots of one machine."""

    snapshots: list[str] = Field(min_length=1, max_length=100, description="Ids, VM/NAME, or unique names.")
    bytes_per_s: int = Field(default=0, ge=0, le=2**50, description="Copy at most so much a second; 0: no limit.")
    dry_run: bool = Field(default=False, description="Only say what would become of which volume.")


class LockBody(Strict):
    """Keep jobs off a machine."""

    reason: str = Field(description="Who holds it and what for, 1 to 255 printable characters: refusals say it.")
    ttl_s: int | None = Field(default=None, ge=1, le=366 * 86400, description="Seconds after which it ends by itself.")


class TokenBody(Strict):
    """Make a token."""

    name: str = Field(description="1 to 255 printable characters; the audit log names it. Never used twice.")
    role: Literal["viewer", "operator", "admin"] = Field(description="viewer, operator or admin.")
    ttl_s: int | None = Field(default=None, ge=1, le=3660 * 86400, description="Seconds after which it ends by itself.")


Place = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]


class AddHostBody(Strict):
    """Take a host in."""

    host: Name
    libvirt_uri: Place = "qemu:///system"
    state_dir: Place = "/var/lib/livesnap/host"
    storage_domains: dict[Name, Place] | None = Field(
        default=None, max_length=256, description="Name and mount point there; null: as the SPMs have them."
    )
    renew: bool = Field(default=False, description="Give a host that has joined already a new key and password.")


class AddPoolBody(Strict):
    """Take a pool in."""

    pool: Name
    storage_domains: dict[Name, Place] = Field(max_length=256, description="Name and mount point at its SPMs.")


class LimitBody(Strict):
    """Set a limit on jobs."""

    scope: Literal["host", "storage_domain", "pool"] = Field(description="host, storage_domain or pool.")
    name: Name | Literal[""] = Field(default="", description="Of this one only; '': of each without one of its own.")
    max_jobs: int | None = Field(ge=1, le=100_000, description="Jobs at work at once; null: no such limit.")


class ResolveBody(Strict):
    """Let a job that waits for an operator ask again."""

    host_was_rebooted: bool = Field(default=False, description="The job's host was rebooted since. It proves nothing.")


class RemoveHostBody(Strict):
    """Give a host up."""

    lost: Literal[True] = Field(description="It never comes back. There is no other removal.")


class Problem(BaseModel):
    """Why a request was refused; `code` is stable (see the README), `hint` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
