"""Named crash points for the fault tests: a process can be told to kill itself exactly there, once.

`LIVESNAP_CRASH_POINTS` names a folder. A point is armed while that folder holds a file of its name, at any time in the
process's life; whoever reaches it renames the file to `<name>.hit` (so one process dies, once, and a test can assert
that the point was hit) and dies by SIGKILL: no handler, no flush, as `kill -9` would. Without the variable, a point is
one comparison. Why names in the code and not tracing: a point must stay in its crash window when lines move.
"""

import os
import signal
from typing import Final

_FOLDER: Final = os.environ.get("LIVESNAP_CRASH_POINTS", "")


def reach(name: str) -> None:
    """Die here by SIGKILL if this point is armed; otherwise do nothing."""
    if not _FOLDER:
        return
    try:
        os.rename(f"{_FOLDER}/{name}", f"{_FOLDER}/{name}.hit")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
