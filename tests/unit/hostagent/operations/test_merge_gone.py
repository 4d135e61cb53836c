"""A stopped machine whose upper volume is gone, empty, or neither: only what is proven leads on."""

from collections.abc import Callable

import pytest

from common.messaging.merging import CheckMerge, DiskMerge, MergeSeen, MergeState, Way
from hostagent import vm_xml
from hostagent.operations.merge import check_merge
from tests.fakes.vm import sources_of
from tests.unit.hostagent.operations.test_merge_moved import NoJobs
from tests.unit.hostagent.operations.world import Process, World


@pytest.fixture
def world() -> World:
    """One disk, off, defined on the lower volume; the upper one holds data."""
    made = World(targets=("vda",))
    made.vm.power_off()
    made.storage.files[made.new()].has_data = True
    return made


def asked(world: World) -> MergeSeen:
    (switch,) = world.switches
    disk = DiskMerge(target="vda", disk_id=switch.disk_id, base=switch.old, top=switch.new, way=Way.CHAIN, leaf=True)
    command = CheckMerge(vm_id=world.vm_id, disks=(disk,))
    return check_merge(world.envelope(command), command, world.deps(Process()), NoJobs())


def deleted(world: World) -> None:
    del world.storage.files[world.new()]
    world.storage.tombstones.add(world.new())


def emptied(world: World) -> None:
    world.storage.files[world.new()].has_data = False


def marked(world: World) -> None:
    world.storage.files[world.new()].is_legal = False


def without_metadata(world: World) -> None:
    world.storage.files[world.new()].is_known = False


def lost(world: World) -> None:
    del world.storage.files[world.new()]


PROOFS = {"deleted by an SPM": deleted, "emptied by a merge": emptied}
NO_PROOFS = {"its data is there": lambda _: None, "marked": marked, "no metadata": without_metadata, "lost": lost}


@pytest.mark.parametrize("happened", PROOFS.values(), ids=PROOFS)
def test_what_is_proven_to_be_below_is_merged(world: World, happened: Callable[[World], None]) -> None:
    happened(world)
    assert asked(world).state is MergeState.MERGED


@pytest.mark.parametrize("happened", NO_PROOFS.values(), ids=NO_PROOFS)
def test_anything_else_is_not(world: World, happened: Callable[[World], None]) -> None:
    happened(world)
    assert asked(world).state is MergeState.UNKNOWN


@pytest.mark.parametrize("happened", NO_PROOFS.values(), ids=NO_PROOFS)
def test_and_a_definition_on_it_is_left_alone(world: World, happened: Callable[[World], None]) -> None:
    """Set back to the lower volume, the machine would boot without its last writes."""
    world.vm.persistent = vm_xml.with_sources(world.vm.persistent, {"vda": (world.new(), "qcow2")})
    happened(world)
    assert asked(world).state is MergeState.COLD
    assert sources_of(world.vm.persistent) == {"vda": world.new()}
