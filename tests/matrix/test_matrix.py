"""A sample of the fault matrix in every run of the suite; `make matrix` plays all of it."""

from collections.abc import Iterator

import pytest

from tests.e2e.scene import Scene
from tests.matrix.cells import POINTS, VICTIMS, Cell, cells
from tests.matrix.play import play, scene_of
from tests.matrix.stories import STORIES

SAMPLE = (
    ("straight", "manager.apply.committed", "broker"),
    ("straight", "host.pivot.frozen", "guard"),
    ("straight", "host.pivot.issued", "libvirtd"),
    ("deleted", "host.merge.pivoted", "libvirtd"),
)
"""Those where two parts are away at once; `test_kills.py` has each point's own process."""


def test_every_story_has_its_points_and_no_cell_is_played_twice() -> None:
    every = [str(cell) for cell in cells()]
    assert STORIES.keys() == POINTS.keys()
    assert len(every) == len(set(every)) > 150
    assert {cell.victim for cell in cells()} == set(VICTIMS)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """One livesnap for the whole sample."""
    with scene_of("straight") as made:
        yield made


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.own_backends
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("matrix")
@pytest.mark.needs("guest", "redis-server")
@pytest.mark.parametrize(("story", "point", "victim"), SAMPLE)
def test_a_cell(scene: Scene, story: str, point: str, victim: str) -> None:
    assert play(scene, Cell(story=story, point=point, victim=victim)).problem == ""
