"""`livesnap job log` on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.ids import new_id
from tests.integration.front_kit import Front, front
from tests.integration.manager_kit import vm


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Front]:
    with front(tmp_path) as served:
        served.fleet.report_spm()
        served.fleet.report_host(vm("web1"))
        yield served


def test_a_jobs_log_lines_are_found_in_the_logs_that_are_named(api: Front, tmp_path: Path) -> None:
    job = api.fleet.create("web1")
    line = {"at": "2026-11-26T12:00:00.000000Z", "level": "info", "event": "made", "process": "spm.default"}
    (tmp_path / "spm.log").write_text(json.dumps({**line, "job": job.id, "volumes": 1}) + "\n" + json.dumps(line))
    shown = api.livesnap("job", "log", job.id[:8], "--from", str(tmp_path), "--json")
    assert (shown.status, [each["event"] for each in shown.json]) == (0, ["made"])
    for_people = api.livesnap("job", "log", job.id, "--from", str(tmp_path / "spm.log"))
    assert "volumes=1" in for_people.out
    assert api.livesnap("job", "log", job.id).status == 2
    assert api.livesnap("job", "log", job.id, "--from", str(tmp_path / "none.log")).status == 2
    assert api.livesnap("job", "log", new_id(), "--from", str(tmp_path)).status == 2
