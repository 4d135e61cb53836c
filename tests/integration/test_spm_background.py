"""What an SPM tells unasked: how its storage stands, at once when it begins and when a merge has ended."""

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.messaging.reports import SpmReport
from spm.background import Background
from spm.settings import SpmSettings
from tests.integration.spm_kit import SpmKit

SOON_S, NOT_S = 10.0, 0.3


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SpmKit]:
    kit = SpmKit(tmp_path / "main")
    yield kit
    kit.close()


def test_a_merge_that_has_ended_is_told_at_once_and_once(kit: SpmKit, tmp_path: Path) -> None:
    sent: queue.Queue[SpmReport] = queue.Queue()

    def send(report: SpmReport) -> bool:
        sent.put(report)
        return True

    background = Background(kit.pool, kit.clock, send, min_free_bytes=0)
    background.start(SpmSettings(report_interval_s=3600))
    try:
        first = sent.get(timeout=SOON_S)
        assert (first.sequence, first.merges) == (1, ())
        background.merge_ended(kit.vm)
        ended = sent.get(timeout=SOON_S)
        assert (ended.sequence, ended.merges) == (2, (kit.vm,))
        with pytest.raises(queue.Empty):
            sent.get(timeout=NOT_S)
    finally:
        background.stop()
