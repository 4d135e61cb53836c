"""The `livesnap` command line: Typer and Rich; it speaks HTTP only. Everything is imported when a command needs it."""

import sys


def main() -> None:
    """Run the command line and end the process with its exit status (see manager.cli.failures)."""
    from manager.cli.app import run

    sys.exit(run(sys.argv[1:]))
