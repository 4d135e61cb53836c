"""The tree of commands and the global options."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from manager.cli import access, dead_letters, doctor, hosts, jobs, limits, pools, reverts, snapshots, standalone, vms
from manager.cli.guarded import guarded
from manager.cli.session import Session

app = typer.Typer(
    name="livesnap",
    help="Crash-safe live snapshots for fleets of plain libvirt/KVM hosts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(hosts.group, name="host")
app.add_typer(pools.group, name="pool")
app.add_typer(pools.storage_group, name="storage-domain")
app.add_typer(vms.group, name="vm")
app.add_typer(snapshots.group, name="snapshot")
for verb in (reverts.preview, reverts.commit, reverts.undo, reverts.revert):
    snapshots.group.command(verb.__name__)(verb)
app.add_typer(jobs.group, name="job")
app.add_typer(limits.group, name="limit")
app.add_typer(access.tokens, name="token")
app.add_typer(access.audit, name="audit")
app.add_typer(dead_letters.group, name="dead-letter")
app.command("doctor")(doctor.doctor)
app.command("standalone")(standalone.standalone)


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
