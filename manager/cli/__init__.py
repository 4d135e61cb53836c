"""The `livesnap` command line: Typer and Rich; it speaks HTTP only. Everything is imported when a command needs it."""

import gc
import sys


def main() -> None:
    """Run the command line and end the process with its exit status (see manager.cli.failures).

    Nothing that imports make is garbage, but each 700 new objects have Python look for some: a tenth of a command's
    time (20 ms). A command that goes on for long is still looked through.
    """
    gc.set_threshold(100_000)
    from manager.cli.app import run

    sys.exit(run(sys.argv[1:]))
