"""`livesnap host …`"""

from pathlib import Path
from typing import Annotated

import typer

from manager.cli.common import AsJson, connected, new_group, show
from manager.cli.joining import StorageDomains, join, mounts
from manager.cli.session import segment

group = new_group("Hypervisors: who belongs to the fleet, and what their agents have reported.")
HostRef = Annotated[str, typer.Argument(metavar="HOST", help="The host's name.")]


@group.command("list")
def list_hosts(context: typer.Context, as_json: AsJson = False) -> None:
    """List the hosts, with the guests that are frozen there now."""
    found = connected(context).get("/v1/hosts")
    show(found, "hosts", as_json=as_json)


@group.command("add")
def add_host(
    context: typer.Context,
    host: HostRef,
    *,
    output: Annotated[Path | None, typer.Option(help="The settings file to write; HOST.toml if not given.")] = None,
    libvirt_uri: Annotated[str, typer.Option(help="The libvirt there.")] = "qemu:///system",
    state_dir: Annotated[
        str, typer.Option("--host-state-dir", help="Folder there for journal and locks.")
    ] = "/var/lib/livesnap/host",
    storage_domain: StorageDomains = None,
    renew: Annotated[bool, typer.Option("--renew", help="Give it a new key and password, and end the old.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take a host in: make its queue, key and account, and write the one file that is copied to it (mode 0600)."""
    body = {
        "host": host,
        "libvirt_uri": libvirt_uri,
        "state_dir": state_dir,
        "storage_domains": mounts(storage_domain),
        "renew": renew,
    }
    found = join(connected(context), "/v1/hosts", body, output or Path(f"{host}.toml"))
    show(found, "joined", as_json=as_json)


@group.command("drain")
def drain_host(context: typer.Context, host: HostRef, as_json: AsJson = False) -> None:
    """Let a host finish what it has and take nothing new."""
    found = connected(context).post(f"/v1/hosts/{segment(host)}/drain")
    show(found, "duty", as_json=as_json)


@group.command("resume")
def resume_host(context: typer.Context, host: HostRef, as_json: AsJson = False) -> None:
    """Let a drained host take new work again."""
    found = connected(context).post(f"/v1/hosts/{segment(host)}/resume")
    show(found, "duty", as_json=as_json)


@group.command("remove")
def remove_host(
    context: typer.Context,
    host: HostRef,
    lost: Annotated[
        bool, typer.Option("--lost", help="It never comes back: its jobs end with every volume kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take a host out: its key and account count no more, its queue goes. Refused while it has unfinished jobs.

    With --lost its jobs end instead, with every volume kept; that is refused while an agent of it lives.
    """
    client, path = connected(context), f"/v1/hosts/{segment(host)}"
    if lost:
        show(client.post(f"{path}/remove", {"lost": True}), "removed_host", as_json=as_json)
    else:
        show(client.delete(path), "removed", as_json=as_json)
