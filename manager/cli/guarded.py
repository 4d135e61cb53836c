"""What becomes of a command that fails: a message, and the exit status that the README promises."""

import os
import sys
from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from manager.cli.failures import CommandFailed
from manager.cli.text import document

INTERRUPTED = 130
PIPE_CLOSED = 141
"""What shells report of a program that SIGINT or SIGPIPE ended."""


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
