"""The main job on real parts: one command takes a live snapshot of a running guest, and says truthfully what it is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.bed.oracle import sha256
from tests.bed.root_host import RootHost
from tests.bed.servers import PostgresServer, RabbitServer
from tests.bed.vm import BedVm
from tests.e2e.kit import Livesnap, Place, place, writer_went_on

pytestmark = [pytest.mark.e2e, pytest.mark.needs("guest", "redis-server")]


@contextmanager
def on_redis_and_sqlite() -> Iterator[tuple[Place, Livesnap]]:
    """The default: its own Redis and SQLite."""
    with place() as here, here.livesnap() as livesnap:
        yield here, livesnap


@contextmanager
def on_rabbitmq_and_postgresql() -> Iterator[tuple[Place, Livesnap]]:
    """The production path."""
    with ExitStack() as stack:
        here = stack.enter_context(place())
        rabbit = stack.enter_context(RabbitServer(here.root / "rabbit"))
        postgres = stack.enter_context(PostgresServer(here.root / "postgres"))
        options = ("--broker", rabbit.url, "--database", postgres.url)
        yield here, stack.enter_context(here.livesnap(*options))


@contextmanager
def on_a_root_libvirtd() -> Iterator[tuple[Place, Livesnap]]:
    """A system-like libvirtd whose QEMU runs as another user."""
    with place(RootHost) as here, here.livesnap() as livesnap:
        yield here, livesnap


ON_REDIS = pytest.param(on_redis_and_sqlite, id="redis-sqlite", marks=pytest.mark.xdist_group("redis-sqlite"))
ELSEWHERE = {
    "rabbitmq-postgresql": (
        on_rabbitmq_and_postgresql,
        [pytest.mark.matrix, pytest.mark.rabbit, pytest.mark.own_backends, pytest.mark.needs("rabbitmq", "postgres")],
    ),
    "root-libvirtd": (on_a_root_libvirtd, [pytest.mark.needs("root")]),
}


def on_all(*marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Have a test run on every setting; `marks` are for those that are not the default."""
    others = (
        pytest.param(opening, id=name, marks=[*needs, *marks, pytest.mark.xdist_group(name)])
        for name, (opening, needs) in ELSEWHERE.items()
    )
    return pytest.mark.parametrize("setting", [ON_REDIS, *others], indirect=True)


@pytest.fixture(scope="module")
def setting(request: pytest.FixtureRequest) -> Iterator[tuple[Place, Livesnap]]:
    """A running livesnap and its host, on one of the settings."""
    open_setting: Callable[[], Any] = request.param
    with open_setting() as opened:
        yield opened


@on_all()
def test_quiesced(setting: tuple[Place, Livesnap]) -> None:
    here, livesnap = setting
    vm = here.guest("calm", disks=2)
    livesnap.shows(vm)
    before = vm.sources()
    first_ack = vm.last_ack()

    checked = livesnap.json("snapshot", "create", "calm", "--dry-run")
    said = livesnap.run("snapshot", "create", "calm", "--name", "one", "--json")

    check_table(checked, qemu_user=here.host.owner[0])
    assert said.status == 0, said.err
    job = said.json
    assert job["state"] == "completed"
    assert job["error"] is None
    assert [entry["step"] for entry in job["timeline"]] == ["creating_volumes", "pivoting", "completed"]
    assert all(entry["ms"] >= 0 for entry in job["timeline"])
    writer_went_on(vm)
    snapshot = livesnap.json("snapshot", "show", "calm/one")
    assert snapshot["consistency"] == "filesystem"
    assert snapshot["consistency_reason"] == ""
    assert {disk["target"]: str(here.storage / disk["path"]) for disk in snapshot["disks"]} == before
    check_receipt(snapshot, disks=2)
    check_gap_in_the_guests_writes(vm, snapshot["receipt"], first_ack)
    check_machine_is_on_new_volumes(here, vm, snapshot)
    check_content(here, vm, snapshot, first_ack, needs_recovery=False)


def check_table(lines: Any, *, qemu_user: int) -> None:
    """The host has answered the dry run, and QEMU's user could open both disks."""
    assert {line["code"] for line in lines if line["level"] != "ok"} <= {"storage_low"}
    opened = [
        line["subject"] for line in lines if line["message"].startswith(f"opened read-write as user {qemu_user},")
    ]
    assert opened == ["vda", "vdb"]


def check_receipt(snapshot: Any, *, disks: int) -> None:
    """The receipt's numbers are those of the guest: one file system per disk, frozen and thawed."""
    receipt = snapshot["receipt"]
    assert receipt["frozen_filesystems"] == receipt["thawed_filesystems"] == disks
    assert receipt["guard_fired"] is False
    assert 0 < receipt["held_ms"] < 10_000
    age = datetime.now(UTC) - datetime.fromisoformat(snapshot["taken_at"])
    assert timedelta(0) <= age < timedelta(minutes=2)


def check_gap_in_the_guests_writes(vm: BedVm, receipt: Any, first_ack: int) -> None:
    """The guest, by its own clock, could not write for as long as the receipt says that it was held, and not longer.

    It was frozen at the latest when the freeze returned, and thawed at some moment of the thaw's call.
    """
    moments = [ack.uptime_ms for ack in vm.acks() if ack.target == "vda" and ack.n >= first_ack]
    gap_ms = max(later - earlier for earlier, later in pairwise(moments))
    assert gap_ms >= receipt["held_ms"] - receipt["thaw_ms"] - 2, "the guest wrote while it is said to have been frozen"
    slack_ms = 2_000  # an emulated guest on a busy machine; a guest left frozen would be held for 10 s and more
    assert gap_ms <= receipt["freeze_ms"] + receipt["held_ms"] + slack_ms


def check_machine_is_on_new_volumes(here: Place, vm: BedVm, snapshot: Any) -> None:
    """Live and persistent definition name the new volumes, which lie below `images/`."""
    live, persistent = vm.sources(), vm.sources(persistent=True)
    assert live == persistent
    for disk in snapshot["disks"]:
        assert live[disk["target"]].startswith(str(here.storage / "images"))


def check_content(here: Place, vm: BedVm, snapshot: Any, first_ack: int, *, needs_recovery: bool) -> None:
    """The previous volume stands still, and holds exactly a prefix of the guest's records."""
    paths = {disk["target"]: here.storage / disk["path"] for disk in snapshot["disks"]}
    hashes = {target: sha256(path) for target, path in paths.items()}
    finding = here.content_of(snapshot)
    assert finding.needs_recovery is needs_recovery
    assert finding.fsck_rc == 0
    assert finding.records == tuple(range(finding.records[0], finding.records[-1] + 1))
    assert first_ack <= finding.records[-1] <= vm.last_ack()
    vm.wait_acks(more=10)
    assert {target: sha256(path) for target, path in paths.items()} == hashes


@on_all(pytest.mark.matrix)
def test_without_an_agent(setting: tuple[Place, Livesnap]) -> None:
    here, livesnap = setting
    vm = here.guest("mute", ga="none")
    livesnap.shows(vm)
    first_ack = vm.last_ack()

    said = livesnap.run("snapshot", "create", "mute", "--name", "one", "--json")

    assert said.status == 0, said.err
    host_attempts = [attempt for attempt in said.json["attempts"] if attempt["to"] == "host.h1"]
    assert [(attempt["quiesce"], attempt["outcome"]) for attempt in host_attempts] == [
        (True, "none_no_agent"),
        (False, "all_new"),
    ]
    snapshot = livesnap.json("snapshot", "show", "mute/one")
    assert (snapshot["consistency"], snapshot["consistency_reason"]) == ("crash", "not_quiesced")
    check_machine_is_on_new_volumes(here, vm, snapshot)
    check_content(here, vm, snapshot, first_ack, needs_recovery=True)
    writer_went_on(vm)


@on_all(pytest.mark.matrix)
def test_quiescing_required_but_no_agent(setting: tuple[Place, Livesnap]) -> None:
    here, livesnap = setting
    vm = here.guest("stern", ga="none")
    livesnap.shows(vm)
    sources, volumes = vm.sources(), here.volumes()

    said = livesnap.run("snapshot", "create", "stern", "--quiesce", "require", "--json")

    assert said.status == 1
    assert said.json["state"] == "rolled_back"
    assert said.json["error"]["code"] == "guest_agent_missing"
    assert vm.sources() == vm.sources(persistent=True) == sources
    assert here.volumes() == volumes
    assert livesnap.json("snapshot", "list", "stern") == []
    writer_went_on(vm)


@on_all(pytest.mark.matrix)
def test_a_second_snapshot_on_top_and_a_chosen_disk(setting: tuple[Place, Livesnap]) -> None:
    here, livesnap = setting
    vm = here.guest("twice", disks=2)
    livesnap.shows(vm)
    for name in ("one", "two"):
        assert livesnap.run("snapshot", "create", "twice", "--name", name).status == 0
    second_disk_before = vm.sources()["vdb"]

    said = livesnap.run("snapshot", "create", "twice", "--name", "three", "--disk", "vda", "--json")

    assert said.status == 0, said.err
    assert vm.sources()["vdb"] == second_disk_before
    three = livesnap.json("snapshot", "show", "twice/three")
    assert [disk["target"] for disk in three["disks"]] == ["vda"]
    assert three["partial"] is True
    records = [
        here.content_of(livesnap.json("snapshot", "show", f"twice/{n}")).records for n in ("one", "two", "three")
    ]
    assert records[0][-1] < records[1][-1] < records[2][-1]
    assert [snapshot["name"] for snapshot in livesnap.json("snapshot", "list", "twice")] == ["three", "two", "one"]
    writer_went_on(vm)
    writer_went_on(vm, target="vdb")
