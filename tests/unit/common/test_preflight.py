"""The rules that Manager and host share, each at its edges."""

from datetime import timedelta

import pytest

from common.messaging.reports import DiskReport
from common.preflight import Level, Limits, of_clock, of_depth, of_error_policy, of_space

LIMITS = Limits(deep_chain=3, max_chain=5, low_space_bytes=100, min_free_bytes=10, clock_warning_s=2)


def disk(error_policy: str) -> DiskReport:
    return DiskReport(
        target="vda",
        device="disk",
        source_type="file",
        bus="virtio",
        format="qcow2",
        source="/s/a",
        persistent_source="/s/a",
        error_policy=error_policy,
    )


@pytest.mark.parametrize(("policy", "warned"), [("stop", 0), ("", 1), ("enospace", 1), ("report", 1), ("ignore", 1)])
def test_only_the_policy_stop_keeps_what_a_guest_writes(policy: str, warned: int) -> None:
    lines = list(of_error_policy(disk(policy)))
    assert [(line.level, line.subject, line.code) for line in lines] == warned * [
        (Level.WARNING, "vda", "disk_error_policy")
    ]
    assert all("'stop'" in line.hint for line in lines)


@pytest.mark.parametrize(
    ("depth", "found"),
    [(0, []), (2, []), (3, ["chain_deep"]), (4, ["chain_deep"]), (5, ["chain_too_deep"]), (200, ["chain_too_deep"])],
)
def test_depth(depth: int, found: list[str]) -> None:
    lines = list(of_depth("vda", depth, LIMITS))
    assert [line.code for line in lines] == found
    assert all((line.level is Level.REFUSAL) == (line.code == "chain_too_deep") for line in lines)


@pytest.mark.parametrize(
    ("free", "level", "code"),
    [
        (9, Level.REFUSAL, "storage_full"),
        (10, Level.WARNING, "storage_low"),
        (99, Level.WARNING, "storage_low"),
        (100, Level.OK, ""),
    ],
)
def test_room(free: int, level: Level, code: str) -> None:
    line = of_space("main", free, LIMITS)
    assert (line.level, line.code) == (level, code)


@pytest.mark.parametrize(("seconds", "words"), [(2, ""), (-2, ""), (2.1, "2.1 s ahead of"), (-60, "60.0 s behind")])
def test_clocks(seconds: float, words: str) -> None:
    line = of_clock("h1", timedelta(seconds=seconds), LIMITS)
    assert (line.code, words in line.message) == ("clock_skew" if words else "", True)
