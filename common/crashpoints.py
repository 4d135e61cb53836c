"""Named crash points for the fault tests: a process can be told to kill or to stop itself exactly there, once.

`LIVESNAP_CRASH_POINTS` names a folder. A point is armed while that folder holds a file of its name, at any time in the
process's life; whoever reaches it renames the file to `<name>.hit` (so one process dies, once, and a test can assert
that the point was hit) and dies by SIGKILL: no handler, no flush, as `kill -9` would. A file `<name>.stop` has it stop
itself by SIGSTOP instead, until somebody continues it: what happens in a window can then be tried without a race.
Without the variable, a point is one comparison. Why names in the code and not tracing: a point must stay in its crash
window when lines move.
"""

import os
import signal
import threading
from typing import Final

_FOLDER: Final = os.environ.get("LIVESNAP_CRASH_POINTS", "")


def reach(name: str) -> None:
    """Die or stop here if this point is armed; otherwise do nothing."""
    if not _FOLDER:
        return
    for armed, number in ((name, signal.SIGKILL), (f"{name}.stop", signal.SIGSTOP)):
        try:
            os.rename(f"{_FOLDER}/{armed}", f"{_FOLDER}/{name}.hit")
        except FileNotFoundError:
            continue
        # To this thread: a signal to the process may be taken by another one, while this one goes on for a moment.
        signal.pthread_kill(threading.get_ident(), number)
