"""What ends a command early, and the exit statuses. Pure; a contract (DESIGN.md section 6)."""

from enum import IntEnum

from common.error_codes import CATALOGUE


class Status(IntEnum):
    """The exit status of a command."""

    DONE = 0
    FAILED = 1
    """The job ended in failure or needs an operator."""
    REFUSED = 2
    """Wrong usage, or refused: no job was created."""
    UNREACHED = 3
    """The server was never reached."""
    RUNNING = 4
    """The job still ran when the waiting ended."""


class CommandFailed(Exception):
    """Ends a command: what the user is told, and the exit status."""

    def __init__(self, code: str, message: str, hint: str = "", *, status: Status = Status.REFUSED) -> None:
        """Look the default hint up under `code`; a code that only a newer server knows has none."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint or (CATALOGUE[code].cure if code in CATALOGUE else "")
        self.status = status


class Unreached(CommandFailed):
    """The server was not reached, or could not deal with the request now: asking again is safe and may help."""

    def __init__(self, message: str, code: str = "server_unreachable", hint: str = "") -> None:
        """Say what was tried; `code` is the server's own when it answered that it cannot answer."""
        super().__init__(code, message, hint, status=Status.UNREACHED)


def status_of(job: dict[str, object]) -> Status:
    """Return the exit status that a job's state stands for."""
    match job["state"]:
        case "completed":
            return Status.DONE
        case "rolled_back" | "needs_operator":
            return Status.FAILED
        case _:
            return Status.RUNNING if job.get("finished_at") is None else Status.FAILED
