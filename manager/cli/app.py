"""The tree of commands and the global options."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from manager.cli.common import new_group
from manager.cli.guarded import guarded
from manager.cli.session import Session

COMMANDS = {
    "doctor": "doctor:doctor",
    "standalone": "standalone:standalone",
    "host": "hosts:group",
    "pool": "pools:group",
    "storage-domain": "pools:storage_group",
    "vm": "vms:group",
    "snapshot": "snapshots:group",
    "job": "jobs:group",
    "limit": "limits:group",
    "token": "access:tokens",
    "audit": "access:audit",
    "dead-letter": "dead_letters:group",
}
"""Where each command stands below manager.cli, in the order in which the help has them."""


class OnDemand(TyperGroup):
    """The commands, each imported and built when it is asked for: with all of them a call takes a third longer."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command. None for a name that is none; then all are built, and Typer proposes similar ones."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = _built(name)
        return super().get_command(ctx, cmd_name)


def _built(name: str) -> Any:
    """Import a command or a group of commands, and return what Typer makes of it."""
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(import_module(f"manager.cli.{module}"), attribute)
    parent = new_group("")
    if isinstance(found, typer.Typer):
        parent.add_typer(found, name=name)
    else:
        parent.command(name)(found)
    return get_group(parent).commands[name]


app = typer.Typer(
    cls=OnDemand,
    name="livesnap",
    help="Crash-safe live snapshots for fleets of plain libvirt/KVM hosts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"livesnap {version('livesnap')}\n")
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="Where the API listens (LIVESNAP_URL).")] = None,
    token: Annotated[
        str | None, typer.Option(help="The API's token; better in LIVESNAP_TOKEN: others see arguments.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="A standalone instance's state directory.")] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Remember the global options for the command."""
    context.obj = Session(url=url, token=token, state_dir=state_dir)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status (manager.cli.failures.Status). Never raises."""

    def command() -> int:
        return int(app(list(arguments), prog_name="livesnap", standalone_mode=False) or 0)

    return guarded(command, as_json="--json" in arguments)
