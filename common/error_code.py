"""One error code: when it appears, why, and what to do. Pure."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["refused", "job", "process", "warning"]
"""`refused`: no job was created. `job`: a job ended with it. `process`: a livesnap process says it of itself.
`warning`: a check says it; nothing is refused because of it."""


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One stable code. `status` is its HTTP status when a request is refused with it."""

    phase: Phase
    status: int
    cause: str
    cure: str
