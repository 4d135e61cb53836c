"""Where the agents and the guard of a host meet: defaults of the settings and the files of the state folder. Pure."""

from pathlib import Path

DEFAULT_URI = "qemu:///system"
DEFAULT_STATE_DIR = Path("/var/lib/livesnap/host")

LINGER_S = 12.0
"""How long the guard watches a disarmed agent on: three thaws of 3 s each (operations/freeze.py) are over by then."""


def guard_socket(state_dir: Path) -> Path:
    """Return the socket on which the freeze guard listens."""
    return state_dir / "guard.sock"


def guard_lock(state_dir: Path) -> Path:
    """Return the file that the one running guard keeps locked."""
    return state_dir / "guard.lock"


def journal_file(state_dir: Path) -> Path:
    """Return the journal."""
    return state_dir / "journal.db"


def vm_locks_dir(state_dir: Path) -> Path:
    """Return the folder of the lock files, one per vm."""
    return state_dir / "locks"
