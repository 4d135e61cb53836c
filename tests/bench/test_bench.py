"""The benches run and report: the figures themselves are `make bench`'s. `make matrix` plays them."""

import pytest

from tests.bed.need import need
from tests.bench.__main__ import BENCHES, Bench
from tests.bench.row import Verdict
from tests.bench.sagas import broker, fleet, floor
from tests.bench.simulated.fleet import Size
from tests.bench.table import table
from tests.bench.throughput import row


@pytest.mark.matrix
@pytest.mark.needs("redis-server")
@pytest.mark.xdist_group("bench")
def test_a_simulated_fleet_completes_its_sagas_beside_the_floor() -> None:
    size = Size(hosts=2, vms=6)
    with (
        broker("redis") as (root, server),
        floor(root, server.url) as bare,
        fleet(root, server.url, "sqlite", size) as ours,
    ):
        made = row("redis-sqlite", [ours.round(), ours.round()], [bare.round(12), bare.round(12)], [ours.cpu_ms])
    assert made.simulated
    assert made.measured("ratio").value > 0
    assert "saga-throughput/redis-sqlite (simulated)" in table([made], {})
    assert all(took >= 0 for took in made.steps.values())


@pytest.mark.matrix
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("bench")
@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.keys[0].replace("/", "-"))
def test_every_bench_reports_its_rows(bench: Bench) -> None:
    if missing := need(*bench.needs):
        pytest.skip(missing)
    rows = list(bench.rows(quick=True, times=1))
    assert all(row.verdict is not Verdict.NOT_MEASURED and not row.failed for row in rows)
    assert {key for key in bench.keys if any(row.key.startswith(key) for row in rows)} == set(bench.keys)
    assert table(rows, {})
