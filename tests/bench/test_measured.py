"""One bench after the other: what cannot run here, what breaks, and what is not written yet."""

from collections.abc import Iterator

import pytest

from tests.bench.__main__ import BENCHES as ALL
from tests.bench.__main__ import Bench, measured
from tests.bench.row import Row, Verdict


def works(*, quick: bool, times: float) -> Iterator[Row]:
    yield Row(key="works", ours=[times, 2 * times if quick else times])
    yield Row(key="more/a", ours=[times])


def breaks(*, quick: bool, times: float) -> Iterator[Row]:
    yield from works(quick=quick, times=times)
    raise RuntimeError("no guest has booted")


BENCHES = (
    Bench(rows=works, keys=("works", "more"), needs=()),
    Bench(rows=breaks, keys=("breaks",), needs=()),
    Bench(rows=works, keys=("lacks",), needs=("no-such-program",)),
)


def rows(only: str) -> list[Row]:
    return list(measured(BENCHES, only, quick=True, times=3))


def test_what_breaks_keeps_its_rows_and_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows("")
    assert [(row.key, row.failed) for row in found] == [
        ("works", False),
        ("more/a", False),
        ("works", False),
        ("more/a", False),
        ("breaks", True),
        ("lacks", False),
    ]
    assert found[0].ours == [3, 6]
    assert "no guest has booted" in found[4].why_not
    assert "no guest has booted" in capsys.readouterr().err
    assert "no-such-program" in found[5].why_not
    assert all(row.verdict is Verdict.NOT_MEASURED and row.why_not for row in found[4:])


def test_only_some() -> None:
    assert [row.key for row in rows("work")] == ["works", "more/a"]
    assert [row.key for row in rows("more/a")] == ["works", "more/a"]
    assert [row.key for row in rows("lacks")] == ["lacks"]
    assert rows("nothing-of-that-name") == []


def test_every_row_of_the_issue_has_its_bench() -> None:
    wanted = ["latency/1-disk", "latency/8-disk", "burst", "command-line", "live-merge", "recovery", "idle", "fleet"]
    wanted += [f"window/{disks}-disk-{load}" for disks in (1, 4, 8) for load in ("writer", "idle")]
    wanted += ["saga-throughput/redis", "saga-throughput/rabbitmq", "inventory"]
    assert [key for key in wanted if not any(bench.is_wanted(key) for bench in ALL)] == []
