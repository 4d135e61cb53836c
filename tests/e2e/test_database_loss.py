"""PostgreSQL dies in the middle of a job, and what its Manager is told meanwhile cannot be written down."""

import pytest

from tests.e2e.scene import AGENT, SPM
from tests.e2e.wires import Wired

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.own_backends,
    pytest.mark.rabbit,
    pytest.mark.timeout(300),
    pytest.mark.needs("guest", "redis-server", "rabbitmq", "postgres"),
    pytest.mark.xdist_group("production"),
]


@pytest.mark.parametrize(("process", "state"), [(SPM, "creating_volumes"), (AGENT, "pivoting")])
def test_the_database_dies_while_an_answer_is_on_its_way(production_wired: Wired, process: str, state: str) -> None:
    """The answer is given to a Manager that cannot store it; once the database is back, it is asked for again."""
    scene, wire, database = production_wired.scene, production_wired.wire, production_wired.postgres
    assert database is not None
    with scene.held(process):
        job = scene.livesnap.submit(scene.vm)
        scene.reaches(job, state)
        database.kill9()
        before = len(wire.heard)
    try:
        wire.hears("manager.answer", after=before)
    finally:
        database.start()
    ended = scene.ends_well(job)
    assert ended["state"] == "completed"
    assert any(attempt["deliveries"] > 1 for attempt in ended["attempts"])
