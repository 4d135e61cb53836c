"""`livesnap snapshot …`"""

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manager.cli import deletions, reverts
from manager.cli.common import (
    AsJson,
    SnapshotRef,
    Timeout,
    VmRef,
    Wait,
    connected,
    new_group,
    remark,
    show,
    wait_for,
)
from manager.cli.failures import Status
from manager.cli.session import segment

if TYPE_CHECKING:
    from manager.cli.client import Client, Json

group = new_group("Snapshots of machines.")


@group.command("create")
def create(
    context: typer.Context,
    vm: VmRef,
    *,
    name: Annotated[str | None, typer.Option(help="Its name, unique for the machine.")] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    disk: Annotated[
        list[str] | None, typer.Option(metavar="TARGET", help="Only this disk (vda); may be repeated.")
    ] = None,
    quiesce: Annotated[str, typer.Option(help="auto, require, best-effort or never.")] = "auto",
    wait: Wait = True,
    timeout: Timeout = 600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check; create nothing.")] = False,
    as_json: AsJson = False,
) -> int:
    """Take a live snapshot: quiesced if the guest has an agent, all disks at one moment."""
    body: Json = {"description": description, "disks": disk or [], "quiesce": quiesce, "dry_run": dry_run}
    if name is not None:
        body["name"] = name
    client = connected(context)
    answer = _submit(client, vm, body, limit_s=timeout)
    if dry_run:
        return _checked(answer, as_json=as_json)
    if wait:
        return wait_for(client, answer, title=f"snapshot of {vm}", timeout_s=timeout, as_json=as_json)
    show(answer, "outcome", as_json=as_json)
    return Status.DONE


@group.command("list")
def list_snapshots(context: typer.Context, vm: VmRef, as_json: AsJson = False) -> None:
    """List a machine's snapshots, newest first."""
    found = connected(context).get(f"/v1/vms/{segment(vm)}/snapshots")
    show(found, "snapshots", as_json=as_json)


@group.command("show")
def show_snapshot(
    context: typer.Context,
    snapshot: SnapshotRef,
    as_json: AsJson = False,
) -> None:
    """Show a snapshot: its disks, how consistent it is, and the receipt that proves it."""
    found = connected(context).get(f"/v1/snapshots/{segment(snapshot)}")
    show(found, "snapshot", as_json=as_json)


for verb in (deletions.delete, reverts.preview, reverts.commit, reverts.undo, reverts.revert):
    group.command(verb.__name__)(verb)


def _submit(client: "Client", vm: str, body: "Json", *, limit_s: float) -> Any:
    """Ask for the snapshot. One key for all tries: however often the request arrives, there is one job."""
    from manager.cli.client import retried
    from manager.cli.waiting import REACH_LIMIT_S

    path, key = f"/v1/vms/{segment(vm)}/snapshots", str(uuid.uuid4())
    limit_s = min(limit_s, REACH_LIMIT_S)
    return retried(lambda: client.post(path, body, key=key), limit_s=limit_s, note=remark)


def _checked(lines: "list[Json]", *, as_json: bool) -> Status:
    show(lines, "preflight", as_json=as_json)
    refused = any(line["level"] == "refusal" for line in lines)
    return Status.REFUSED if refused else Status.DONE
