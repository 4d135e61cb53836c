"""`livesnap standalone`: the whole of livesnap on one machine."""

from pathlib import Path
from typing import Annotated

import typer


def standalone(
    *,
    state_dir: Annotated[Path, typer.Option(help="Folder for its database, keys, logs and broker; made if missing.")],
    libvirt_uri: Annotated[str, typer.Option(help="The libvirt to work with, such as qemu:///system.")],
    storage_domain: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="A folder of images; may be repeated.")
    ],
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the API listens; any free port if not given.")
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(envvar="LIVESNAP_BROKER_URL", help="A Redis or RabbitMQ of yours instead of its own Redis."),
    ] = None,
    database: Annotated[
        str | None, typer.Option(envvar="LIVESNAP_DATABASE_URL", help="A PostgreSQL of yours instead of SQLite.")
    ] = None,
    flower: Annotated[
        bool, typer.Option("--flower", help="Run Flower too, on loopback; its address and password are files there.")
    ] = False,
    host_id: Annotated[str | None, typer.Option(help="This machine's name; its host name if not given.")] = None,
) -> int:
    """Run Manager, API, SPM, host agent, guard and broker here. Prints `ready` once the first inventory is in."""
    from manager.standalone import run
    from manager.standalone.options import parsed

    options = parsed(
        state_dir=state_dir,
        libvirt_uri=libvirt_uri,
        storage_domains=storage_domain,
        http=http,
        broker_url=broker,
        database_url=database,
        host_id=host_id,
        flower=flower,
    )
    return run(options)
