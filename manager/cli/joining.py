"""What `host add` and `pool add` share: one answer that holds secrets becomes one file, readable by its owner only."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manager.cli.failures import CommandFailed

if TYPE_CHECKING:
    from manager.cli.client import Client, Json

StorageDomains = Annotated[
    list[str] | None,
    typer.Option("--storage-domain", metavar="NAME=PATH", help="Where it is mounted there; may be repeated."),
]


def mounts(given: Sequence[str] | None) -> dict[str, str] | None:
    """Return names and mount points, None if none were given. Raises CommandFailed."""
    if not given:
        return None
    pairs = [text.partition("=") for text in given]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise CommandFailed("request_malformed", f"--storage-domain {name!r}: not NAME=PATH")
    return {name: path for name, _, path in pairs}


def join(client: "Client", path: str, body: "Json", output: Path) -> "Json":
    """Ask for a settings file and write it to `output`, which must not exist; return the answer without the secrets.

    The file is there, empty, before anybody is asked: what cannot be written is not asked for. A crash in between
    leaves an empty file, and the same command with another `--output` makes new secrets.
    """
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        hint = "Name another file with --output; a file that is there is never overwritten."
        raise CommandFailed("settings_invalid", f"writing {output}: {error.strerror}", hint) from error
    done = False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            found: Json = client.post(path, body)
            file.write(str(found.pop("settings")))
            file.flush()
            os.fsync(file.fileno())
        done = True
    finally:
        if not done:
            output.unlink(missing_ok=True)
    return {**found, "file": str(output)}
