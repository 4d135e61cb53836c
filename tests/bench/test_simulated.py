"""What stands in for hypervisors in the simulated rows, and for the product in their floor."""

from datetime import timedelta

from common.clock import SystemClock
from common.ids import HostId, JobId, StepId, VolumeId, disk_id, new_id
from common.messaging.messages import DiskSwitch, Format, Outcome, Pivot, VolumeAt
from common.messaging.wire import SCHEMA_VERSION, Envelope
from common.receipt import Consistency, label
from hostagent.operations.pivot import pivot
from tests.bench.courier import ROLES, WAY
from tests.bench.simulated.fleet import Size
from tests.bench.simulated.guest import FREEZE_S, SWITCH_S, THAW_S
from tests.bench.simulated.machine import Machine, journal
from tests.integration.manager_kit import STORAGE


def volume(path: str) -> VolumeAt:
    return VolumeAt(volume_id=VolumeId(new_id()), storage_domain_id=STORAGE, path=path, format=Format.QCOW2)


def test_every_machine_is_on_one_host() -> None:
    size = Size(hosts=7, vms=40)
    dealt = [name for number in range(size.hosts) for name in size.names_on(number)]
    assert sorted(dealt) == sorted(size.names())
    assert len(set(dealt)) == 40
    # The first of them are each on another host: a round that asks for some asks all hosts.
    assert [name for number in range(7) for name in size.names_on(number)[:1]] == list(size.names()[:7])


def test_a_simulated_machine_takes_its_time_and_is_quiesced() -> None:
    machine = Machine(HostId("sim0"), "vm0", journal())
    assert machine.report().disks[0].path == "vm0.qcow2"
    switch = DiskSwitch(
        target="vda", disk_id=disk_id(machine.vm_id, "vda"), old=volume("vm0.qcow2"), new=volume("images/d/new.qcow2")
    )
    machine.see((switch,))
    command = Pivot(
        vm_id=machine.vm_id,
        disks=(switch,),
        quiesce=True,
        require_quiesce=False,
        freeze_limit_ms=10_000,
        held_limit_ms=10_000,
    )
    now = SystemClock().now()
    envelope = Envelope(
        v=SCHEMA_VERSION,
        sender="manager",
        to="host.sim0",
        job=JobId(new_id()),
        vm=machine.vm_id,
        step=StepId(new_id()),
        attempt=3,
        issued_at=now,
        deadline=now + timedelta(minutes=1),
        body=command,
    )
    seen = pivot(envelope, command, machine.deps)
    assert seen.outcome is Outcome.ALL_NEW, seen
    assert seen.receipt is not None
    assert label(seen.receipt) == (Consistency.FILESYSTEM, "")
    assert seen.receipt.freeze_ms >= FREEZE_S * 1000
    assert seen.receipt.held_ms >= (SWITCH_S + THAW_S) * 1000
    shown = machine.report()
    assert (shown.disks[0].path, shown.attempt) == ("images/d/new.qcow2", 3)


def test_the_floor_passes_as_many_messages_as_a_saga() -> None:
    """Asked, create, created, pivot, pivoted, and the report of the changed machine."""
    sent, waiting = 1, ["asked"]
    while waiting:
        following = WAY[waiting.pop()]
        sent += len(following)
        waiting += [task for _, task in following]
    assert sent == 6
    assert sorted(task for tasks in ROLES.values() for task in tasks) == sorted(WAY)
