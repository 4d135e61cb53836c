"""`livesnap limit …`"""

from enum import StrEnum
from typing import Annotated

import typer

from manager.cli.common import AsJson, connected, new_group, show

group = new_group("Limits: how many jobs may be at work at once. What exceeds one waits for its turn.")


class Scope(StrEnum):
    """What a limit is for."""

    HOST = "host"
    STORAGE_DOMAIN = "storage-domain"
    POOL = "pool"


ScopeArgument = Annotated[Scope, typer.Argument(metavar="SCOPE", help="host, storage-domain or pool.")]
Name = Annotated[str, typer.Option(help="Of this one only; if not given, of each that has no limit of its own.")]


@group.command("list")
def list_limits(context: typer.Context, as_json: AsJson = False) -> None:
    """List the limits, the most jobs at work on one that each is for, and how many jobs wait."""
    show(connected(context).get("/v1/limits"), "limits", as_json=as_json)


@group.command("set")
def set_limit(
    context: typer.Context,
    scope: ScopeArgument,
    max_jobs: Annotated[int, typer.Argument(metavar="COUNT", min=1, max=100_000, help="Jobs at work at once.")],
    name: Name = "",
    as_json: AsJson = False,
) -> None:
    """Let so many jobs be at work at once on each host, storage domain or pool. It counts from the next job on."""
    body = {"scope": scope.replace("-", "_"), "name": name, "max_jobs": max_jobs}
    show(connected(context).post("/v1/limits", body), "limits", as_json=as_json)


@group.command("remove")
def remove_limit(context: typer.Context, scope: ScopeArgument, name: Name = "", as_json: AsJson = False) -> None:
    """Take a limit away; the jobs that it held back begin."""
    body = {"scope": scope.replace("-", "_"), "name": name, "max_jobs": None}
    show(connected(context).post("/v1/limits", body), "limits", as_json=as_json)
