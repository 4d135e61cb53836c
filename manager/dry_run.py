"""A dry run: what the inventory says, and what the vm's host finds, in one table; nothing is changed.

The host's lines are fresh and go deeper; the inventory's are what a job would be accepted or refused on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, assert_never

from common.ids import HostId
from common.messaging.messages import (
    Answer,
    Check,
    Checked,
    DiskSwitch,
    Failed,
    HostInspected,
    LeavesObserved,
    MergeSeen,
    Refusal,
    Refused,
    VolumesCreated,
    VolumesDeleted,
    VolumesInspected,
)
from common.messaging.surveys import HostSurveyed, StorageSurveyed
from common.preflight import Level, Limits, PreflightLine, of_clock, warning
from manager import preflight
from manager.host_checks import HostChecks, NoAnswer
from manager.preflight import Choice, Facts, SnapshotRequest

MAX_LINES: Final = 1000
MAX_TEXT: Final = 2000
"""Characters of one text; a host's word is cut there (P9)."""

ONLY_INVENTORY: Final = "only the inventory was checked"


class DryRun:
    """Makes the tables. Safe to share between threads."""

    def __init__(self, host_checks: HostChecks, limits: Limits) -> None:
        """Ask hosts by `host_checks`; hold facts against `limits`."""
        self._host_checks = host_checks
        self._limits = limits

    def table(
        self, request: SnapshotRequest, facts: Facts, choice: Choice, disks: tuple[DiskSwitch, ...]
    ) -> tuple[PreflightLine, ...]:
        """Return every line about a snapshot of `disks`. A host that is known to be silent is not asked."""
        lines = tuple(preflight.findings(request, facts, choice, self._limits))
        if facts.place is None or facts.host is None or facts.host.silent:
            return lines
        return merged(lines, self._of_host(facts.place.host, facts, self._question(request, facts, disks)))

    def _of_host(self, host: HostId, facts: Facts, check: Check) -> tuple[PreflightLine, ...]:
        try:
            heard = self._host_checks.ask(host, check)
        except NoAnswer as silent:
            return (warning("host_unreachable", host, f"{silent}; {ONLY_INVENTORY}"),)
        names = {str(id_): known.name for id_, known in facts.storage_domains.items()}
        lines = of_answer(host, heard.answer, {**names, facts.vm: facts.vm_name})
        return (*lines, of_clock(host, heard.clock_ahead, self._limits))

    def _question(self, request: SnapshotRequest, facts: Facts, disks: tuple[DiskSwitch, ...]) -> Check:
        places = {disk.new.storage_domain_id for disk in disks}
        wanted = [known.min_free_bytes for id_, known in facts.storage_domains.items() if id_ in places]
        return Check(
            vm_id=facts.vm,
            disks=disks,
            quiesce=request.quiesce != "never",
            require_quiesce=request.quiesce == "require",
            limits=replace(self._limits, min_free_bytes=max(wanted, default=0)),
        )


def merged(inventory: Sequence[PreflightLine], host: Sequence[PreflightLine]) -> tuple[PreflightLine, ...]:
    """Return one table.

    Of what the host spoke of, the inventory's refusals stay, since a job would be refused by them; its warnings and
    confirmations are out of date.
    """
    said = {(line.subject, line.code) for line in host}
    subjects = {line.subject for line in host}
    kept = [
        line
        for line in inventory
        if line.subject not in subjects or (line.level is Level.REFUSAL and (line.subject, line.code) not in said)
    ]
    return (*kept, *host)


def of_answer(host: HostId, answer: Answer, names: Mapping[str, str]) -> Iterator[PreflightLine]:
    """Yield a host's lines with names for ids, or the one line that says why there are none."""
    match answer:
        case Checked(lines=lines):
            for line in lines[:MAX_LINES]:
                texts = {name: getattr(line, name)[:MAX_TEXT] for name in ("code", "message", "hint")}
                subject = names.get(line.subject, line.subject[:MAX_TEXT])
                yield replace(line, subject=subject, **texts)
        case Failed() | Refused(why=Refusal.NOT_READY):
            message = f"host {host} could not look: {answer.message[:MAX_TEXT]}; {ONLY_INVENTORY}"
            yield replace(warning("host_unreachable", host, message), code=answer.code[:MAX_TEXT] or "host_unreachable")
        case Refused():
            message = f"host {host} did not look ({answer.why}): {answer.message[:MAX_TEXT]}; {ONLY_INVENTORY}"
            yield warning("host_unreachable", host, message)
        case (
            LeavesObserved()
            | VolumesCreated()
            | VolumesDeleted()
            | VolumesInspected()
            | StorageSurveyed()
            | HostSurveyed()
            | HostInspected()
            | MergeSeen()
        ):
            yield warning("host_unreachable", host, f"host {host} answered {answer.op}; {ONLY_INVENTORY}")
        case _:
            assert_never(answer)
