"""A worker's figures as a file: complete, one number for each living process, and gone when its process ends."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from common import metrics
from common.messaging import refusals
from common.messaging.refusals import Where
from common.metrics import MetricsFile
from tests.wait import eventually

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(file: Path) -> Series:
    families = text_string_to_metric_families(file.read_text())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@contextmanager
def written(folder: Path, number: int) -> Iterator[tuple[MetricsFile, Path]]:
    """Yield a running writer whose first file is there, under the number that it should have."""
    writer, file = MetricsFile(folder, "host.h1"), folder / f"livesnap-host.h1-{number}.prom"
    writer.start()
    try:
        eventually(file.exists, timeout_s=5, what=str(file))
        yield writer, file
    finally:
        writer.stop()


def test_messages_handled_and_refused_are_counted_under_the_process(tmp_path: Path) -> None:
    metrics.handled("host.sung", "done", 0.02)
    metrics.handled("host.sung", "busy", 0.0001)
    refused = refusals.count(Where.ENVELOPE)
    with written(tmp_path, 0) as (_, file):
        seen = read(file)
        me = {"process": "host.h1", "worker": "0"}.items()
        assert seen["livesnap_messages_total", frozenset({*me, ("op", "host.sung"), ("outcome", "done")})] == 1
        assert seen["livesnap_messages_total", frozenset({*me, ("op", "host.sung"), ("outcome", "busy")})] == 1
        bucket = "livesnap_message_seconds_bucket"
        assert seen[bucket, frozenset({*me, ("op", "host.sung"), ("le", "0.01")})] == 1
        assert seen[bucket, frozenset({*me, ("op", "host.sung"), ("le", "0.025")})] == 2
        assert seen["livesnap_messages_refused_total", frozenset({*me, ("where", "envelope")})] == refused
        assert all(name.startswith("livesnap_") for name, _ in seen)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_each_living_process_has_a_number_of_its_own_and_leaves_it_at_its_end(tmp_path: Path) -> None:
    with written(tmp_path, 0) as (first, first_file), written(tmp_path, 1) as (_, second_file):
        first.stop()
        assert not first_file.exists()
        assert second_file.exists()
        with written(tmp_path, 0):
            assert len(list(tmp_path.glob("*.prom"))) == 2
    assert list(tmp_path.glob("*.prom")) == []


def test_without_a_folder_nothing_is_written_and_without_the_right_one_nothing_is_hurt(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "none"):
        writer = MetricsFile(folder, "manager")
        writer.start()
        writer.stop()
    assert list(tmp_path.iterdir()) == []
