"""`livesnap snapshot preview | commit | undo | revert`"""

import sys
import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manager.cli.common import AsJson, SnapshotRef, Timeout, VmRef, Wait, connected, remark, show, wait_for
from manager.cli.failures import CommandFailed, Status
from manager.cli.session import segment
from manager.cli.text import moment

if TYPE_CHECKING:
    from manager.cli.client import Client, Json

Disks = Annotated[
    list[str] | None, typer.Option("--disk", metavar="TARGET", help="Only this disk (vda); may be repeated.")
]


def preview(
    context: typer.Context,
    snapshot: SnapshotRef,
    *,
    disk: Disks = None,
    wait: Wait = True,
    timeout: Timeout = 600,
    as_json: AsJson = False,
) -> int:
    """Let a stopped machine show a snapshot for trial: boot it, look, then `commit` or `undo`. Nothing is lost."""
    client, path = connected(context), f"/v1/snapshots/{segment(snapshot)}/preview"
    job = _submit(client, path, {"disks": disk or []}, limit_s=timeout)
    return _finish(client, job, f"preview of {snapshot}", timeout if wait else None, as_json=as_json)


def commit(
    context: typer.Context, vm: VmRef, *, wait: Wait = True, timeout: Timeout = 600, as_json: AsJson = False
) -> int:
    """Keep what a machine shows for trial. What it comes from goes to the trash; snapshots on that branch stay."""
    client = connected(context)
    job = _submit(client, f"/v1/vms/{segment(vm)}/commit", {}, limit_s=timeout)
    return _finish(client, job, f"commit of {vm}", timeout if wait else None, as_json=as_json)


def undo(
    context: typer.Context, vm: VmRef, *, wait: Wait = True, timeout: Timeout = 600, as_json: AsJson = False
) -> int:
    """End a trial: the machine is where it was before, and what it wrote meanwhile goes to the trash."""
    client = connected(context)
    job = _submit(client, f"/v1/vms/{segment(vm)}/undo", {}, limit_s=timeout)
    return _finish(client, job, f"undo of {vm}", timeout if wait else None, as_json=as_json)


def revert(
    context: typer.Context,
    snapshot: SnapshotRef,
    *,
    disk: Disks = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where no terminal can be asked.")] = False,
    wait: Wait = True,
    timeout: Timeout = 600,
    as_json: AsJson = False,
) -> int:
    """Put a stopped machine back on a snapshot for good, after saying what would be lost."""
    client, path = connected(context), f"/v1/snapshots/{segment(snapshot)}/revert"
    body: Json = {"disks": disk or []}
    if not yes:
        _confirm(client.post(path, {**body, "dry_run": True}))
    job = _submit(client, path, body, limit_s=timeout)
    return _finish(client, job, f"revert to {snapshot}", timeout if wait else None, as_json=as_json)


def _confirm(loss: "Json") -> None:
    """Say what would be given up, and go on only with a yes. Raises CommandFailed(confirmation_needed)."""
    told = lost(loss)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandFailed("confirmation_needed", told)
    remark(told)
    if not typer.confirm("Go back to it?", default=False, err=True):
        raise CommandFailed("confirmation_needed", f"nothing was done; {told}")


def lost(loss: "Json") -> str:
    """Return in words what a revert gives up."""
    since = moment(loss["since"])
    when = f"since {since} UTC" if since else "since it was put on the branch that it is on"
    what = f"{', '.join(loss['targets'])} of {loss['vm_name']}"
    told = f"going back to snapshot {loss['snapshot_name']} gives up all that was written to {what} {when}"
    return f"{told}; snapshots stay" if loss["volumes"] else f"{told}, but for what snapshots hold"


def _submit(client: "Client", path: str, body: "Json", *, limit_s: float) -> Any:
    """Ask for it. One key for all tries: however often the request arrives, there is one job."""
    from manager.cli.client import retried
    from manager.cli.waiting import REACH_LIMIT_S

    key = str(uuid.uuid4())
    return retried(lambda: client.post(path, body, key=key), limit_s=min(limit_s, REACH_LIMIT_S), note=remark)


def _finish(client: "Client", job: "Json", title: str, timeout_s: float | None, *, as_json: bool) -> Status:
    """Wait for the job's end, if it is to be waited for, and print it."""
    if timeout_s is not None:
        return wait_for(client, job, title=title, timeout_s=timeout_s, as_json=as_json)
    show(job, "outcome", as_json=as_json)
    return Status.DONE
