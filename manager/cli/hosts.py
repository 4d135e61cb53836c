"""`livesnap host …`"""

from typing import Annotated

import typer

from manager.cli.common import AsJson, connected, new_group, show
from manager.cli.failures import CommandFailed
from manager.cli.session import segment

group = new_group("Hypervisors whose agents have reported.")


@group.command("list")
def list_hosts(context: typer.Context, as_json: AsJson = False) -> None:
    """List the hosts, with the guests that are frozen there now."""
    found = connected(context).get("/v1/hosts")
    show(found, "hosts", as_json=as_json)


@group.command("remove")
def remove_host(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's name, as `livesnap host list` shows it.")],
    lost: Annotated[bool, typer.Option("--lost", help="Say that it never comes back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a host up: its jobs end with every volume kept, its key is revoked. Refused while an agent of it lives."""
    if not lost:
        hint = "Move its machines to other hosts and stop its agent instead; or say --lost if it never comes back."
        raise CommandFailed("request_malformed", f"host {host} is removed only as lost", hint)
    found = connected(context).post(f"/v1/hosts/{segment(host)}/remove", {"lost": True})
    show(found, "removed_host", as_json=as_json)
