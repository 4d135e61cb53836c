"""`livesnap vm …`"""

import uuid
from typing import Annotated

import typer

from manager.cli.common import AsJson, VmRef, connected, new_group, remark, show
from manager.cli.session import segment
from manager.cli.text import seconds

group = new_group("Machines that the hosts have reported.")


@group.command("list")
def list_vms(context: typer.Context, as_json: AsJson = False) -> None:
    """List the machines."""
    found = connected(context).get("/v1/vms")
    show(found, "vms", as_json=as_json)


@group.command("show")
def show_vm(context: typer.Context, vm: VmRef, as_json: AsJson = False) -> None:
    """Show a machine, its disks and their chains."""
    found = connected(context).get(f"/v1/vms/{segment(vm)}")
    show(found, "vm", as_json=as_json)


@group.command("lock")
def lock_vm(
    context: typer.Context,
    vm: VmRef,
    reason: Annotated[str, typer.Option(help="Who holds it and what for; whoever is refused meanwhile reads it.")],
    ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="End by itself after so long: 90s, 15m, 2h or 1d.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep jobs off a machine while it is cloned, copied or backed up; refused while a job or another lock holds it."""
    from manager.cli.client import retried
    from manager.cli.waiting import REACH_LIMIT_S

    body = {"reason": reason, "ttl_s": None if ttl is None else seconds(ttl)}
    client, path, key = connected(context), f"/v1/vms/{segment(vm)}/lock", str(uuid.uuid4())
    found = retried(lambda: client.post(path, body, key=key), limit_s=REACH_LIMIT_S, note=remark)
    show(found, "lock", as_json=as_json)


@group.command("unlock")
def unlock_vm(
    context: typer.Context,
    vm: VmRef,
    lock: Annotated[
        str | None, typer.Option(metavar="ID", help="Only if it is this lock (`vm lock` prints it).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Free a machine's lock."""
    query = {} if lock is None else {"lock": lock}
    found = connected(context).delete(f"/v1/vms/{segment(vm)}/lock", **query)
    show(found, "lock", as_json=as_json)
