"""Values to JSON text and back, for the columns that are only ever read whole.

What is read here was written here, by this or an older version; a text that does not fit raises ValueError, and then
the job stands still and says so in the log instead of going on from a guess.
"""

from functools import cache
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter

from common.messaging.messages import Answer, LeavesObserved
from common.messaging.reports import MountReport, VmReport
from common.receipt import Receipt
from manager.flows import FLOWS
from manager.views import ExcludedDisk

ANSWER: Final[TypeAdapter[Answer]] = TypeAdapter(Annotated[Answer, Field(discriminator="op")])
VM_REPORT: Final = TypeAdapter(VmReport)
MOUNTS: Final = TypeAdapter(tuple[MountReport, ...])
EXCLUDED: Final = TypeAdapter(tuple[ExcludedDisk, ...])
RECEIPT: Final = TypeAdapter(Receipt)
NAMES: Final = TypeAdapter(tuple[str, ...])


@cache
def state_adapter(kind: str) -> TypeAdapter[Any]:
    """Return what reads and writes the states of one kind of job. Raises ValueError for a kind that is not known."""
    if kind not in FLOWS:
        raise ValueError(f"this version knows no kind of job {kind!r}")
    states: Any = Annotated[FLOWS[kind].states, Field(discriminator="kind")]
    return TypeAdapter(states)


def dump(adapter: TypeAdapter[Any], value: object) -> str:
    """Return `value` as JSON text; raises if it is not of the adapter's type."""
    return adapter.dump_json(value, warnings="error").decode()


def outcome_of(answer: Answer) -> tuple[str, str]:
    """Return an answer's outcome in one word and the reason beside it, as a job's attempts show them."""
    match answer:
        case LeavesObserved():
            return answer.outcome.value, answer.message
        case _:
            why = getattr(answer, "why", "")
            return (str(why) or getattr(answer, "code", "") or answer.op), getattr(answer, "message", "")
