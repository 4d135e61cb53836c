"""Death between any two statements of the Manager leaves what was there before: one transaction, one step."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import update

from common.clock import SystemClock
from manager.store.session import Database
from manager.store.tables import jobs
from tests.integration.manager_kit import Fleet, vm
from tests.integration.manager_processes import PROJECT

pytest_plugins = ["tests.databases"]


POSTGRES = [pytest.mark.needs("postgres")]
OPERATIONS = (("create", 12), ("answer", 9), ("timeout", 7), ("report", 7))
"""Each with the least number of statements that it has."""


@pytest.mark.parametrize(
    ("database_url", "operation", "at_least"),
    [
        *(pytest.param("sqlite", *operation) for operation in OPERATIONS),
        pytest.param("postgres", "answer", 9, marks=POSTGRES),
        *(
            pytest.param("postgres", *each, marks=[*POSTGRES, pytest.mark.matrix])
            for each in OPERATIONS
            if each[0] != "answer"
        ),
    ],
    indirect=["database_url"],
)
def test_dying_before_any_statement_leaves_no_trace(
    database: Database, database_url: str, tmp_path: Path, operation: str, at_least: int
) -> None:
    clock = SystemClock()
    fleet = Fleet(database, tmp_path, clock)
    fleet.report_spm()
    fleet.report_host(vm("web1"), vm("web2"))
    if operation in ("answer", "timeout"):
        fleet.create("web1")
    if operation == "timeout":
        with database.write() as connection:
            connection.execute(update(jobs).values(wake_at=clock.now()))
    words = [sys.executable, "-m", "tests.integration.manager_child", operation, database_url, str(tmp_path)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.splitlines()[-1]) >= at_least
