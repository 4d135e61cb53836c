"""libvirt's errors in our words. Pure: the numbers are libvirt's ABI (virErrorNumber, virErrorDomain).

An error is not an outcome (P3). Only what is known to have changed nothing becomes HypervisorError; the rest, and all
that is not recognised, is OutcomeUnknown, which makes the caller look.
"""

from dataclasses import dataclass

from common.errors import HypervisorError, OutcomeUnknown

INTERNAL_ERROR = 1
NO_SUPPORT = 3
INVALID_ARG = 8
XML_ERROR = 27
OPERATION_DENIED = 29
NO_VM = 42
OPERATION_INVALID = 55
CONFIG_UNSUPPORTED = 67
ARGUMENT_UNSUPPORTED = 74
BLOCK_JOB_ACTIVE = 83
OPERATION_UNSUPPORTED = 84
AGENT_UNRESPONSIVE = 86
ACCESS_DENIED = 88
FROM_RPC = 7

_CODES = {NO_VM: "vm_not_found", OPERATION_INVALID: "vm_state_changed", BLOCK_JOB_ACTIVE: "vm_busy"}
# 9 (operation failed) and 38 (system error) are no members: both are also said when the vm dies under a call.
_REFUSALS = frozenset(
    {
        NO_SUPPORT,
        INVALID_ARG,
        XML_ERROR,
        OPERATION_DENIED,
        CONFIG_UNSUPPORTED,
        ARGUMENT_UNSUPPORTED,
        OPERATION_UNSUPPORTED,
        ACCESS_DENIED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtError:
    """What libvirt said: number, the part of libvirt that said it, and its words."""

    number: int
    origin: int
    text: str


def translated(error: LibvirtError, *, action: str, vm: str, refused: str) -> HypervisorError:
    """Return our error for libvirt's: HypervisorError with code `refused`, or a code of its own, or OutcomeUnknown."""
    message = f"{action} of vm {vm}: libvirt said {error.number}/{error.origin}: {error.text}"
    if error.origin == FROM_RPC:
        return OutcomeUnknown("pivot_unknown", message)
    if error.number in _CODES:
        return HypervisorError(_CODES[error.number], message)
    # Number 1 covers opposite cases; only QEMU's or the agent's own "no" is a known one.
    answered = error.number == INTERNAL_ERROR and "unable to execute QEMU" in error.text
    if answered or error.number in _REFUSALS:
        return HypervisorError(refused, message)
    return OutcomeUnknown("pivot_unknown", message)
