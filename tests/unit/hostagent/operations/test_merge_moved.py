"""A machine that has left the host on which its merge was begun: what either host may say of it."""

from dataclasses import replace

import pytest

from common.errors import HypervisorError
from common.messaging.merging import CheckMerge, DiskMerge, MergeSeen, MergeState, Way
from hostagent.merge_ports import BlockJob
from hostagent.operations.merge import check_merge
from tests.fakes.guest import FakeGuest
from tests.unit.hostagent.operations.world import Process, World


class NoJobs:
    """No block job runs, and none can be begun."""

    def find(self, target: str) -> BlockJob | None:
        return None

    def begin_commit(self, target: str, base_path: str, top_path: str, *, active: bool, bytes_per_s: int) -> None:
        raise HypervisorError("merge_failed", f"no commit of {top_path} into {base_path}")

    def pivot(self, target: str) -> None:
        raise HypervisorError("merge_failed", f"nothing to pivot on {target}")

    def abort(self, target: str) -> None:
        raise HypervisorError("merge_failed", f"nothing to end on {target}")


@pytest.fixture
def world() -> World:
    """One disk, whose new volume holds data and was merged into the old one: the machine runs on that."""
    made = World(targets=("vda",))
    made.storage.files[made.new()].has_data = True
    return made


def asked(world: World, *, begun: bool = False) -> MergeSeen:
    """Ask a host how far the merge of the new volume into the old one has come."""
    (switch,) = world.switches
    disk = DiskMerge(target="vda", disk_id=switch.disk_id, base=switch.old, top=switch.new, way=Way.CHAIN, leaf=True)
    command = CheckMerge(vm_id=world.vm_id, disks=(disk,), begun=begun)
    return check_merge(world.envelope(command), command, world.deps(Process()), NoJobs())


def test_its_new_host_claims_nothing_unless_it_is_told_that_a_commit_was_begun(world: World) -> None:
    assert asked(world).state is MergeState.UNKNOWN
    seen = asked(world, begun=True)
    assert seen.state is MergeState.MERGED
    assert seen.committed == (world.switches[0].new.volume_id,)


def test_that_it_was_begun_somewhere_does_not_make_a_chain_merged(world: World) -> None:
    world.vm.disks["vda"].chain.insert(0, world.new())
    world.vm.disks["vda"].live.insert(0, world.new())
    assert asked(world, begun=True).state is MergeState.IDLE


def test_its_former_host_says_what_it_had_begun_though_the_machine_is_gone(world: World) -> None:
    world.guest = FakeGuest(world.vm, is_known=False)
    gone = asked(world)
    assert (gone.state, gone.code, gone.begun) == (MergeState.UNKNOWN, "vm_not_found", False)
    world.journal.commit_begun(world.vm_id, world.job)
    assert asked(world) == replace(gone, begun=True)
