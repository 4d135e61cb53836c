"""What a job says that it waits for."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from manager.waiting import OVERDUE, Outstanding, Standing, waiting_for

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = Outstanding(queue="host.h1", sent_at=NOW, publish_error="")
AT_WORK = Standing(
    label="pivoting",
    host="h1",
    code="",
    message="",
    finished=False,
    libvirt_down=False,
    host_seen_at=NOW,
    outstanding=ASKED,
)
SILENT = replace(AT_WORK, label="awaiting_host", message="it is silent")
LATE = NOW + OVERDUE + timedelta(milliseconds=1)

CASES = [
    ("", AT_WORK, NOW),
    ("host h1", AT_WORK, LATE),
    ("the SPM of pool p", replace(AT_WORK, outstanding=replace(ASKED, queue="spm.p")), LATE),
    ("the message broker", replace(AT_WORK, outstanding=replace(ASKED, publish_error="refused")), NOW),
    ("libvirt on host h1", replace(AT_WORK, libvirt_down=True), NOW),
    ("", replace(AT_WORK, libvirt_down=True, outstanding=replace(ASKED, queue="spm.p")), NOW),
    ("libvirt on host h1", replace(AT_WORK, code="libvirt_unavailable", outstanding=None), NOW),
    ("host h1, last heard at 2026-01-01 00:00:00 UTC: it is silent", SILENT, LATE),
    ("host h1, never heard: it is silent", replace(SILENT, host_seen_at=None), LATE),
    ("the SPM is not ready", replace(AT_WORK, message="the SPM is not ready", outstanding=None), NOW),
    ("an operator: mixed", replace(AT_WORK, label="needs_operator", message="mixed", outstanding=None), NOW),
    ("", replace(AT_WORK, label="rolled_back", message="why", finished=True, outstanding=None), LATE),
]


@pytest.mark.parametrize(("said", "job", "now"), CASES)
def test_a_job_says_what_it_waits_for(said: str, job: Standing, now: datetime) -> None:
    assert waiting_for(job, now) == said
