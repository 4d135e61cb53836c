"""An SPM's operation in a process of its own, so that a crash point can kill it: the command comes on standard input.

`python -m tests.integration.spm_child create|delete|merge|finish ROOT ATTEMPT < command as JSON`. Answers with the
number of volumes made or gone, with how far a merge has come, or with an error's code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import TypeAdapter

from common import logs
from common.clock import SystemClock
from common.errors import LivesnapError
from common.images.identity import read_identity
from common.messaging.merging import FinishMerge, MergeState, MergeVolumes
from common.messaging.messages import CreateVolumes, DeleteVolumes
from spm.merges import Merges
from spm.operations.create_volumes import create_volumes
from spm.operations.delete_volumes import delete_volumes
from spm.operations.merge_volumes import finish_merge, merge_volumes
from spm.pool import Pool


def main() -> str:
    """Carry the command out as an SPM that has just started: it takes the lease first."""
    logs.configure(log_format="text", process="spm_child")
    verb, root, attempt = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    pool = Pool(read_identity(root).pool, {"main": root})
    pool.wait_for_leases()
    text = sys.stdin.read()
    try:
        if verb == "create":
            creation = TypeAdapter(CreateVolumes).validate_json(text)
            return str(len(create_volumes(creation, attempt, pool, min_free_bytes=0).created))
        if verb == "merge":
            return _merged(TypeAdapter(MergeVolumes).validate_json(text), attempt, pool)
        if verb == "finish":
            finish = TypeAdapter(FinishMerge).validate_json(text)
            return str(len(finish_merge(finish, attempt, pool, SystemClock()).gone))
        deletion = TypeAdapter(DeleteVolumes).validate_json(text)
        return str(len(delete_volumes(deletion, attempt, pool, SystemClock()).gone))
    except LivesnapError as error:
        return error.code


def _merged(command: MergeVolumes, attempt: int, pool: Pool) -> str:
    """Ask again until nothing runs any more."""
    merges = Merges()
    while (seen := merge_volumes(command, attempt, pool, merges, min_free_bytes=0)).state is MergeState.RUNNING:
        pass  # each look waits a moment itself
    return seen.state.value


if __name__ == "__main__":
    sys.stdout.write(main())
