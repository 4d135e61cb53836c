"""Clean shutdowns: what counts as one, and that no sequence of events, losses and runs ever makes a wrong one."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.messaging.messages import Outcome
from common.messaging.reports import AgentState, DiskReport, VmReport, VmState
from common.receipt import Consistency, label
from hostagent.connection import VmEvent
from hostagent.shutdowns import Run, ShutdownWatch, after
from hostagent.vm_state import Lifecycle, lifecycle
from tests.fakes.vm import sources_of
from tests.unit.hostagent.operations.world import World

RUN = Run(runtime_id="1.2", leaves={"vda": "/s/a"})
DOWN = replace(RUN, shut_down=True)


class Scene(World):
    """A vm whose events and reports reach a watch."""

    def __init__(self) -> None:
        super().__init__(targets=("vda",))

    def hear(self, *happened: Lifecycle) -> None:
        for each in happened:
            self.shutdowns.happened(VmEvent(vm_id=self.vm_id, kind="lifecycle", lifecycle=each))

    def report(self) -> None:
        live = {target: disk.live[0] for target, disk in self.vm.disks.items()} if self.vm.is_active else {}
        persistent = sources_of(self.vm.persistent)
        disks = tuple(
            DiskReport(
                target=target,
                device="disk",
                source_type="file",
                bus="virtio",
                format="qcow2",
                source=live.get(target, path),
                persistent_source=path,
                storage_domain_id=self.storage_domain,
            )
            for target, path in persistent.items()
        )
        told = VmReport(
            vm_id=self.vm_id,
            name="v",
            state=self.vm.state,
            persistent=True,
            agent=AgentState.CONNECTED,
            disks=disks,
            runtime_id=self.guest.runtime_id(),
        )
        self.shutdowns.saw([told])

    def shut_down(self) -> None:
        """Let the guest shut itself down, seen by the watch."""
        self.vm.guest_writes()
        self.vm.power_off()
        self.hear(Lifecycle.GUEST_SHUT_DOWN, Lifecycle.ENDED_BY_SHUTDOWN)

    @property
    def is_clean(self) -> bool:
        return self.shutdowns.left_clean(self.vm_id, [self.old()])

    def restart_agent(self) -> None:
        self.shutdowns = ShutdownWatch(lambda _: self.guest, self.journal, self.storage.image_state)


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.report()
    return made


@pytest.mark.parametrize(
    ("event", "detail", "word"),
    [
        (2, 0, Lifecycle.STARTED),
        (2, 1, Lifecycle.STARTED),
        (2, 4, Lifecycle.OTHER),  # woken up
        (3, 0, Lifecycle.OTHER),
        (4, 0, Lifecycle.OTHER),
        (5, 0, Lifecycle.ENDED_BY_SHUTDOWN),
        (5, 1, Lifecycle.ENDED),
        (5, 4, Lifecycle.ENDED),
        (6, 0, Lifecycle.OTHER),  # a QEMU that does not say who it was
        (6, 1, Lifecycle.GUEST_SHUT_DOWN),
        (6, 2, Lifecycle.OTHER),  # somebody has told QEMU to end
        (7, 0, Lifecycle.OTHER),
        (7, 1, Lifecycle.HIBERNATED),
        (8, 0, Lifecycle.ENDED),
        (99, 1, Lifecycle.OTHER),
    ],
)
def test_libvirts_numbers(event: int, detail: int, word: Lifecycle) -> None:
    assert lifecycle(event, detail) is word


@pytest.mark.parametrize(
    ("run", "happened", "following", "is_clean"),
    [
        (RUN, Lifecycle.GUEST_SHUT_DOWN, DOWN, False),
        (DOWN, Lifecycle.ENDED_BY_SHUTDOWN, Run(), True),
        (RUN, Lifecycle.ENDED_BY_SHUTDOWN, Run(), False),
        (DOWN, Lifecycle.OTHER, RUN, False),
        (DOWN, Lifecycle.ENDED, Run(), False),
        (DOWN, Lifecycle.STARTED, Run(), False),
        (replace(DOWN, hibernated=True), Lifecycle.ENDED_BY_SHUTDOWN, Run(), False),
        (RUN, Lifecycle.HIBERNATED, replace(RUN, hibernated=True), False),
    ],
)
def test_what_an_event_means(run: Run, happened: Lifecycle, following: Run, is_clean: bool) -> None:
    assert after(run, happened) == (following, is_clean)


def test_a_clean_shutdown_is_on_record_for_later_agents(scene: Scene) -> None:
    assert not scene.is_clean
    scene.shut_down()
    assert scene.is_clean
    scene.restart_agent()
    assert scene.is_clean
    assert not scene.shutdowns.left_clean(scene.vm_id, [scene.old(), scene.new()])


def test_the_snapshot_of_such_a_vm_is_clean(scene: Scene) -> None:
    scene.shut_down()
    seen = scene.pivot()
    scene.check(seen)
    assert label(seen.receipt) == (Consistency.FILESYSTEM, "")


def test_an_empty_leaf_is_as_clean_as_what_is_below_it(scene: Scene) -> None:
    scene.shut_down()
    scene.pivot()
    assert scene.shutdowns.left_clean(scene.vm_id, [scene.new()])
    scene.vm.boot()
    scene.vm.guest_writes()
    scene.vm.power_off()
    assert not scene.shutdowns.left_clean(scene.vm_id, [scene.new()])


def test_a_leaf_that_was_written_to_as_soon_as_it_was_named(scene: Scene) -> None:
    scene.shut_down()

    def run() -> None:
        scene.vm.boot()
        scene.vm.guest_writes()
        scene.vm.power_off()

    scene.during("define", run)
    assert scene.pivot().outcome is Outcome.ALL_NEW
    assert not scene.shutdowns.left_clean(scene.vm_id, [scene.new()])


def test_an_empty_leaf_above_an_unclean_one_is_not_clean(scene: Scene) -> None:
    scene.vm.power_off()
    scene.hear(Lifecycle.ENDED)
    assert scene.pivot().outcome is Outcome.ALL_NEW
    assert not scene.shutdowns.left_clean(scene.vm_id, [scene.new()])


def test_a_run_that_came_and_went_before_it_was_redefined(scene: Scene) -> None:
    scene.shut_down()

    def run() -> None:
        scene.vm.boot()
        scene.vm.guest_writes()
        scene.vm.power_off()

    scene.during("has_managed_save", run)
    seen = scene.pivot()
    assert seen.outcome is Outcome.ALL_NEW
    assert label(seen.receipt) == (Consistency.CRASH, "shutdown_unknown")


def test_a_start_that_nobody_saw_writes_to_the_images(scene: Scene) -> None:
    scene.shut_down()
    scene.vm.boot()
    scene.vm.guest_writes()
    scene.vm.power_off()
    scene.restart_agent()
    seen = scene.pivot()
    assert label(seen.receipt) == (Consistency.CRASH, "shutdown_unknown")


def test_every_later_start_that_is_seen_voids_the_record(scene: Scene) -> None:
    scene.shut_down()
    scene.hear(Lifecycle.STARTED, Lifecycle.ENDED)
    assert not scene.is_clean


def test_a_later_run_that_is_only_reported_voids_the_record(scene: Scene) -> None:
    scene.shut_down()
    scene.report()
    assert scene.is_clean
    scene.vm.boot()
    scene.restart_agent()
    scene.report()
    scene.vm.power_off()
    assert not scene.is_clean


def test_a_start_in_the_same_batch_of_events_is_never_overlooked(scene: Scene) -> None:
    """What was captured after the second run must not be recorded for the first."""
    scene.shut_down()
    scene.vm.boot()
    scene.vm.guest_writes()
    scene.vm.power_off()
    scene.hear(Lifecycle.STARTED, Lifecycle.OTHER, Lifecycle.ENDED_BY_SHUTDOWN)
    assert not scene.is_clean
    assert scene.journal.images_left(scene.vm_id) == {}


def test_events_that_were_lost(scene: Scene) -> None:
    scene.hear(Lifecycle.GUEST_SHUT_DOWN)
    scene.shutdowns.events_were_lost()
    scene.vm.power_off()
    scene.hear(Lifecycle.ENDED_BY_SHUTDOWN)
    assert not scene.is_clean


def test_a_run_that_was_never_reported() -> None:
    scene = Scene()
    scene.shut_down()
    assert not scene.is_clean


def test_a_vm_that_has_started_again(scene: Scene) -> None:
    scene.shut_down()
    scene.vm.boot()
    assert not scene.is_clean
    scene.vm.power_off()
    assert not scene.is_clean


def test_a_definition_that_names_another_leaf(scene: Scene) -> None:
    scene.vm.persistent = scene.vm.persistent.replace(scene.old(), scene.new())
    scene.shut_down()
    assert scene.journal.images_left(scene.vm_id) == {}


def test_a_vm_that_a_reset_ends(scene: Scene) -> None:
    scene.vm.persistent = scene.vm.persistent.replace("</domain>", "<on_reboot>destroy</on_reboot></domain>")
    scene.shut_down()
    assert not scene.is_clean


def test_an_image_that_somebody_opens(scene: Scene) -> None:
    scene.others_open = {scene.old()}
    scene.shut_down()
    scene.report()
    scene.others_open = set()
    assert not scene.is_clean


def test_a_journal_that_fails_says_unknown(scene: Scene) -> None:
    scene.shut_down()
    assert scene.is_clean
    scene.journal.close()
    assert not scene.is_clean
    scene.shutdowns.moved(scene.vm_id, {scene.new(): "1"})
    scene.vm.boot()
    scene.hear(Lifecycle.STARTED)
    scene.report()
    scene.shut_down()
    assert not scene.is_clean


class Lives(RuleBasedStateMachine):
    """A vm's lives, with an agent that is there, away, or dies; `truth`: the image is as a clean shutdown left it."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene()
        self.connected = True
        self.truth = False
        self.scene.report()

    def tell(self, happened: Lifecycle) -> None:
        if self.connected:
            self.scene.hear(happened)

    def is_in(self, *states: VmState) -> bool:
        return self.scene.vm.state in states

    @precondition(lambda self: self.is_in(VmState.OFF))
    @rule()
    def start(self) -> None:
        self.scene.vm.boot()
        self.tell(Lifecycle.STARTED)

    @precondition(lambda self: self.is_in(VmState.RUNNING))
    @rule()
    def write(self) -> None:
        self.scene.vm.guest_writes()
        self.truth = False

    @precondition(lambda self: self.is_in(VmState.RUNNING))
    @rule()
    def hibernate(self) -> None:
        self.write()
        self.tell(Lifecycle.HIBERNATED)

    @precondition(lambda self: self.is_in(VmState.RUNNING))
    @rule()
    def guest_powers_off(self) -> None:
        self.scene.vm.guest_writes()
        self.scene.vm.state = VmState.STOPPING
        self.tell(Lifecycle.GUEST_SHUT_DOWN)
        self.truth = True

    @precondition(lambda self: self.is_in(VmState.RUNNING))
    @rule()
    def hibernate_and_power_off(self) -> None:
        self.hibernate()
        self.guest_powers_off()
        self.truth = False

    @precondition(lambda self: self.is_in(VmState.STOPPING))
    @rule()
    def reboots_instead(self) -> None:
        self.scene.vm.state = VmState.RUNNING
        self.tell(Lifecycle.OTHER)
        self.write()

    @precondition(lambda self: self.is_in(VmState.STOPPING, VmState.RUNNING))
    @rule()
    def qemu_is_told_to_end(self) -> None:
        if self.is_in(VmState.RUNNING):
            self.tell(Lifecycle.OTHER)
        self.scene.vm.power_off()
        self.tell(Lifecycle.ENDED_BY_SHUTDOWN)

    @precondition(lambda self: self.is_in(VmState.STOPPING, VmState.RUNNING))
    @rule()
    def is_destroyed(self) -> None:
        self.scene.vm.power_off()
        self.tell(Lifecycle.ENDED)

    @precondition(lambda self: self.connected)
    @rule()
    def reports(self) -> None:
        self.scene.report()

    @precondition(lambda self: self.connected)
    @rule()
    def loses_libvirt(self) -> None:
        self.scene.shutdowns.events_were_lost()
        self.connected = False

    @precondition(lambda self: not self.connected)
    @rule()
    def is_back(self) -> None:
        self.connected = True
        self.scene.report()

    @precondition(lambda self: self.connected)
    @rule()
    def dies(self) -> None:
        self.scene.restart_agent()
        self.connected = False

    @invariant()
    def never_claims_what_is_not_so(self) -> None:
        if self.is_in(VmState.OFF) and self.scene.is_clean:
            assert self.truth


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestLives = Lives.TestCase
