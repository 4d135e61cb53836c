"""The tree of commands, the global options, and what becomes of a command that fails."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from manager.cli import hosts, jobs, snapshots, standalone, vms
from manager.cli.failures import CommandFailed
from manager.cli.session import Session
from manager.cli.text import document

INTERRUPTED = 130
PIPE_CLOSED = 141
"""What shells report of a program that SIGINT or SIGPIPE ended."""

app = typer.Typer(
    name="livesnap",
    help="Crash-safe live snapshots for fleets of plain libvirt/KVM hosts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(hosts.group, name="host")
app.add_typer(vms.group, name="vm")
app.add_typer(snapshots.group, name="snapshot")
app.add_typer(jobs.group, name="job")
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


def guarded(command: Callable[[], int], *, as_json: bool) -> int:
    """Run `command` and return its exit status; what it raises becomes a message and a status."""
    try:
        status = command()
        sys.stdout.flush()
        return status
    except CommandFailed as error:
        return _report(error, as_json=as_json)
    except TyperException as error:
        if as_json:
            return _report(_misused(error), as_json=True)
        _show_usage(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # Typer and Rich leave so when standard output is closed. Python flushes it once more, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _report(error: CommandFailed, *, as_json: bool) -> int:
    if as_json:
        reason = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stdout.write(document({"error": reason}) + "\n")
        sys.stdout.flush()
    else:
        from manager.cli.screen import failure

        failure(error.message, error.hint, error.code)
    return int(error.status)


def _misused(error: TyperException) -> CommandFailed:
    return CommandFailed("request_malformed", error.format_message(), "See `livesnap --help`.")


def _show_usage(error: TyperException) -> None:
    """Print the error as Typer does, with the usage of the command."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
    else:
        sys.stderr.write(f"Error: {error.format_message()}\n")
