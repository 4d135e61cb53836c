"""Every difference between record, storage and machines, the ones that matter most first. Pure."""

from collections.abc import Iterator

from manager.doctor.facts import Facts
from manager.doctor.findings import MEANINGS, Finding
from manager.doctor.lies import of_qemu
from manager.doctor.machines import of_machines
from manager.doctor.rebuild import of_record
from manager.doctor.storage import of_storage
from manager.doctor.view import View

_ORDER = {code: number for number, code in enumerate(MEANINGS)}


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Return what differs, in the order of the catalogue, then by subject. The same facts give the same findings."""
    found = sorted(_all(View(facts)), key=lambda finding: (_ORDER[finding.code], finding.subject, finding.seen))
    return tuple(found)


def _all(view: View) -> Iterator[Finding]:
    for subject, why in view.facts.survey.silent.items():
        yield Finding(code="not_seen", subject=subject, seen=why)
    yield from of_machines(view)
    yield from of_qemu(view)
    yield from of_record(view)
    yield from of_storage(view)
