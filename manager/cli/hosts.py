"""`livesnap host …`"""

import typer

from manager.cli.common import AsJson, connected, new_group, show

group = new_group("Hypervisors whose agents have reported.")


@group.command("list")
def list_hosts(context: typer.Context, as_json: AsJson = False) -> None:
    """List the hosts, with the guests that are frozen there now."""
    found = connected(context).get("/v1/hosts")
    show(found, "hosts", as_json=as_json)
