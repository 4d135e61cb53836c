"""`livesnap doctor`"""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manager.cli.common import AsJson, connected, remark, show
from manager.cli.failures import Status

if TYPE_CHECKING:
    from manager.cli.client import Client, Json

PATH = "/v1/doctor"
LOOK_LIMIT_S = 120.0
"""Every host and storage domain of a fleet is asked, some of them at a time, each for some seconds at most."""
MAX_ROUNDS = 20
"""A machine's repairs are begun one after the other; each round looks at everything anew."""


def doctor(
    context: typer.Context,
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Carry out what is provably safe.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for repairs; they go on afterwards.")] = 600,
    as_json: AsJson = False,
) -> int:
    """Compare database, storage and live machines; say what differs, what it means, and the plan."""
    client = connected(context)
    if not repair:
        report = client.get_slow(PATH, limit_s=LOOK_LIMIT_S)
        show(report, "diagnosis", as_json=as_json)
        return _status(report)
    done, report, running = _repair(client, time.monotonic() + timeout)
    show({"done": done, **report}, "repairs", as_json=as_json)
    return Status.RUNNING if running else _status(report)


def _status(report: "Json") -> Status:
    return Status.FAILED if report["findings"] else Status.DONE


def _repair(client: "Client", deadline: float) -> "tuple[list[Json], Json, bool]":
    """Begin repairs and wait for them, until none is begun any more that was not tried before.

    Return what was done (findings, each with its job as it ended), the last report, and whether a job still runs.
    """
    done: list[Json] = []
    tried: set[tuple[str, str]] = set()
    for _ in range(MAX_ROUNDS):
        report = client.post(PATH, limit_s=LOOK_LIMIT_S)
        begun = [finding for finding in report["findings"] if finding["job"]]
        ended = [{**finding, "job": _ended(client, finding["job"], deadline)} for finding in begun]
        done += ended
        if any(not finding["job"]["finished_at"] for finding in ended):
            return done, client.get_slow(PATH, limit_s=LOOK_LIMIT_S), True
        named = {(finding["code"], finding["subject"]) for finding in begun}
        if named <= tried:
            break
        tried |= named
    return done, client.get_slow(PATH, limit_s=LOOK_LIMIT_S), False


def _ended(client: "Client", job_id: str, deadline: float) -> Any:
    """Return a job when it is over or needs an operator, or as it is when the time is up."""
    from manager.cli.waiting import follow

    return follow(client, job_id, timeout_s=max(0.0, deadline - time.monotonic()), watcher=_Remarks())


class _Remarks:
    """Shows the steps of a repair as remarks."""

    def step(self, entry: "Json") -> None:
        """Show one new entry of the timeline."""
        remark(str(entry["detail"]))

    def waiting(self, what: str) -> None:
        """Show what the job waits for."""
        if what:
            remark(f"waiting for {what}")

    def trouble(self, what: str) -> None:
        """Show that the server is out of reach."""
        remark(what)
