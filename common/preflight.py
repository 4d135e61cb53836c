"""The lines of a preflight table, and the rules that Manager and host share. Pure.

Three levels: a refusal is what a job would be refused with, a warning is what its owner should know, ok says what was
seen. A rule yields nothing where there is nothing to say.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from common.error_codes import CATALOGUE
from common.messaging.reports import DiskReport
from common.units import GIB


class Level(StrEnum):
    """How much a line weighs."""

    OK = "ok"
    WARNING = "warning"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightLine:
    """One row of the preflight table: what it is about, a stable code ('' for ok), a sentence, and what to do."""

    level: Level
    subject: str
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a machine is held against. The Manager's settings, sent along, so that a fleet has one set of them.

    Depths count the volumes of one disk's chain as it is before the snapshot, the leaf included. `min_free_bytes` is
    the SPM's limit for making a volume; 0 where one has been made.
    """

    deep_chain: int = 20
    max_chain: int = 40
    low_space_bytes: int = GIB
    min_free_bytes: int = 0
    clock_warning_s: float = 5.0


DEFAULT_LIMITS: Final = Limits()
"""For what an older Manager has sent or stored."""


def fine(subject: str, message: str) -> PreflightLine:
    """Return what was seen and is as it should be."""
    return PreflightLine(level=Level.OK, subject=subject, code="", message=message, hint="")


def warning(code: str, subject: str, message: str) -> PreflightLine:
    """Return a warning with the catalogue's hint."""
    return PreflightLine(level=Level.WARNING, subject=subject, code=code, message=message, hint=CATALOGUE[code].cure)


def refused(code: str, subject: str, message: str) -> PreflightLine:
    """Return a refusal with the catalogue's hint."""
    return PreflightLine(level=Level.REFUSAL, subject=subject, code=code, message=message, hint=CATALOGUE[code].cure)


def of_error_policy(disk: DiskReport) -> Iterator[PreflightLine]:
    """Say which failing writes nobody would notice in time.

    Only `stop` pauses the machine at every failed write, so that it can be put back on its previous volume with nothing
    lost. QEMU's default does so for a full storage alone, `report` and `ignore` never (measured: the guest gets the
    error, and the write is lost for it).
    """
    match disk.error_policy:
        case "stop":
            return
        case "" | "enospace":
            seen = "a failing write (EIO) is reported to the guest instead of pausing the machine"
        case policy:
            seen = f"error_policy {policy[:40]!a}: no failing write pauses the machine, not even on a full storage"
    yield warning("disk_error_policy", disk.target, f"disk {disk.target}: {seen}")


def of_depth(target: str, depth: int, limits: Limits) -> Iterator[PreflightLine]:
    """Hold a chain against the limits: with relative names, each layer makes the switch inside the freeze slower."""
    if depth >= limits.max_chain:
        message = f"disk {target} has a chain of {depth} volumes, the limit is {limits.max_chain}"
        yield refused("chain_too_deep", target, message)
    elif depth >= limits.deep_chain:
        message = f"disk {target} has a chain of {depth} volumes; from {limits.max_chain} on snapshots are refused"
        yield warning("chain_deep", target, message)


def of_space(subject: str, free_bytes: int, limits: Limits) -> PreflightLine:
    """Say how much room is left for what machines write next: QEMU pauses one that finds none."""
    if free_bytes < limits.min_free_bytes:
        seen = f"{mebibytes(free_bytes)} free; below {mebibytes(limits.min_free_bytes)} the SPM makes no volume"
        return refused("storage_full", subject, seen)
    if free_bytes < limits.low_space_bytes:
        seen = f"{mebibytes(free_bytes)} free, below the {mebibytes(limits.low_space_bytes)} of the settings"
        return warning("storage_low", subject, seen)
    return fine(subject, f"{mebibytes(free_bytes)} free")


def of_clock(host: str, ahead: timedelta, limits: Limits) -> PreflightLine:
    """Say by how much a host's clock is proven to differ from the Manager's; negative: it is behind.

    A message shows only one direction, since it may have waited on its queue: an answer from the future proves a clock
    that is ahead, a command from the future one that is behind.
    """
    seconds = ahead.total_seconds()
    if abs(seconds) <= limits.clock_warning_s:
        within = f"{limits.clock_warning_s:g} s"
        return fine(host, f"its clock is not seen to differ from the Manager's by more than {within}")
    which = "ahead of" if seconds > 0 else "behind"
    return warning("clock_skew", host, f"the clock of host {host} is {abs(seconds):.1f} s {which} the Manager's")


def mebibytes(size_bytes: int) -> str:
    """Return a size as a sentence has it."""
    return f"{size_bytes / 2**20:,.0f} MiB"
