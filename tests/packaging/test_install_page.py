"""deploy/INSTALL.md, run block by block as it is written, from nothing to the first snapshot on two hypervisors."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bed.disks import make_disk
from tests.bed.guest_image import guest_image
from tests.bed.paths import cache_dir, short_dir
from tests.bed.servers import PostgresServer, RabbitServer
from tests.bed.vm import BedVm, define_vm
from tests.bed.vm_spec import DiskSpec, VmSpec
from tests.e2e.kit import writer_went_on
from tests.packaging.machines import Machine, MachineHost, own_network
from tests.wait import eventually

PAGE = Path(__file__).resolve().parents[2] / "deploy" / "INSTALL.md"
BLOCK = re.compile(r"^```sh on=([\w,]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HYPERVISORS = {"h1": "web1", "h2": "web2"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.rabbit,
    pytest.mark.timeout(240),
    pytest.mark.needs(
        "root", "guest", "rabbitmq", "postgres", "systemd-sysusers", "systemd-tmpfiles", "nsenter", "ip", "hostname"
    ),
]


@dataclass(frozen=True, kw_only=True)
class Bed:
    """What an operator has before the page begins: machines, a broker and a database that run, and guests."""

    machines: Mapping[str, Machine]
    guests: Mapping[str, BedVm]

    def status(self, machine: str, unit: str) -> dict[str, str]:
        """Return what the kernel says of a unit's process."""
        text = Path(f"/proc/{self.machines[machine].units()[unit]}/status").read_text()
        return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in text.splitlines())}


@contextmanager
def bed() -> Iterator[Bed]:
    """Yield it; everything ends with it."""
    guest_image()
    with own_network(), short_dir() as folder, ExitStack() as stack:
        postgres, rabbit = PostgresServer(folder / "postgres"), RabbitServer(folder / "rabbit", management=True)
        postgres.port, rabbit.port, rabbit._management_port = 5432, 5672, 15672
        stack.enter_context(postgres)
        postgres.sql("DROP DATABASE livesnap", database="postgres")
        stack.enter_context(rabbit)
        images = folder / "images"
        images.mkdir(mode=0o755)
        servers = {name: value for name, value in rabbit._environment().items() if name not in ("PATH", "LC_ALL")}
        machines = {
            "manager": Machine("manager", folder, binds={"/run/postgresql": postgres.dir}, environment=servers),
            "spm1": Machine("spm1", folder, binds={"/srv/images": images}, environment={}),
        }
        for name in HYPERVISORS:
            sockets = folder / "hosts" / name / "sockets"
            sockets.mkdir(parents=True)
            binds = {"/srv/images": images, "/run/libvirt": sockets, str(cache_dir()): cache_dir()}
            machines[name] = Machine(name, folder, binds=binds, environment={})
        for machine in machines.values():
            stack.enter_context(machine)
        cookie = "/var/lib/rabbitmq/.erlang.cookie"
        machines["manager"].run(f"install -o rabbitmq -g rabbitmq -m 0400 {rabbit.dir}/.erlang.cookie {cookie}")
        hosts = {name: stack.enter_context(MachineHost(name, folder / "hosts", machines[name])) for name in HYPERVISORS}
        guests = {host: booted(hosts[host], images, name) for host, name in HYPERVISORS.items()}
        yield Bed(machines=machines, guests=guests)


def booted(host: MachineHost, images: Path, name: str) -> BedVm:
    """Start a guest whose disk is named as the hypervisor sees it."""
    make_disk(images / f"{name}.qcow2", owner=host.owner)
    vm = define_vm(host, VmSpec(name=name, disks=(DiskSpec(path=Path(f"/srv/images/{name}.qcow2")),)))
    vm.start()
    return vm


@pytest.mark.matrix
def test_every_block_of_the_page_runs_as_written() -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == PAGE.read_text(encoding="utf-8").count("```sh")
    with bed() as here:
        for names, script in blocks:
            for vm in here.guests.values() if "snapshot create" in script else ():
                vm.wait_ready()  # they have booted meanwhile
                vm.wait_agent()
            for name in names.split(","):
                here.machines[name].run(script)
        assert_snapshots(here)
        assert_privileges(here)
        assert_flower(here)
        for vm in here.guests.values():
            writer_went_on(vm)


def assert_snapshots(here: Bed) -> None:
    manager = here.machines["manager"]
    where = "LIVESNAP_URL=http://127.0.0.1:8470 LIVESNAP_TOKEN=$(cat /etc/livesnap/token)"
    login = f"export PATH=/opt/livesnap/bin:$PATH {where}\n"
    for name in HYPERVISORS.values():
        (snapshot,) = json.loads(manager.run(f"{login}livesnap snapshot list {name} --json"))
        assert (snapshot["name"], snapshot["consistency"]) == ("first", "filesystem"), manager.logs()
    hosts = json.loads(manager.run(f"{login}livesnap host list --json"))
    assert {host["id"]: host["state"] for host in hosts} == dict.fromkeys(HYPERVISORS, "up")
    assert not [name for name in ("spm.toml", "h1.toml", "h2.toml") if (manager.root / "run" / name).exists()]


def assert_privileges(here: Bed) -> None:
    """Each process is its unit's user, with no more capabilities than the unit says: the stand-in has seen to it."""
    none, seen = "0000000000000000", {}
    for machine, unit in (
        *(("manager", unit) for unit in ("livesnap-manager@1", "livesnap-api", "livesnap-flower")),
        *(("spm1", "livesnap-spm"), ("h1", "livesnap-guard"), ("h1", "livesnap-host@1")),
    ):
        status = here.status(machine, unit)
        assert status["NoNewPrivs"] == "1"
        seen[unit] = (status["Uid"].split()[0] == "0", status["CapEff"])
    assert seen == {
        "livesnap-manager@1": (False, none),
        "livesnap-api": (False, none),
        "livesnap-flower": (False, none),
        "livesnap-spm": (False, "000000000000000b"),  # CHOWN, DAC_OVERRIDE, FOWNER
        "livesnap-guard": (True, none),
        "livesnap-host@1": (True, "00000000000800c2"),  # DAC_OVERRIDE, SETGID, SETUID, SYS_PTRACE
    }


def assert_flower(here: Bed) -> None:
    said = here.machines["manager"].run("cat /etc/livesnap/flower.env")
    login = said.partition("FLOWER_BASIC_AUTH=")[2].strip()
    eventually(lambda: flower_says(login) == 200, timeout_s=30, what="Flower", interval_s=0.2)
    assert flower_says("me:wrong") == 401


def flower_says(login: str) -> int:
    headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request("http://127.0.0.1:5555/api/tasks", headers=headers), timeout=5
        ) as said:
            return int(said.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
