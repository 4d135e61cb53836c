"""The test bed does what every other test takes for granted: real hosts, real guests, real servers, a true oracle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
import redis
from amqp import Connection, Message

from tests.bed.disks import make_disk, make_overlay
from tests.bed.host import IsolatedHost, shared_dir
from tests.bed.need import need
from tests.bed.oracle import examine
from tests.bed.paths import short_dir
from tests.bed.process import is_running
from tests.bed.root_host import RootHost
from tests.bed.servers import PostgresServer, RabbitServer, RedisServer
from tests.bed.small_fs import SmallFs
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import AgentMode, DiskSpec, VmSpec
from tests.wait import eventually

# Several boots in one test, each some seconds of CPU: on a busy machine that adds up.
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def require(*wanted: str) -> None:
    """Skip on a laptop where a tool is missing; fail in CI."""
    reason = need(*wanted)
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A host, a storage folder, and a guest with two disks that is up and writes."""

    host: IsolatedHost
    storage: Path
    vm: BedVm

    def pivot(self, name: str, *, freeze: bool) -> dict[str, Path]:
        """Give both disks a new leaf and return the volumes that were the leaves."""
        before = {target: Path(path) for target, path in self.vm.sources().items()}
        overlays = {
            target: make_overlay(self.storage / f"{target}-{name}.qcow2", backing=path, owner=self.host.owner)
            for target, path in before.items()
        }
        if not freeze:
            self.vm.snapshot(overlays)
            return before
        frozen = self.vm.freeze()
        try:
            self.vm.snapshot(overlays)
        finally:
            thawed = self.vm.thaw()
        assert (frozen, thawed) == (2, 2)
        return before


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    require("guest")
    with short_dir() as root, IsolatedHost("a", root) as host:
        storage = shared_dir(root / "storage", host)
        disks = tuple(
            DiskSpec(path=make_disk(storage / f"{target}.qcow2", owner=host.owner), target=target)
            for target in ("vda", "vdb")
        )
        vm = define_vm(host, VmSpec(name="writer", disks=disks))
        vm.start()
        vm.wait_agent()
        yield Bench(host=host, storage=storage, vm=vm)


def test_the_guest_writes_and_its_agent_answers(bench: Bench) -> None:
    assert bench.vm.wait_acks(target="vda") >= 5
    assert bench.vm.wait_acks(target="vdb") >= 5
    assert bench.vm.freeze_status() == "thawed"
    assert bench.vm.write_errors() == []
    assert {fs["disk"][0]["dev"] for fs in bench.vm.agent("guest-get-fsinfo")} == {"/dev/vda", "/dev/vdb"}


def test_a_guest_outlives_its_libvirtd(bench: Bench) -> None:
    before = bench.vm.qemu_pid
    assert before is not None

    bench.host.kill9()
    bench.vm.wait_acks()
    bench.host.start()

    assert bench.vm.qemu_pid == before
    bench.vm.wait_agent()
    assert bench.vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING


@pytest.mark.parametrize("freeze", [pytest.param(True, id="quiesced"), pytest.param(False, id="unquiesced")])
def test_the_oracle_tells_a_quiesced_snapshot_from_an_unquiesced_one(bench: Bench, freeze: bool) -> None:
    bench.vm.wait_acks()
    promised = {target: bench.vm.last_ack(target) for target in ("vda", "vdb")}

    volumes = bench.pivot("quiesced" if freeze else "unquiesced", freeze=freeze)

    bench.vm.wait_acks()
    for target, volume in volumes.items():
        finding = examine(volume)
        assert finding.needs_recovery is not freeze
        assert finding.fsck_rc == 0
        # without gaps from the first to at least the last one that was promised, and none from after the pivot
        assert finding.records == tuple(range(1, len(finding.records) + 1))
        assert promised[target] <= len(finding.records) < bench.vm.last_ack(target)


@pytest.mark.matrix
def test_the_console_tells_a_clean_boot_from_a_recovery(bench: Bench) -> None:
    boots = bench.vm.console().count("GUEST READY")
    bench.vm.shutdown()
    clean = len(bench.vm.console())
    bench.vm.start()
    bench.vm.wait_ready(boots=boots + 1)
    assert "recovery complete" not in bench.vm.console()[clean:]
    assert "EXT4-fs (vda): mounted filesystem" in bench.vm.console()[clean:]

    bench.vm.wait_acks()
    bench.vm.destroy()
    crash, promised = len(bench.vm.console()), bench.vm.last_ack()
    bench.vm.start()
    bench.vm.wait_ready(boots=boots + 2)
    assert "EXT4-fs (vda): recovery complete" in bench.vm.console()[crash:]

    bench.vm.wait_acks()  # numbering goes on: a record that was promised is never written a second time
    acks = bench.vm.acks()  # read once: the guest writes on
    after = [ack.n for ack in acks if ack.target == "vda" and ack.n > promised]
    assert after[0] in (promised + 1, promised + 2)
    assert len({(ack.target, ack.n) for ack in acks}) == len(acks)


def _refused(act: Callable[[], object]) -> int:
    with pytest.raises(libvirt.libvirtError) as caught:
        act()
    return int(caught.value.get_error_code())


@pytest.mark.matrix
def test_guest_agents_misbehave_as_told() -> None:
    require("guest")
    modes: tuple[AgentMode, ...] = ("none", "stop", "block", "hookfail", "hookslow")
    with short_dir() as root, IsolatedHost("a", root) as host:
        vms = {}
        for mode in modes:
            disk = DiskSpec(path=make_disk(root / f"{mode}.qcow2", owner=host.owner))
            vms[mode] = define_vm(host, VmSpec(name=mode, disks=(disk,), ga=mode, load="idle", hook_s=1))
            vms[mode].start()
        for vm in vms.values():
            vm.wait_ready()

        # no answer, whether nobody listens or somebody does not answer
        assert _refused(lambda: vms["none"].agent("guest-ping")) == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
        connected = "state='connected'"
        eventually(lambda: connected in vms["stop"].xml(), timeout_s=20, what="the stopped agent's channel")
        assert _refused(lambda: vms["stop"].agent("guest-ping")) == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
        # an answer, and no frozen guest
        for mode in ("block", "hookfail"):
            vms[mode].wait_agent()
            assert _refused(vms[mode].freeze) == libvirt.VIR_ERR_INTERNAL_ERROR
            assert vms[mode].freeze_status() == "thawed"
        vms["hookslow"].wait_agent()
        assert (vms["hookslow"].freeze(), vms["hookslow"].thaw()) == (1, 1)
        assert all(vm.acks() == [] for vm in vms.values())


@pytest.mark.matrix
def test_xfs_and_scsi_disks_work_too() -> None:
    require("guest", "mkfs.xfs")
    with short_dir() as root, IsolatedHost("a", root) as host:
        xfs = make_disk(root / "xfs.qcow2", owner=host.owner, fs="xfs")
        ext4 = make_disk(root / "ext4.raw", owner=host.owner, format="raw")
        disks = (DiskSpec(path=xfs), DiskSpec(path=ext4, format="raw", target="sda", bus="scsi"))
        vm = define_vm(host, VmSpec(name="mixed", disks=disks, fs="xfs"))
        vm.start()
        vm.wait_agent()
        vm.wait_acks(target="vda")
        vm.wait_acks(target="sda")
        assert (vm.freeze(), vm.thaw()) == (2, 2)
        vm.shutdown()
        assert len(examine(ext4, format="raw").records) >= vm.last_ack("sda")


@pytest.mark.matrix
def test_a_full_file_system_hits_the_guest_as_its_error_policy_says() -> None:
    require("guest", "loop")
    with short_dir() as root, IsolatedHost("a", root) as host:
        with SmallFs(12, root / "report", host.owner) as report, SmallFs(12, root / "stop", host.owner) as stop:
            disks = tuple(
                DiskSpec(
                    path=make_disk(fs.path / "disk.qcow2", owner=host.owner), target=target, error_policy=fs.path.name
                )
                for fs, target in ((report, "vda"), (stop, "vdb"))
            )
            vm = define_vm(host, VmSpec(name="full", disks=disks))
            vm.start()
            vm.wait_acks(target="vda")
            vm.wait_acks(target="vdb")

            report.fill()
            eventually(vm.write_errors, timeout_s=60, what="a failed write in the guest")
            assert {error.target for error in vm.write_errors()} == {"vda"}
            assert vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING

            stop.fill()
            paused = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
            eventually(lambda: vm.state() == paused, timeout_s=60, what="the machine to stop at an I/O error")
            stop.free()
            vm.resume()
            vm.wait_acks(target="vdb")
            vm.destroy()
        assert not (root / "stop" / "disk.qcow2").exists()


@pytest.mark.matrix
def test_two_hosts_share_storage_and_a_guest_moves_between_them() -> None:
    require("guest")
    with short_dir() as root, IsolatedHost("a", root) as one, IsolatedHost("b", root) as other:
        storage = shared_dir(root / "storage", one)
        disk = DiskSpec(path=make_disk(storage / "vda.qcow2", owner=one.owner))
        vm = define_vm(one, VmSpec(name="mover", disks=(disk,)))
        vm.start()
        vm.wait_agent()
        before = vm.wait_acks()

        moved = vm.migrate_to(other)

        moved.wait_acks()
        moved.wait_agent()
        assert moved.last_ack() > before
        assert (one.qemu_pids(), list(other.qemu_pids())) == ({}, ["mover"])


def test_a_root_host_boots_a_guest_and_cleans_up() -> None:
    require("guest", "root", "unshare")
    with short_dir() as root:
        with RootHost("r", root) as host:
            disk = make_disk(root / "vda.qcow2", owner=(0, 0))
            vm = define_vm(host, VmSpec(name="rooted", disks=(DiskSpec(path=disk),)))
            vm.start()
            vm.wait_agent()
            vm.wait_acks()
            assert disk.stat().st_uid == host.owner[0]  # libvirt gave it to QEMU's user
            host.kill9()
            host.start()
            vm.wait_agent()
            pids = (host.pid, vm.qemu_pid or 0)
            assert all(is_running(pid) for pid in pids)
        assert not any(is_running(pid) for pid in pids)


def test_redis_keeps_what_it_has_answered() -> None:
    require("redis-server")
    with short_dir() as root, RedisServer(root / "redis") as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
        server.kill9()
        server.start()
        with redis.Redis.from_url(server.socket_url) as client:
            assert client.get("kept") == b"yes"


def test_postgres_keeps_what_it_has_committed() -> None:
    require("postgres")
    with short_dir() as root, PostgresServer(root / "pg") as server:
        server.sql("CREATE TABLE kept AS SELECT 7 AS n")
        other = server.create_database("other")
        assert other.endswith(f":{server.port}/other")
        server.kill9()
        server.start()
        assert server.sql("SELECT n FROM kept") == "7"
        assert server.sql("SELECT current_database()", database="other") == "other"


@pytest.mark.matrix
@pytest.mark.rabbit
def test_rabbit_keeps_what_it_has_confirmed() -> None:
    require("rabbitmq")
    with short_dir() as root, RabbitServer(root / "rabbit") as server:
        where = f"127.0.0.1:{server.port}"
        with Connection(where) as connection, connection.channel() as channel:
            channel.queue_declare("kept", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        # What is declared reaches the disk late: a SIGKILL in the next second loses the queue itself (measured, 3.10).
        server.restart()
        with Connection(where, confirm_publish=True) as connection, connection.channel() as channel:
            channel.basic_publish(Message("yes", delivery_mode=2), routing_key="kept")
        server.kill9()
        server.start()
        with Connection(where) as connection, connection.channel() as channel:
            got = eventually(lambda: channel.basic_get("kept", no_ack=True), timeout_s=30, what="the kept message")
        assert got.body == "yes"


def test_need_names_what_is_missing() -> None:
    assert need("sh") is None
    assert need("sh", "no-such-tool", "no-such-tool") == "no-such-tool is not installed"


def test_eventually_returns_the_first_truth_and_names_what_never_came() -> None:
    values = iter([0, "", "there"])
    assert eventually(lambda: next(values), timeout_s=5, what="a value") == "there"
    with pytest.raises(AssertionError, match="in vain for a dragon; last value: 0"):
        eventually(lambda: 0, timeout_s=0.05, what="a dragon")


def test_a_daemon_that_cannot_start_says_why() -> None:
    require("redis-server")
    with short_dir() as root, RedisServer(root / "one") as first:
        second = RedisServer(root / "two")
        second.port = first.port
        with pytest.raises(RuntimeError, match=r"redis-server has ended: (.|\n)*in use"):
            second.start()
