"""`livesnap pool …` and `livesnap storage-domain …`"""

from pathlib import Path
from typing import Annotated

import typer

from manager.cli.common import AsJson, connected, new_group, show
from manager.cli.failures import CommandFailed
from manager.cli.joining import StorageDomains, join, mounts

group = new_group("Pools: storage domains that one SPM at a time looks after.")
storage_group = new_group("Storage domains: folders of images that the hosts share.")


@group.command("list")
def list_pools(context: typer.Context, as_json: AsJson = False) -> None:
    """List the pools, and when their SPM was heard from."""
    found = connected(context).get("/v1/pools")
    show(found, "pools", as_json=as_json)


@group.command("add")
def add_pool(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")],
    storage_domain: StorageDomains = None,
    output: Annotated[Path | None, typer.Option(help="The settings file to write; spm.POOL.toml if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a pool in: make its SPM's queue, key and account, and write the one file that its SPMs get (mode 0600)."""
    body = {"pool": pool, "storage_domains": mounts(storage_domain) or {}}
    found = join(connected(context), "/v1/pools", body, output or Path(f"spm.{pool}.toml"))
    show(found, "joined", as_json=as_json)


@storage_group.command("list")
def list_storage_domains(context: typer.Context, as_json: AsJson = False) -> None:
    """List the storage domains, and what their SPMs say of them."""
    found = connected(context).get("/v1/storage-domains")
    show(found, "storage_domains", as_json=as_json)


@storage_group.command("add")
def add_storage_domain(
    storage_domain: Annotated[str, typer.Argument(metavar="NAME=PATH", help="Its name, and the folder here.")],
    pool: Annotated[str, typer.Option(help="The pool that it is to belong to.")] = "default",
    settings: Annotated[
        list[Path] | None, typer.Option(help="A settings file of an SPM or a host on this machine to add it to.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder on this machine a storage domain (locks and links are tested), and add it to settings files here.

    Run it as the SPM's user, where the folder is mounted. SPMs and hosts read their settings at their next start.
    """
    from manager.standalone.registering import add_to_settings, register

    found = mounts([storage_domain]) or {}
    for name, path in found.items():
        if not Path(path).is_absolute():
            raise CommandFailed("request_malformed", f"storage domain {name}: {path!r} is not an absolute path")
        identity = register(name, Path(path), pool)
        changed = [str(file) for file in settings or () if add_to_settings(file, name, path)]
        answer = {"id": identity, "name": name, "pool": pool, "root": path, "changed": changed}
        show(answer, "registered", as_json=as_json)
