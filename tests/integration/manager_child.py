"""Dies by SIGKILL before the first, the second, … statement of one operation, until it lives through all of them.

`python -m tests.integration.manager_child OPERATION URL FOLDER` forks for each try (it has no threads yet), and after
each death compares every row of every table with what was there before: nothing may have changed, or, once the commit
is passed, everything. It prints how many deaths left no trace, or ends with an AssertionError that names the statement.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import event, select

from common.clock import SystemClock
from manager.flows.base import TimedOut
from manager.store.session import Database
from manager.store.tables import metadata
from tests.integration.manager_kit import Fleet, created, fleet_on, vm


def operate(fleet: Fleet, operation: str) -> None:
    """Do the one thing whose every statement is a place to die."""
    match operation:
        case "create":
            fleet.create("web1", name="n", idempotency_key="k")
        case "answer":
            [asked] = fleet.unanswered()
            assert fleet.answer(created(asked), command=asked)
        case "timeout":
            [asked] = fleet.unanswered()
            assert asked.job is not None
            assert fleet.conductor.apply(asked.job, TimedOut())
        case "report":
            fleet.report_host(vm("web1"), vm("web3"), sequence=99)
        case _:
            raise ValueError(operation)


def die_before(database: Database, number: int) -> None:
    """Arm the database: the statement of this number (a commit counts as one) is never reached."""
    seen = count(1)

    def step(*_: Any) -> None:
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(database.engine, "before_cursor_execute", step)
    event.listen(database.engine, "commit", step)


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table."""
    database = Database(url)
    with database.read() as connection:
        rows = {table.name: sorted(map(tuple, connection.execute(select(table)))) for table in metadata.tables.values()}
    database.close()
    return rows


def survived(operation: str, url: str, folder: Path, number: int) -> bool:
    """Try it in a process of its own; tell whether that lived to its end."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with fleet_on(url, folder, SystemClock()) as fleet:
        die_before(fleet.database, number)
        operate(fleet, operation)
    os._exit(0)


def main() -> None:
    """Die and compare, until the operation comes through; what follows its commit only reads, so that is all of it."""
    operation, url, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    seen, without_trace = [everything(url)], 0
    for number in count(1):
        lived = survived(operation, url, folder, number)
        now = everything(url)
        if now not in seen:
            seen.append(now)
        assert len(seen) <= 2, f"dead before statement {number}, and a part was left"
        assert now == seen[-1], f"dead before statement {number}, and what was committed is gone"
        if lived:
            assert len(seen) == 2, "the operation came through and did nothing"
            print(without_trace)  # noqa: T201  (its answer to the test)
            return
        without_trace += len(seen) == 1


if __name__ == "__main__":
    main()
