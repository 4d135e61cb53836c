"""`livesnap dead-letter …`"""

import typer

from manager.cli.common import AsJson, connected, new_group, show

group = new_group("Messages that RabbitMQ took out of circulation: refused ones, and those that ended many workers.")


@group.command("list")
def list_dead_letters(context: typer.Context, as_json: AsJson = False) -> None:
    """List the oldest dead letters; they stay where they are. Redis has none."""
    found = connected(context).get("/v1/dead-letters")
    show(found, "dead_letters", as_json=as_json)


@group.command("purge")
def purge_dead_letters(context: typer.Context, as_json: AsJson = False) -> None:
    """Throw all dead letters away. Nothing is lost: what is still to be done stands in the outbox and is sent again."""
    found = connected(context).delete("/v1/dead-letters")
    show(found, "purged", as_json=as_json)
