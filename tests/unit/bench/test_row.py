"""Verdicts, the comparison with earlier figures, and the table."""

from dataclasses import replace
from typing import Any

import pytest

from tests.bench.compare import Change, change, kept
from tests.bench.row import Row, Target, Verdict
from tests.bench.table import table

ROW = Row(key="latency/1", ours=[14, 15, 16] * 10, floor=[10] * 30)
NOTHING = Row(key="merge", why_not="there is no live merge yet")


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        pytest.param(Target(measure="ratio", limit=1.7), Verdict.MET, id="ratio-met"),
        pytest.param(Target(measure="ratio", limit=1.2), Verdict.MISSED, id="ratio-missed"),
        pytest.param(Target(measure="ratio", limit=1.5), Verdict.OPEN, id="within-the-spread"),
        pytest.param(Target(measure="ratio", limit=1.2, at_least=True), Verdict.MET, id="at-least-met"),
        pytest.param(Target(measure="ratio", limit=1.7, at_least=True), Verdict.MISSED, id="at-least-missed"),
        pytest.param(Target(measure="more", limit=35), Verdict.MET, id="more"),
        pytest.param(Target(measure="more", limit=2), Verdict.MISSED, id="too-much-more"),
        pytest.param(Target(measure="median", limit=100), Verdict.MET, id="median"),
        pytest.param(Target(measure="p95", limit=13), Verdict.MISSED, id="p95"),
    ],
)
def test_a_target(target: Target, verdict: Verdict) -> None:
    row = replace(ROW, targets=[target])
    assert row.verdict is verdict
    assert row.as_json()["targets"] == {str(target): str(verdict)}


def test_the_worst_verdict_counts() -> None:
    met, missed = Target(measure="ratio", limit=1.7), Target(measure="more", limit=2)
    assert replace(ROW, targets=[met, missed]).verdict is Verdict.MISSED
    assert ROW.verdict is Verdict.REPORTED
    assert replace(NOTHING, targets=[met]).verdict is Verdict.NOT_MEASURED


def test_figures_without_any_spread_are_decided_at_the_limit() -> None:
    assert replace(ROW, ours=[14] * 30, targets=[Target(measure="ratio", limit=1.4)]).verdict is Verdict.MET


def was(low: float, high: float, *, is_ratio: bool = True) -> dict[str, Any]:
    figure = {"value": (low + high) / 2, "low": low, "high": high}
    return {ROW.key: {"figure": figure, "is_ratio": is_ratio, "runs": 9, "verdict": "met"}}


@pytest.mark.parametrize(
    ("previous", "more_is_better", "expected"),
    [
        pytest.param(was(1.0, 1.1), False, "worse", id="higher"),
        pytest.param(was(2.0, 2.1), False, "better", id="lower"),
        pytest.param(was(1.0, 1.1), True, "better", id="more-throughput"),
        pytest.param(was(2.0, 2.1), True, "worse", id="less-throughput"),
        pytest.param(was(1.3, 1.7), False, "same", id="touching"),
        pytest.param(was(1.42, 1.44), False, "same", id="too-little"),
        pytest.param(was(1.35, 1.39), False, "same", id="no-more-than-runs-differ"),
        pytest.param({}, False, "new", id="never-measured"),
        pytest.param(was(1.0, 1.1, is_ratio=False), False, "new", id="measured-otherwise"),
    ],
)
def test_a_change(previous: dict[str, Any], more_is_better: bool, expected: Change) -> None:
    assert change(replace(ROW, more_is_better=more_is_better), previous) == expected


ALONE = replace(ROW, floor=(), ours=[14, 15, 16] * 10)


@pytest.mark.parametrize(
    ("was_ms", "was_pace_ms", "pace_ms", "expected"),
    [
        pytest.param(10.0, 20.0, 20.0, "worse", id="as-fast-a-machine"),
        pytest.param(10.0, 20.0, 30.0, "same", id="a-slower-machine"),
        pytest.param(10.0, 20.0, 15.0, "worse", id="a-faster-machine"),
        pytest.param(20.0, 20.0, 20.0, "better", id="better"),
        pytest.param(20.0, 20.0, 13.0, "same", id="better-by-the-machine"),
        pytest.param(15.0, 20.0, 10.0, "same", id="a-fixed-time-on-a-faster-machine"),
        pytest.param(10.0, 0.0, 30.0, "worse", id="nobody-looked"),
    ],
)
def test_a_figure_without_a_floor_is_measured_by_the_machine(
    was_ms: float, was_pace_ms: float, pace_ms: float, expected: Change
) -> None:
    previous = was(was_ms - 0.5, was_ms + 0.5, is_ratio=False)
    previous[ROW.key]["pace_ms"] = was_pace_ms
    assert change(replace(ALONE, pace_ms=pace_ms), previous) == expected


MACHINE = {"at": "2026-01-01 00:00 UTC", "load_at_start": (0.5, 0, 0), "load_at_end": (1.25, 0, 0)}


def test_what_is_kept_compares_as_the_same() -> None:
    previous = kept([ROW, NOTHING], MACHINE)
    assert set(previous) == {ROW.key}
    assert change(ROW, previous) == "same"
    assert change(replace(ROW, ours=(), floor=()), previous) == "gone"


def test_the_table_says_what_was_measured_and_what_was_not() -> None:
    targets = [Target(measure="ratio", limit=1.2)]
    measured = replace(ROW, targets=targets, steps={"freeze": 3.21}, notes=["as seen by the guest"])
    said = table([measured, replace(ROW, key="fleet", simulated=True), NOTHING], {})
    lines = said.splitlines()
    assert "1.50 [" in lines[1]
    assert "missed" in lines[1]
    assert "ratio ≤ 1.2: missed (1.5)" in lines[2]
    assert "freeze 3.2" in said
    assert "as seen by the guest" in said
    assert "fleet (simulated)" in said
    assert lines[-2].startswith("merge")
    assert "not measured" in lines[-2]
    assert lines[-1] == "    why: there is no live merge yet"


def test_the_table_compares() -> None:
    assert "1.05: worse" in table([ROW], was(1.0, 1.1))
    assert "1.05: gone" in table([replace(ROW, ours=(), floor=(), why_not="no guest")], was(1.0, 1.1))
