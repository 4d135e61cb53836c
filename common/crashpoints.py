"""Named crash points for the fault tests: a process can be told to kill itself exactly there, once.

`LIVESNAP_CRASH_POINT=<name>=<marker file>` arms one point of one process; when execution reaches it and the marker
does not exist, the marker is written (so that a test can assert that the point was hit, and a restarted process goes
on) and the process dies by SIGKILL: no handler, no flush, as `kill -9` would. Unarmed, `reach` is one dictionary-free
string comparison. Why by name in the code and not by tracing: a point must stay where its crash window is when lines
move.
"""

import os
import signal
from pathlib import Path

_ARMED, _, _MARKER = os.environ.get("LIVESNAP_CRASH_POINT", "").partition("=")


def reach(name: str) -> None:
    """Die here by SIGKILL if this point is armed and has not been hit before; otherwise do nothing."""
    if name != _ARMED:
        return
    marker = Path(_MARKER)
    try:
        with marker.open("x") as file:
            file.write(f"{os.getpid()}\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
