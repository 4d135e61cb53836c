"""`livesnap job …`"""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from manager.cli.common import AsJson, JobRef, connected, new_group, show, wait_for
from manager.cli.failures import CommandFailed
from manager.cli.session import Session, segment

group = new_group("What livesnap is doing and has done.")


@group.command("list")
def list_jobs(
    context: typer.Context,
    vm: Annotated[str | None, typer.Option(help="Only jobs of this machine.")] = None,
    active: Annotated[bool, typer.Option("--active", help="Only jobs that have not ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs, newest first."""
    query = {name: value for name, value in (("vm", vm), ("active", "true" if active else None)) if value is not None}
    found = connected(context).get("/v1/jobs", **query)
    show(found, "jobs", as_json=as_json)


@group.command("show")
def show_job(context: typer.Context, job: JobRef, as_json: AsJson = False) -> None:
    """Show a job: its state, timeline and attempts."""
    found = connected(context).get(f"/v1/jobs/{segment(job)}")
    show(found, "job", as_json=as_json)


@group.command("wait")
def wait_job(
    context: typer.Context,
    job: JobRef,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait; the job goes on afterwards.")] = 600,
    as_json: AsJson = False,
) -> int:
    """Wait until a job is over or needs an operator, showing its timeline."""
    client = connected(context)
    return wait_for(client, job, title=f"job {job}", timeout_s=timeout, as_json=as_json)


@group.command("log")
def job_log(
    context: typer.Context,
    job: JobRef,
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", help="A log, a folder of logs, or - for standard input; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one job's log lines of all processes, in order: of a standalone instance, or of the logs named by --from."""
    from manager.cli.log_lines import Wanted, collected

    sources = source or [(context.find_object(Session) or Session()).logs()]
    found = connected(context).get(f"/v1/jobs/{segment(job)}")
    began, ended = (found[name] and datetime.fromisoformat(found[name]) for name in ("created_at", "finished_at"))
    wanted = Wanted(job=found["id"], vm=found["vm"], began=began, ended=ended)
    try:
        lines = collected(sources, wanted)
    except OSError as error:
        raise CommandFailed("request_malformed", f"reading the logs: {error}", "Correct --from.") from error
    show(lines, "log", as_json=as_json)


@group.command("cancel")
def cancel_job(context: typer.Context, job: JobRef, as_json: AsJson = False) -> None:
    """Ask a job to end without its effect, if that is still possible."""
    found = connected(context).post(f"/v1/jobs/{segment(job)}/cancel")
    show(found, "job", as_json=as_json)


@group.command("resolve")
def resolve_job(
    context: typer.Context,
    job: JobRef,
    host_was_rebooted: Annotated[
        bool, typer.Option("--host-was-rebooted", help="Say that the job's host was rebooted since.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a job that waits for a host or an operator ask again. It deletes nothing and proves nothing.

    That the host was rebooted is refused while one of its agents lives.
    """
    found = connected(context).post(f"/v1/jobs/{segment(job)}/resolve", {"host_was_rebooted": host_was_rebooted})
    show(found, "job", as_json=as_json)
