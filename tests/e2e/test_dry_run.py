"""`snapshot create --dry-run`: all that stands against a snapshot at once, from the host itself, and no effect."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest
from sqlalchemy import create_engine, inspect, text

from common.ids import VmId, disk_id
from hostagent.places import journal_file
from tests.bed.disks import make_disk
from tests.bed.paths import new_dir
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.e2e.kit import Livesnap, Place, Said, place, writer_went_on
from tests.wait import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.needs("guest", "redis-server"), pytest.mark.xdist_group("dry-run")]

WAIT_S = 3
NAME = "checked"
REPORTED = {"hosts", "incarnations", "pools", "storage_domains", "vm_hosts", "manager_workers", "audit"}
"""Tables that every report, every Manager worker and every request writes to."""


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    """An isolated host."""
    with place() as opened:
        yield opened


@pytest.fixture(scope="module")
def livesnap(here: Place) -> Iterator[Livesnap]:
    """A running livesnap on it, for which there is always room."""
    with here.livesnap(environment={"LIVESNAP_CHECK_WAIT_S": str(WAIT_S), "LIVESNAP_LOW_SPACE_BYTES": "0"}) as running:
        yield running


@pytest.fixture(scope="module")
def vm(here: Place, livesnap: Livesnap) -> BedVm:
    """A guest with a disk as it should be, and one whose failing writes nobody would notice."""
    owner = here.host.owner
    disks = (
        DiskSpec(path=make_disk(here.storage / f"{NAME}-vda.qcow2", owner=owner)),
        DiskSpec(path=make_disk(here.storage / f"{NAME}-vdb.qcow2", owner=owner), target="vdb", error_policy="report"),
    )
    guest = define_vm(here.host, VmSpec(name=NAME, disks=disks))
    guest.start()
    guest.wait_ready()
    guest.wait_agent()
    livesnap.shows(guest)
    return guest


def rows(url: str, *, but: frozenset[str] | set[str] = frozenset()) -> dict[str, list[str]]:
    """Return every row of a database, table by table."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            names = {*inspect(connection).get_table_names()} - but
            return {name: sorted(map(repr, connection.execute(text(f'SELECT * FROM "{name}"')))) for name in names}
    finally:
        engine.dispose()


def everything(here: Place, livesnap: Livesnap, vm: BedVm) -> dict[str, Any]:
    """Return what a dry run must leave as it is."""
    return {
        "storage": {path: (path.stat().st_uid, path.stat().st_mode) for path in sorted(here.storage.rglob("*"))},
        "journal": rows(f"sqlite:///{journal_file(livesnap.state_dir / 'host')}"),
        "database": rows(livesnap.database_url, but=REPORTED),
        "live": vm.xml(),
        "persistent": vm.xml(persistent=True),
    }


def dry_run(livesnap: Livesnap, *words: str) -> Said:
    return livesnap.run("snapshot", "create", NAME, "--dry-run", *words)


def unlike_ok(said: Said) -> set[tuple[str, str, str]]:
    """Return level, subject and code of what is not fine; each with what to do."""
    lines = [line for line in said.json if line["level"] != "ok"]
    assert all(line["message"] and line["hint"] for line in lines)
    return {(line["level"], line["subject"], line["code"]) for line in lines}


def test_a_healthy_machine(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    before = everything(here, livesnap, vm)

    said = dry_run(livesnap, "--disk", "vda", "--json")

    assert (said.status, said.err) == (0, "")
    assert unlike_ok(said) == set()
    lines = {(line["subject"], line["message"]) for line in said.json}
    uid, gid = here.host.owner
    assert (NAME, "the guest's agent answers and offers freezing") in lines
    assert ("vda", f"opened read-write as user {uid}, group {gid}") in lines
    assert {subject for subject, _ in lines} == {NAME, "vda", "main", "h1"}
    shown = dry_run(livesnap, "--disk", "vda")
    assert (shown.status, shown.out.split()[:6]) == (0, ["LEVEL", "SUBJECT", "CODE", "FOUND", "WHAT", "TO"])
    assert everything(here, livesnap, vm) == before


@contextmanager
def foreign(path: Path, owner: tuple[int, int]) -> Iterator[None]:
    """Give a file, or a folder and its closed door, to root for a while."""
    mode = path.stat().st_mode
    os.chown(path, 0, 0)
    path.chmod(0o700 if path.is_dir() else mode)
    try:
        yield
    finally:
        path.chmod(mode)
        os.chown(path, *owner)


@contextmanager
def kept_by_libvirt(vm: BedVm) -> Iterator[None]:
    """Have libvirt keep a checkpoint, and a record of a snapshot (without making one)."""
    sources = vm.sources()
    external = f"<disk name='vda' snapshot='external' type='file'><source file='{sources['vda']}'/></disk>"
    snapshot = (
        "<domainsnapshot><name>kept</name><state>disk-snapshot</state><creationTime>1</creationTime>"
        f"<disks>{external}<disk name='vdb' snapshot='no'/></disks>{vm.xml(persistent=True)}</domainsnapshot>"
    )
    bitmap = "<disks><disk name='vda' checkpoint='bitmap'/><disk name='vdb' checkpoint='no'/></disks>"
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    with vm.libvirt() as handle:
        checkpoint = handle.checkpointCreateXML(f"<domaincheckpoint><name>monday</name>{bitmap}</domaincheckpoint>", 0)
        record = handle.snapshotCreateXML(snapshot, flags)
        try:
            yield
        finally:
            record.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
            checkpoint.delete(0)


@pytest.mark.needs("root")
def test_several_faults_are_all_shown_at_once(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    with kept_by_libvirt(vm), foreign(Path(vm.sources()["vda"]), here.host.owner):
        before = everything(here, livesnap, vm)
        said = dry_run(livesnap, "--json")
        shown = dry_run(livesnap)
        assert everything(here, livesnap, vm) == before
    assert (said.status, shown.status) == (2, 2)
    expected = {
        ("refusal", NAME, "vm_has_libvirt_snapshots"),
        ("warning", NAME, "backup_bitmaps"),
        ("refusal", "vda", "volume_permission"),
        ("warning", "vdb", "disk_error_policy"),
    }
    assert unlike_ok(said) == expected
    for level, subject, code in expected:
        assert any(line.split()[:3] == [level, subject, code] for line in shown.out.splitlines()), code
    # libvirt tells nobody that a snapshot is gone; a check's end is followed by a report, which does.
    fine_again = {("warning", "vdb", "disk_error_policy")}
    eventually(
        lambda: unlike_ok(dry_run(livesnap, "--json")) == fine_again, timeout_s=40, what="the inventory to follow"
    )


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["leaf", "folder"])
def test_a_job_on_such_storage_ends_with_nothing_left(here: Place, livesnap: Livesnap, vm: BedVm, what: str) -> None:
    folder = new_dir(here.storage / "images" / disk_id(VmId(vm.uuid), "vda"), here.host.owner)
    path = Path(vm.sources()["vda"]) if what == "leaf" else folder
    before, sources, taken = here.volumes(), vm.sources(), livesnap.json("snapshot", "list", NAME)
    with foreign(path, here.host.owner):
        assert {line[2] for line in unlike_ok(dry_run(livesnap, "--disk", "vda", "--json"))} == {"volume_permission"}
        said = livesnap.run("snapshot", "create", NAME, "--disk", "vda", "--json")
    assert (said.status, said.json["state"], said.json["error"]["code"]) == (1, "rolled_back", "volume_permission")
    assert said.json["error"]["hint"]
    assert here.volumes() == before
    assert vm.sources() == vm.sources(persistent=True) == sources
    assert livesnap.json("snapshot", "list", NAME) == taken
    assert vm.freeze_status() == "thawed"
    writer_went_on(vm)


def test_a_host_agent_that_does_not_answer(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    before = everything(here, livesnap, vm)
    agent = livesnap.pid_of("hostagent.worker")
    os.kill(agent, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        said = dry_run(livesnap, "--json")
        assert WAIT_S <= time.monotonic() - begun < WAIT_S + 10
    finally:
        os.kill(agent, signal.SIGCONT)
    assert said.status == 0
    assert ("warning", "h1", "host_unreachable") in unlike_ok(said)
    assert any("only the inventory was checked" in line["message"] for line in said.json)
    # The question is still on the queue; the agent refuses it as late, and that is the end of it.
    eventually(
        lambda: "message.expired" in livesnap.log("host") and "nobody waits for it" in livesnap.log("manager"),
        timeout_s=20,
        what="the late answer to be given, and ignored",
        interval_s=0.2,
    )
    assert everything(here, livesnap, vm) == before
    assert not {line for line in unlike_ok(dry_run(livesnap, "--json")) if line[1] == "h1"}


def test_what_was_warned_of_is_with_the_job_and_its_snapshot(here: Place, livesnap: Livesnap, vm: BedVm) -> None:
    said = livesnap.run("snapshot", "create", NAME, "--name", "warned", "--json")
    assert said.status == 0
    assert "; warnings: disk_error_policy: disk vdb: " in said.json["timeline"][0]["detail"]
    warnings = livesnap.json("snapshot", "show", f"{NAME}/warned")["receipt"]["warnings"]
    assert [(line["code"], line["subject"]) for line in warnings] == [("disk_error_policy", "vdb")]
    writer_went_on(vm)
