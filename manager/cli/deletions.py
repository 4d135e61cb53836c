"""`livesnap snapshot delete …`"""

import uuid
from typing import Annotated

import typer

from manager.cli.common import AsJson, Timeout, Wait, connected, remark, show, wait_for
from manager.cli.failures import Status

MIB = 2**20


def delete(
    context: typer.Context,
    snapshots: Annotated[
        list[str], typer.Argument(metavar="SNAPSHOT…", help="Ids, VM/NAME, or names where they are unique; of one VM.")
    ],
    *,
    bandwidth: Annotated[
        int, typer.Option(min=0, max=2**30, metavar="MIB", help="Copy at most so many MiB a second; 0: no limit.")
    ] = 0,
    wait: Wait = True,
    timeout: Timeout = 600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of which volume.")] = False,
    as_json: AsJson = False,
) -> int:
    """Delete snapshots: their data is merged into the volume below, while the machine runs or is stopped."""
    from manager.cli.client import retried
    from manager.cli.waiting import REACH_LIMIT_S

    client, key = connected(context), str(uuid.uuid4())
    body = {"snapshots": snapshots, "bytes_per_s": bandwidth * MIB, "dry_run": dry_run}
    limit_s = min(timeout, REACH_LIMIT_S)
    answer = retried(lambda: client.post("/v1/snapshots/delete", body, key=key), limit_s=limit_s, note=remark)
    if dry_run:
        show(answer, "deletions", as_json=as_json)
        return Status.DONE
    if wait:
        title = f"deleting {', '.join(snapshots)}"
        return wait_for(client, answer, title=title, timeout_s=timeout, as_json=as_json)
    show(answer, "outcome", as_json=as_json)
    return Status.DONE
