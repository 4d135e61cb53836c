"""What every command shares: its options, the server that it speaks to, and how its result is printed."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manager.cli.failures import Status, status_of
from manager.cli.session import Session
from manager.cli.text import document

if TYPE_CHECKING:
    from manager.cli.client import Client, Json

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
JobRef = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
SnapshotRef = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Its id, VM/NAME, or its name where that is unique.")
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait; the job goes on afterwards.")]
VmRef = Annotated[str, typer.Argument(metavar="VM", help="The machine's id, or its name where that is unique.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end of the job.")]


def new_group(text: str) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(help=text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def connected(context: typer.Context) -> "Client":
    """Return a client of the server that the global options name. Raises CommandFailed if they are wrong."""
    from manager.cli.client import Client

    session = context.find_object(Session) or Session()
    return Client(session.server())


def show(value: Any, picture: str, *, as_json: bool) -> None:
    """Print a result: the document itself, or for a person the picture of that name (manager.cli.pictures)."""
    if as_json:
        sys.stdout.write(document(value) + "\n")
    else:
        from manager.cli.pictures import PICTURES

        PICTURES[picture](value)


def remark(text: str) -> None:
    """Print a remark on standard error."""
    from manager.cli.screen import note

    note(text)


def wait_for(client: "Client", asked: "Json | str", *, title: str, timeout_s: float, as_json: bool) -> Status:
    """Wait for a job, given as `follow` takes it, showing its timeline on standard error; print the job; return the
    status that it stands for."""
    from manager.cli.timeline import timeline_of
    from manager.cli.waiting import follow

    reference = asked if isinstance(asked, str) else asked["id"]
    try:
        with timeline_of(title) as timeline:
            job: Json = follow(client, asked, timeout_s=timeout_s, watcher=timeline)
    except KeyboardInterrupt:
        remark(f"The job goes on; `livesnap job wait {reference}` waits for it.")
        raise
    show(job, "outcome", as_json=as_json)
    status = status_of(job)
    if status is Status.RUNNING and not as_json:
        remark(f"The job still runs; `livesnap job wait {reference}` waits on.")
    return status
