"""`livesnap vm …`"""

import typer

from manager.cli.common import AsJson, VmRef, connected, new_group, show
from manager.cli.session import segment

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
