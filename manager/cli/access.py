"""`livesnap token …` and `livesnap audit …`: who may ask, and who asked for what."""

from typing import Annotated

import typer

from manager.cli.common import AsJson, connected, new_group, show
from manager.cli.session import segment
from manager.cli.text import seconds

tokens = new_group("Who may ask for what.")
audit = new_group("Who asked for what.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The token's name.")]


@tokens.command("create")
def create_token(
    context: typer.Context,
    name: Name,
    role: Annotated[str, typer.Option(help="viewer, operator or admin.")],
    ttl: Annotated[str | None, typer.Option(help="It ends by itself after 90s, 15m, 2h, 30d.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only a hash of it is kept."""
    body = {"name": name, "role": role, **({} if ttl is None else {"ttl_s": seconds(ttl)})}
    show(connected(context).post("/v1/tokens", body), "new_token", as_json=as_json)


@tokens.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List every token that was ever made, newest first; the tokens of the token file are not among them."""
    show(connected(context).get("/v1/tokens"), "tokens", as_json=as_json)


@tokens.command("revoke")
def revoke_token(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """End a token: it is refused from the next request on."""
    show([connected(context).delete(f"/v1/tokens/{segment(name)}")], "tokens", as_json=as_json)


@audit.command("list")
def list_audit(
    context: typer.Context,
    token: Annotated[str | None, typer.Option(help="Only what was asked for with this token.")] = None,
    as_json: AsJson = False,
) -> None:
    """List who asked for what, newest first: changes, and what was refused for its role."""
    query = {} if token is None else {"token": token}
    show(connected(context).get("/v1/audit", **query), "audit", as_json=as_json)
